//! An entry of the code cache, and what makes it believed.
//!
//! ```text
//!   wasm/key                  32 random bytes, root's alone
//!   wasm/<host>/<hex>.cwasm   code, which is executed
//!   wasm/<host>/<hex>.seal    one line: module, host, digest of the code, which file it was
//!                             when it was read, and a MAC of all that under the key
//! ```
//!
//! Compiled code is run without further questions, so it is asked before: is this the code
//! that was compiled of this module for this host? The MAC binds the digest of the code to
//! both. The digest is computed once a boot and whenever the file is another than the seal
//! says: as long as device, inode, size and the time of the last change are the same,
//! nobody has written to it, because the kernel changes that time and nobody else can. So
//! a start costs the reading of a line and not of the code: some 20 µs instead of half a
//! millisecond a megabyte.
//!
//! A seal made in the same instant as the last change proves nothing ([`RACY`]): a write
//! right after it could have the same time. Until that has passed, the digest is computed.
//!
//! **How it fails.** What is missing is missing; whatever is not as it must be is in doubt,
//! with the reason, and is compiled again. No doubt is an error.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use knarr_model::{Digest, task::CodeIdentity};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

/// Time stamps of the coarsest filesystems are two seconds apart.
const RACY: Duration = Duration::from_secs(2);
/// The longest seal.
const SEAL_MAX: u64 = 1024;
/// The first word of a seal; another one is another format.
const FORMAT: &str = "knarr-seal-1";
const KEY: usize = 32;

/// Code that may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Where it is.
    pub path: PathBuf,
    /// The file that was checked.
    pub identity: CodeIdentity,
}

/// What is to be thought of an entry.
#[derive(Debug)]
pub(crate) enum Standing {
    /// There is none.
    Missing,
    /// It is what was compiled.
    Sound(Code),
    /// It must be read before that is known.
    Unread,
    /// It is not to be run, and why.
    Doubtful(String),
}

/// One entry: where it is and what it must be.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The cache.
    pub(crate) cache: PathBuf,
    /// The host's fingerprint.
    pub(crate) host: String,
    /// What it was compiled of.
    pub(crate) module: Digest,
    /// This boot's id.
    pub(crate) boot: String,
}

impl Entry {
    /// The directory that it lies in.
    pub(crate) fn directory(&self) -> PathBuf {
        self.cache.join(&self.host)
    }

