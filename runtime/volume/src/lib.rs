//! Volumes: named and anonymous ones of the `local` driver; copy-up.
//!
//! ```text
//!   <data-root>/volumes/          0711
//!     <name>/                     0711
//!       volume.json               0600   the volume's record
//!       _data/                    0755   what containers see
//!       .fill/    a copy-up in progress: discarded when found
//!       .filled/  a complete copy-up on its way into _data: finished when found
//!     .removed-<number>-<name>/   a removed volume that is being deleted
//! ```
//!
//! **Life.** Directory first and durable, then the row, then the record; on
//! removal the directory is given the name of a removed one, then the row goes,
//! then the directory. A directory without a row is adopted ([`Volumes::adopt`]), never
//! deleted. A use is a row with foreign keys ([`Volumes::attach`]); a volume in
//! use is never removed.
//!
//! **How it fails.** Every verb is idempotent. A name outside the grammar
//! never becomes a path. Copy-up follows no link, neither in the image nor in
//! the volume, and a crash in it leaves an empty volume or a full one.

#![forbid(unsafe_code)]

mod adopt;
mod copy;
mod error;
mod view;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::{
        fd::BorrowedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use knarr_model::{ContainerId, Name};
use knarr_state::{
    Db, record,
    volumes::{VolumeRemoval, VolumeRow},
};

pub use error::{Error, Result};
pub use view::{LayeredView, open_beneath};

/// The only driver there is.
pub const DRIVER: &str = "local";

const DATA: &str = "_data";

/// What to create.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Its name; none makes an anonymous volume with a random one.
    pub name: Option<String>,
    /// `local`, or empty for it.
    pub driver: String,
    /// The driver's options; `local` takes none yet.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// RFC 3339.
    pub created: String,
    /// Made for one container without being named.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The driver's options.
    pub options: BTreeMap<String, String>,
    /// The directory that containers see.
    pub mountpoint: PathBuf,
}

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names.
    pub names: Vec<Name>,
    /// Bytes that they took.
    pub bytes: u64,
}

/// The volumes of one engine.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    db: Arc<Db>,
    /// One copy-up at a time a volume; the second finds it full.
    filling: Mutex<HashMap<Name, Arc<Mutex<()>>>>,
    /// Read: making or using a volume. Written: taking one away.
    changes: RwLock<()>,
}

