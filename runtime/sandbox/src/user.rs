//! `user[:group]` to numbers, in the container's own `passwd` and `group`.
//!
//! These files are the image's, so they are read as an enemy's: beneath the
//! root, only if regular, never blocking, at most 4 MiB, and lines that are not
//! well formed are skipped. A number is a number and never a name
//! (CVE-2026-46680), and larger ones than the kernel has are refused rather than
//! wrapped (CVE-2024-40635).

use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
};

use knarr_sys::Found;
use rustix::io::Errno;

use crate::{Error, Failure, plan::Identity};

const LIMIT: u64 = 4 << 20;
/// The kernel takes at most 65536 supplementary groups.
const MAX_GROUPS: usize = 65_536;

/// A user as numbers, for callers outside of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Groups of `/etc/group` that name the user, and the primary one.
    pub groups: Vec<u32>,
    /// Home directory of `/etc/passwd`.
    pub home: Option<String>,
}

/// Resolves Docker's `user[:group]` beneath a root directory.
pub fn resolve_user(root: BorrowedFd<'_>, user: &str) -> Result<ResolvedUser, Error> {
    let identity = resolve(root, user, &[])?;
    Ok(ResolvedUser {
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups.unwrap_or_default(),
        home: identity.home,
    })
}

/// The same with further groups as numbers.
pub(crate) fn resolve(
    root: BorrowedFd<'_>,
    user: &str,
    additional: &[u32],
) -> Result<Identity, Error> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let wanted = Name::parse(if name.is_empty() { "0" } else { name })?;
    let entry = read(root, "etc/passwd")?.lines().find_map(|line| passwd(line, &wanted));
    let (uid, entry) = match (wanted, entry) {
        (Name::Number(uid), entry) => (uid, entry),
        (Name::Text(_), Some(entry)) => (entry.uid, Some(entry)),
        (Name::Text(name), None) => {
            // Docker's words.
            let text = format!("unable to find user {name}: no matching entries in passwd file");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
    };
    let group = group.map(Name::parse).transpose()?;
    let text = read(root, "etc/group")?;
    let gid = match &group {
        Some(Name::Number(gid)) => *gid,
        Some(Name::Text(name)) => self::group(&text, name)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    // An explicit group replaces those of the group file (runc's user package).
    if let (None, Some(entry)) = (&group, &entry) {
        let of_user = text
            .lines()
            .filter_map(group_line)
            .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name));
        groups.extend(of_user.map(|(_, gid, _)| gid));
    }
    groups.extend(additional);
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(MAX_GROUPS);
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups: Some(groups), home })
}

/// The numbers of groups by their names.
pub(crate) fn groups(root: BorrowedFd<'_>, names: &[String]) -> Result<Vec<u32>, Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let text = read(root, "etc/group")?;
    names.iter().map(|name| group(&text, name)).collect()
}

fn group(text: &str, name: &str) -> Result<u32, Error> {
    let found = text.lines().filter_map(group_line).find(|(known, ..)| *known == name);
    found.map(|(_, gid, _)| gid).ok_or_else(|| {
        // Docker's words.
        let text = format!("unable to find group {name}: no matching entries in group file");
        Error::new(Failure::InvalidSpec, text)
    })
}

/// Numbers as they are, with the home that the container's files have for them.
pub(crate) fn numeric(
    root: Option<BorrowedFd<'_>>,
    uid: u32,
    gid: u32,
    additional: &[u32],
) -> Result<Identity, Error> {
    check(u64::from(uid), "user")?;
    check(u64::from(gid), "group")?;
    let mut groups = vec![gid];
    groups.extend(additional);
    groups.sort_unstable();
    groups.dedup();
    // A root that cannot be read costs the home directory only.
    let home = root.and_then(|root| {
        let text = read(root, "etc/passwd").ok()?;
        let entry = text.lines().find_map(|line| passwd(line, &Name::Number(uid)))?;
        Some(entry.home).filter(|home| home.starts_with('/'))
    });
    Ok(Identity { uid, gid, groups: Some(groups), home })
}

enum Name<'a> {
    Number(u32),
    Text(&'a str),
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        let bad = |why: &str| {
            let shown: String = text.chars().take(64).collect();
            Error::new(Failure::InvalidSpec, format!("user or group {shown:?} {why}"))
        };
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            if digits.len() != text.len() {
                return Err(bad("has a sign"));
            }
            let number = text.parse::<u64>().map_err(|_| bad("is out of range"))?;
            return check(number, "user or group").map(Self::Number);
        }
        if text.len() > 256 || text.contains([',', '\n', '\0', '/', ' ', ':']) {
            return Err(bad("is no name"));
        }
        Ok(Self::Text(text))
    }
}

/// Docker takes 0 to 2³¹−1; more would wrap in somebody's hands.
fn check(number: u64, what: &str) -> Result<u32, Error> {
    u32::try_from(number).ok().filter(|number| *number <= i32::MAX as u32).ok_or_else(|| {
        // Docker's words.
        let text = format!("{what} id {number}: uids and gids must be in range 0-2147483647");
        Error::new(Failure::InvalidSpec, text)
    })
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number <= i32::MAX as u32)
}

