//! Small files beside objects: what is needed to write their rows again.
//!
//! ```text
//!   volumes/<name>/volume.json          VolumeRow
//!   containers/<id>/container.json      the engine's record of a container
//!   networks/<id>.json                  NetworkRow
//!   images/<digits of the id>.json      ImageRecord, names included
//! ```
//!
//! The database is an index of these objects; the objects and these files are
//! the truth. A lost or older database is made from them again.
//!
//! A record is two lines of JSON: what it is (`kind`, `version`, the `digest` of
//! the other line), and the data. It is written beside its place and renamed into
//! it, so that a reader sees all of the old one or all of the new one. It is not
//! flushed: a power cut may take the last one back or leave it empty, and then
//! the row, which is durable where that was promised, writes it again.
//!
//! **How it fails.** What is not a record of this kind, whole and with the right
//! digest, is [`Error::Damaged`]: it is never guessed at.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use knarr_model::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// The only version that there is.
const VERSION: u32 = 1;

/// The largest record that is read: a container's arguments and environment
/// take 2 MiB at most, each, and its labels some more.
const LARGEST: u64 = 32 << 20;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its word.
        source: io::Error,
    },
    /// It is not a whole record of the kind.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What a record's functions answer.
pub type Result<T> = std::result::Result<T, Error>;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: String,
    version: u32,
    digest: Digest,
}

/// Writes a record in the place of the one that is there. Its directory must
/// exist; one writer at a time.
///
/// # Errors
/// [`Error::Io`]; the record that was there is then untouched.
pub fn write<T: Serialize>(path: &Path, kind: &str, data: &T) -> Result<()> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let text = encode(kind, data).map_err(|error| failed(error.into()))?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(error)
    })
}

fn encode<T: Serialize>(kind: &str, data: &T) -> serde_json::Result<Vec<u8>> {
    let data = serde_json::to_vec(data)?;
    let head = Head { kind: kind.to_owned(), version: VERSION, digest: digest(&data) };
    let mut text = serde_json::to_vec(&head)?;
    text.push(b'\n');
    text.extend(data);
    text.push(b'\n');
    Ok(text)
}

fn digest(data: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(data).into())
}

/// Reads a record; none where there is no file.
///
/// # Errors
/// [`Error::Damaged`] for what is no whole record of this kind.
pub fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<Option<T>> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.is_file() => return Err(damaged("it is no regular file".into())),
        Ok(meta) if meta.len() > LARGEST => return Err(damaged("it is too large".into())),
        Ok(_) => {}
    }
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut text)).map_err(failed)?;
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // A whole one ends with a line feed, behind which there is nothing.
    let [head, data, []] = lines[..] else {
        return Err(damaged("it is not two lines of JSON".into()));
    };
    let head: Head =
        serde_json::from_slice(head).map_err(|error| damaged(format!("no record: {error}")))?;
    if head.kind != kind {
        return Err(damaged(format!("it is of the kind {:?}, want {kind:?}", head.kind)));
    }
    if head.version != VERSION {
        return Err(damaged(format!("its version is {}, want {VERSION}", head.version)));
    }
    if digest(data) != head.digest {
        return Err(damaged("its content does not hash to what it says".into()));
    }
    serde_json::from_slice(data).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Removes a record. None there is success.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_owned(), source })
        }
        _ => {
            // A power cut must not bring back what was removed.
            let directory = path.parent().unwrap_or(Path::new("."));
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| Error::Io { path: directory.to_owned(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn k05_a_record_is_read_as_it_was_written_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("thing.json");
        assert!(read::<BTreeMap<String, f64>>(&path, "thing").unwrap().is_none());
        let thing = BTreeMap::from([("a \u{1f980}\n".to_owned(), 0.1), (String::new(), 7.0)]);
        write(&path, "thing", &BTreeMap::<String, f64>::new()).unwrap();
        write(&path, "thing", &thing).unwrap();
        assert_eq!(read(&path, "thing").unwrap(), Some(thing.clone()));
        assert!(read::<BTreeMap<String, f64>>(&path, "other").is_err());
        let names: Vec<_> = fs::read_dir(scratch.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it: {names:?}");

        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let outcome = read::<BTreeMap<String, f64>>(&path, "thing");
            assert!(matches!(outcome, Err(Error::Damaged { .. })), "cut at {end}: {outcome:?}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let outcome = read::<BTreeMap<String, f64>>(&path, "thing");
            assert!(!matches!(&outcome, Ok(found) if *found != Some(thing.clone())), "{at}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(read(&path, "thing").unwrap(), Some(thing));
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