    /// The code.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory().join(format!("{}.cwasm", self.module.hex()))
    }

    fn seal_path(&self) -> PathBuf {
        self.directory().join(format!("{}.seal", self.module.hex()))
    }

    /// Looks at it, and reads all of it where that is needed. Blocks as long as that takes.
    ///
    /// # Errors
    /// Where the host fails; an entry that is not as it should be is none.
    pub(crate) fn standing(&self) -> io::Result<Standing> {
        self.look(true)
    }

    /// Looks at it, and reads its seal at most. Blocks for a moment.
    ///
    /// # Errors
    /// As [`Entry::standing`].
    pub(crate) fn glance(&self) -> io::Result<Standing> {
        self.look(false)
    }

    fn look(&self, read: bool) -> io::Result<Standing> {
        let doubt = |why: &str| Ok(Standing::Doubtful(why.to_owned()));
        let path = self.path();
        let mut file = match open(&path) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Standing::Missing),
            Err(Errno::LOOP) => return doubt("it is a symbolic link"),
            Err(Errno::NXIO) => return doubt("it is no regular file"),
            Err(errno) => return Err(errno.into()),
        };
        let is = file.metadata()?;
        if !is.is_file() {
            return doubt("it is no regular file");
        }
        if is.uid() != rustix::process::geteuid().as_raw() || is.mode() & 0o022 != 0 {
            return doubt("somebody else may write to it");
        }
        if is.len() == 0 {
            return doubt("it is empty");
        }
        let Some(seal) = Seal::read(&self.seal_path())? else { return doubt("it has no seal") };
        let Some(key) = Key::read(&self.cache)? else { return doubt("the key is lost") };
        let identity = identity_of(&is);
        let believed = match seal.open(&key, self) {
            Ok(believed) => believed,
            Err(why) => return doubt(why),
        };
        let code = Code { path, identity };
        if believed.file == identity && believed.boot == self.boot && !believed.is_racy() {
            return Ok(Standing::Sound(code));
        }
        // Read once more: it is another file, another boot, or too young.
        if believed.file.size != identity.size {
            return doubt("its size has changed");
        }
        if !read {
            return Ok(Standing::Unread);
        }
        let digest = digest_of(&mut file)?;
        if digest != believed.digest {
            return doubt("its bytes have changed");
        }
        if identity_of(&file.metadata()?) != identity {
            return doubt("it changes while it is read");
        }
        let renewed = Seal::of(&key, self, digest, identity);
        if !is_racy(identity, now()) {
            // The next one reads it otherwise, too.
            let _ = renewed.write(&self.seal_path(), false);
        }
        Ok(Standing::Sound(code))
    }

    /// Puts compiled code in place, whatever is there, and seals it. Blocks.
    ///
    /// # Errors
    /// Where the host fails; then there is the entry that was there before, or one in doubt.
    pub(crate) fn put(&self, mut code: File) -> io::Result<Code> {
        if code.metadata()?.len() == 0 {
            return Err(io::Error::other("the compiler wrote nothing"));
        }
        code.sync_data()?;
        let digest = digest_of(&mut code)?;
        let key = Key::make(&self.cache)?;
        let path = self.path();
        let new = temporary(&path);
        link(&code, &new)?;
        let placed = std::fs::rename(&new, &path);
        if placed.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        placed?;
        // The rename has changed it for the last time.
        let identity = identity_of(&code.metadata()?);
        Seal::of(&key, self, digest, identity).write(&self.seal_path(), true)?;
        File::open(self.directory())?.sync_all()?;
        Ok(Code { path, identity })
    }
}

/// Without following a link at its end, and without waiting for a pipe's writer.
fn open(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Gives a file without a name one.
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (here, follow) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
    Ok(rustix::fs::linkat(here, nameless, here, path, follow)?)
}

/// A name beside another that nobody else has.
fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("new.{}.{next}", std::process::id()))
}

fn identity_of(is: &std::fs::Metadata) -> CodeIdentity {
    CodeIdentity {
        device: is.dev(),
        inode: is.ino(),
        size: is.len(),
        changed: is.ctime(),
        changed_nanoseconds: is.ctime_nsec(),
    }
}

/// From the start of the file, wherever its position is.
fn digest_of(file: &mut File) -> io::Result<[u8; 32]> {
    use std::os::unix::fs::FileExt as _;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hash.finalize().into()),
            read => {
                hash.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
}

/// Nanoseconds since 1970.
fn now() -> i128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as i128)
}

fn is_racy(file: CodeIdentity, seen: i128) -> bool {
    let changed = i128::from(file.changed) * 1_000_000_000 + i128::from(file.changed_nanoseconds);
    seen < changed + RACY.as_nanos() as i128
}

/// What makes seals ours.
struct Key([u8; KEY]);

impl Key {
    fn path(cache: &Path) -> PathBuf {
        cache.join("key")
    }

    /// None where there is no key that only we can have made.
    fn read(cache: &Path) -> io::Result<Option<Self>> {
        let file = match open(&Self::path(cache)) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let is = file.metadata()?;
        let ours = is.uid() == rustix::process::geteuid().as_raw() && is.mode() & 0o077 == 0;
        if !is.is_file() || !ours || is.len() != KEY as u64 {
            return Ok(None);
        }
        let mut key = [0; KEY];
        (&file).read_exact(&mut key)?;
        Ok(Some(Self(key)))
    }