impl Volumes {
    /// Opens the volumes below `data_root`. Call [`Volumes::adopt`] next.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(data_root: &Path, db: Arc<Db>) -> Result<Self> {
        let root = data_root.join("volumes");
        make_dir(&root, 0o711)?;
        Ok(Self { root, db, filling: Mutex::default(), changes: RwLock::default() })
    }

    /// Creates a volume, or answers the one that has the name already, as
    /// Docker does. On disk when it returns.
    ///
    /// # Errors
    /// `InvalidArgument` for a name outside the grammar; `NotFound` for an
    /// unknown driver; `Conflict` when one of the name has other options.
    pub fn create(&self, request: &CreateVolume) -> Result<Volume> {
        if !matches!(request.driver.as_str(), "" | DRIVER) {
            return Err(Error::Driver(request.driver.clone()));
        }
        if let Some(option) = request.options.keys().next() {
            return Err(Error::Option(option.clone()));
        }
        let (name, anonymous) = match request.name.as_deref() {
            None | Some("") => (random_name()?, true),
            Some(name) => (parse_name(name)?, false),
        };
        let _changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = self.db.volume(name.as_str())? {
            return self.same(row, request);
        }
        self.db.check_space()?;
        let dir = self.root.join(name.as_str());
        let row = VolumeRow {
            name,
            created: jiff::Timestamp::now().to_string(),
            anonymous,
            labels: request.labels.clone(),
            options: request.options.clone(),
        };
        make_dir(&dir, 0o711)?;
        make_dir(&dir.join(DATA), 0o755)?;
        sync_dir(&dir)?;
        sync_dir(&self.root)?;
        let (row, ours) = self.db.insert_volume(&row)?;
        if !ours {
            return self.same(row, request);
        }
        // The row is durable, and the next start writes what is not written here.
        if let Err(error) = record::write(&dir.join(adopt::RECORD), adopt::KIND, &row) {
            tracing::warn!(%error, "no record of a volume");
        }
        Ok(self.volume(row))
    }

    fn same(&self, row: VolumeRow, request: &CreateVolume) -> Result<Volume> {
        if !request.options.is_empty() && request.options != row.options {
            return Err(Error::Differs(row.name.to_string()));
        }
        Ok(self.volume(row))
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, name: &str) -> Result<Volume> {
        let row = self.db.volume(name)?.ok_or_else(|| Error::NotFound(name.to_owned()))?;
        Ok(self.volume(row))
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        Ok(self.db.volumes()?.into_iter().map(|row| self.volume(row)).collect())
    }

    /// Removes a volume and what it holds. With `force` a missing one is fine.
    /// What cannot be deleted of it has lost its name and is tried again
    /// ([`Volumes::finish_removals`]).
    ///
    /// # Errors
    /// `Conflict` when a container uses it, running or not; `NotFound`.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        let missing = |name: &str| {
            if force { Ok(()) } else { Err(Error::NotFound(name.to_owned())) }
        };
        // What is no name is no volume's.
        let Ok(parsed) = parse_name(name) else { return missing(name) };
        let retired = {
            let _changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
            if self.db.volume(name)?.is_none() {
                return missing(name);
            }
            let in_use = |users: Vec<ContainerId>| Error::InUse {
                name: name.to_owned(),
                users: users.into(),
            };
            let users = self.db.volume_users(name)?;
            if !users.is_empty() {
                return Err(in_use(users));
            }
            let retired = self.retire(&parsed)?;
            let outcome = match self.db.delete_volume(name) {
                Ok(VolumeRemoval::Removed | VolumeRemoval::Missing) => Ok(()),
                Ok(VolumeRemoval::InUse(users)) => Err(in_use(users)),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                let _ = fs::rename(&retired, self.root.join(name));
                return Err(error);
            }
            // A power cut must not bring it back.
            sync_dir(&self.root)?;
            self.db.sync()?;
            retired
        };
        self.filling.lock().unwrap_or_else(PoisonError::into_inner).remove(&parsed);
        if let Err(error) = remove_tree(&retired) {
            tracing::warn!(%error, volume = name, "a removed volume is not deleted yet");
        }
        Ok(())
    }

    /// Removes the unused volumes that `wanted` picks: Docker's default picks
    /// anonymous ones only ([`Volume::anonymous`]).
    ///
    /// # Errors
    /// When the database cannot be used; a directory that stays is logged.
    pub fn prune(&self, wanted: impl Fn(&Volume) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for volume in self.list()?.into_iter().filter(wanted) {
            if !self.users(volume.name.as_str())?.is_empty() {
                continue;
            }
            let bytes = self.usage(volume.name.as_str()).unwrap_or(0);
            match self.remove(volume.name.as_str(), true) {
                Ok(()) => {
                    pruned.names.push(volume.name);
                    pruned.bytes += bytes;
                }
                // Somebody took it meanwhile: not ours to remove any more.
                Err(Error::InUse { .. }) => {}
                Err(error) => tracing::warn!(volume = %volume.name, %error, "not pruned"),
            }
        }
        Ok(pruned)
    }

    /// Records that a container uses a volume; its row must be there.
    ///
    /// # Errors
    /// When there is no such volume or container.
    pub fn attach(&self, volume: &str, container: &ContainerId) -> Result<()> {
        let _changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        Ok(self.db.use_volume(volume, container)?)
    }

    /// Forgets what a container used. With `remove_anonymous`, its anonymous
    /// volumes that nobody else uses go; named ones never do.
    ///
    /// # Errors
    /// The first one, after everything was tried.
    pub fn release(&self, container: &ContainerId, remove_anonymous: bool) -> Result<()> {
        let mut outcome = Ok(());
        for row in self.db.release_volumes(container)? {
            if remove_anonymous && row.anonymous {
                match self.remove(row.name.as_str(), true) {
                    Ok(()) | Err(Error::InUse { .. }) => {}
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        }
        outcome
    }

    /// Who uses a volume.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn users(&self, volume: &str) -> Result<Vec<ContainerId>> {
        Ok(self.db.volume_users(volume)?)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn of(&self, container: &ContainerId) -> Result<Vec<Volume>> {
        Ok(self.db.volumes_of(container)?.into_iter().map(|row| self.volume(row)).collect())
    }

    /// Bytes of all files in a volume.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be read.
    pub fn usage(&self, name: &str) -> Result<u64> {
        let volume = self.inspect(name)?;
        // With what an interrupted copy-up left beside its data.
        let dir = self.root.join(volume.name.as_str());
        let all = at(&dir, knarr_tree::usage(&dir))?.length;
        // Its record is not its user's.
        Ok(all.saturating_sub(fs::metadata(dir.join(adopt::RECORD)).map_or(0, |m| m.len())))
    }

    /// Fills an empty volume with what the image has where it is mounted:
    /// names, contents, owners, modes, times, extended attributes, symbolic
    /// and hard links, and the directory's own owner and mode. Does nothing
    /// when the volume holds something. Blocking.
    ///
    /// `source` is the directory inside the image, opened beneath its root
    /// ([`LayeredView`], [`open_beneath`]); nothing in it is followed.
    ///
    /// # Errors
    /// `NotFound`, or when something cannot be copied: the volume is then empty.
    pub fn copy_up(&self, name: &str, source: BorrowedFd<'_>) -> Result<()> {
        let volume = self.inspect(name)?;
        let lock = {
            let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
            filling.entry(volume.name.clone()).or_default().clone()
        };
        let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
        copy::fill(&self.root.join(volume.name.as_str()), source)
    }

    fn volume(&self, row: VolumeRow) -> Volume {
        let mountpoint = self.root.join(row.name.as_str()).join(DATA);
        let VolumeRow { name, created, anonymous, labels, options } = row;
        Volume { name, created, anonymous, labels, options, mountpoint }
    }
}

fn parse_name(name: &str) -> Result<Name> {
    // Docker wants two characters at least (moby daemon/names/names.go).
    name.parse::<Name>()
        .ok()
        .filter(|name| name.as_str().len() > 1)
        .ok_or_else(|| Error::Name(name.chars().take(80).collect()))
}

fn random_name() -> Result<Name> {
    let mut bytes = [0; 32];
    let source = Path::new("/dev/urandom");
    at(source, File::open(source).and_then(|mut file| file.read_exact(&mut bytes)))?;
    ContainerId::from_random(bytes).as_str().parse().map_err(|_| Error::Name(String::new()))
}

fn at<T>(path: &Path, outcome: io::Result<T>) -> Result<T> {
    outcome.map_err(|error| Error::io(path.display(), error))
}

/// Creates a directory with exactly this mode; one that is there is left as it is.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        // The umask of whoever started the daemon has no say.
        Ok(()) => at(path, fs::set_permissions(path, fs::Permissions::from_mode(mode))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            at(parent, fs::create_dir_all(parent))?;
            make_dir(path, mode)
        }
        Err(error) => Err(Error::io(path.display(), error)),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    at(path, File::open(path).and_then(|dir| dir.sync_all()))
}

/// Removes a tree; what is already gone is fine.
fn remove_tree(path: &Path) -> Result<()> {
    at(path, knarr_tree::remove(path))
}

#[cfg(test)]
mod tests;