fn passwd(line: &str, wanted: &Name<'_>) -> Option<Passwd> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let _password = fields.next()?;
    let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
    let matches = match wanted {
        Name::Number(wanted) => *wanted == uid,
        Name::Text(wanted) => *wanted == name,
    };
    let home = fields.nth(1).unwrap_or_default();
    // It becomes an environment entry.
    let home = if home.contains('\0') { "" } else { home };
    matches.then(|| Passwd { name: name.to_owned(), uid, gid, home: home.to_owned() })
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let gid = number(fields.next()?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

/// A file of the image; nothing where it has none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, Error> {
    let refused =
        |why: String| Error::new(Failure::InvalidSpec, format!("/{path} of the container {why}"));
    let file = match knarr_sys::open_file(root, path) {
        Ok(Found::Regular(file)) => file,
        Ok(Found::Other(_)) => return Err(refused("is not a regular file".to_owned())),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(refused(format!("cannot be opened: {errno}"))),
    };
    let mut bytes = Vec::new();
    let mut file = file.take(LIMIT + 1);
    file.read_to_end(&mut bytes)
        .map_err(|error: io::Error| refused(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LIMIT {
        return Err(refused("is larger than 4 MiB".to_owned()));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::{fd::AsFd, unix::fs::symlink},
        path::Path,
    };

    use rustix::fs::FileType;

    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# comment:x:1:1::/:
broken line
1001:x:0:0::/evil:/bin/sh
wrap:x:4294967296:0::/:
neg:x:-1:0::/:
user:x:1000:1000:U:/home/user:/bin/sh
nohome:x:1002:1002
odd:x:1003:1003::relative:/bin/sh
";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:user,other\nuser:x:1000:\naudio:x:29:user\nbad:x:y:user\n";

    fn root(dir: &Path) -> File {
        File::open(dir).expect("root")
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("etc")).expect("etc");
        fs::write(dir.path().join("etc/passwd"), PASSWD).expect("passwd");
        fs::write(dir.path().join("etc/group"), GROUP).expect("group");
        dir
    }

    #[test]
    fn r15_users_and_their_groups_are_found() {
        let dir = tree();
        let root = root(dir.path());
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, &[0][..], Some("/root")),
            ("0", 0, 0, &[0], Some("/root")),
            ("user", 1000, 1000, &[29, 50, 1000], Some("/home/user")),
            ("1000", 1000, 1000, &[29, 50, 1000], Some("/home/user")),
            ("user:staff", 1000, 50, &[50], Some("/home/user")),
            ("user:7", 1000, 7, &[7], Some("/home/user")),
            ("4242", 4242, 0, &[0], None),
            ("4242:4243", 4242, 4243, &[4243], None),
            ("nohome", 1002, 1002, &[1002], None),
            ("odd", 1003, 1003, &[1003], None),
            // A number is not the name in passwd that looks like it.
            ("1001", 1001, 0, &[0], None),
        ] {
            let found = resolve_user(root.as_fd(), text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((found.uid, found.gid), (uid, gid), "{text}");
            assert_eq!(found.groups, groups, "{text}");
            assert_eq!(found.home.as_deref(), home, "{text}");
        }
    }

    #[test]
    fn r16_users_that_wrap_or_lie_are_refused() {
        let dir = tree();
        let root = root(dir.path());
        for bad in [
            "4294967296",
            "4294967295",
            "-1",
            "+1",
            "2147483648",
            "99999999999999999999",
            "wrap",
            "neg",
            "nobody",
            "user:nope",
            "user:4294967296",
            "a b",
            "a/b",
            "user:a:b",
            "x\n",
            "x\0",
        ] {
            assert!(resolve_user(root.as_fd(), bad).is_err(), "{bad:?}");
        }
        assert!(numeric(None, u32::MAX, 0, &[]).is_err());
    }

    #[test]
    fn r16_hostile_files_neither_block_nor_grow() {
        let dir = tree();
        let root = root(dir.path());
        let passwd = dir.path().join("etc/passwd");
        let secret = tempfile::NamedTempFile::new().expect("secret");
        fs::write(secret.path(), "leak:x:7:7::/:\n").expect("secret");
        let started = std::time::Instant::now();
        let refuse = |name: &str| {
            let error = resolve_user(root.as_fd(), "leak").expect_err(name);
            assert_eq!(error.failure(), Failure::InvalidSpec, "{name}: {error}");
        };
        fs::remove_file(&passwd).expect("remove");
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, 0o666.into(), 0)
            .expect("fifo");
        refuse("fifo");
        for target in
            ["/dev/zero", "/proc/self/mem", secret.path().to_str().expect("utf8"), "passwd"]
        {
            fs::remove_file(&passwd).expect("remove");
            symlink(target, &passwd).expect("link");
            refuse(target);
        }
        fs::remove_file(&passwd).expect("remove");
        let file = File::create(&passwd).expect("sparse");
        file.set_len(1 << 30).expect("sparse");
        refuse("a gigabyte");
        assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
        // Beneath the root a link is fine.
        fs::remove_file(&passwd).expect("remove");
        fs::write(dir.path().join("real"), "leak:x:7:7::/:\n").expect("real");
        symlink("/real", &passwd).expect("link");
        assert_eq!(resolve_user(root.as_fd(), "leak").expect("link beneath").uid, 7);
    }
}