    /// The key; made where there is none.
    fn make(cache: &Path) -> io::Result<Self> {
        for _ in 0..10 {
            if let Some(key) = Self::read(cache)? {
                return Ok(key);
            }
            let mut key = [0; KEY];
            File::open("/dev/urandom")?.read_exact(&mut key)?;
            let path = Self::path(cache);
            let new = temporary(&path);
            write_new(&new, &key, true)?;
            // Two may make one at the same time: the first is it. One that is damaged goes.
            let linked = rustix::fs::link(&new, &path);
            let done = match linked {
                Err(Errno::EXIST) if Self::read(cache)?.is_none() => std::fs::rename(&new, &path),
                _ => std::fs::remove_file(&new),
            };
            done?;
        }
        Err(io::Error::other("the cache's key cannot be made"))
    }

    /// HMAC-SHA-256 (RFC 2104).
    fn mac(&self, message: &[u8]) -> [u8; 32] {
        let padded = |with: u8| {
            let mut block = [with; 64];
            block.iter_mut().zip(self.0).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
        Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
    }
}

/// A new file of ours alone.
fn write_new(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    if sync {
        file.sync_data()?;
    }
    Ok(())
}

/// A seal as it is on the disk.
struct Seal(String);

/// What a seal says, once it is known to be ours.
struct Believed {
    digest: [u8; 32],
    file: CodeIdentity,
    seen: i128,
    boot: String,
}

impl Believed {
    fn is_racy(&self) -> bool {
        is_racy(self.file, self.seen)
    }
}

impl Seal {
    fn of(key: &Key, entry: &Entry, digest: [u8; 32], file: CodeIdentity) -> Self {
        let Entry { host, module, boot, .. } = entry;
        let CodeIdentity { device, inode, size, changed, changed_nanoseconds } = file;
        let text = format!(
            "{FORMAT} {} {host} {} {device} {inode} {size} {changed} {changed_nanoseconds} {} {boot}",
            module.hex(),
            hex(&digest),
            now(),
        );
        let mac = hex(&key.mac(text.as_bytes()));
        Self(format!("{text} {mac}\n"))
    }

    /// None where there is none, or something that is none.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match open(path) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(SEAL_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8(bytes).ok().map(Self))
    }

    fn write(&self, path: &Path, sync: bool) -> io::Result<()> {
        let new = temporary(path);
        let written =
            write_new(&new, self.0.as_bytes(), sync).and_then(|()| std::fs::rename(&new, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written
    }

    /// What it says, where it is ours and speaks of this entry.
    fn open(&self, key: &Key, entry: &Entry) -> Result<Believed, &'static str> {
        let (text, mac) = self.0.trim_end().rsplit_once(' ').ok_or("its seal is damaged")?;
        let ours = hex(&key.mac(text.as_bytes()));
        if !same(ours.as_bytes(), mac.as_bytes()) {
            return Err("its seal is not ours");
        }
        let words: Vec<&str> = text.split(' ').collect();
        let [format, module, host, digest, device, inode, size, changed, nanoseconds, seen, boot] =
            words[..]
        else {
            return Err("its seal is damaged");
        };
        if format != FORMAT {
            return Err("its seal is of another version");
        }
        if module != entry.module.hex() || host != entry.host {
            return Err("it is the code of something else");
        }
        let read = || {
            Some(Believed {
                digest: *format!("sha256:{digest}").parse::<Digest>().ok()?.as_bytes(),
                file: CodeIdentity {
                    device: device.parse().ok()?,
                    inode: inode.parse().ok()?,
                    size: size.parse().ok()?,
                    changed: changed.parse().ok()?,
                    changed_nanoseconds: nanoseconds.parse().ok()?,
                },
                seen: seen.parse().ok()?,
                boot: boot.to_owned(),
            })
        };
        read().ok_or("its seal is damaged")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares without telling by the time it takes where the difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
