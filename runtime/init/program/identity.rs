//! Who the program runs as.

use core::ffi::CStr;

use crate::{kernel::*, wire::List};

const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
const PR_SET_KEEPCAPS: usize = 8;
const PR_CAPBSET_READ: usize = 23;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;

/// Nobody in the container may look at this process or take its descriptors until it has
/// become the container's own program (execve makes it dumpable).
pub fn hide() {
    let _ = sys!(PRCTL, PR_SET_DUMPABLE, 0);
}

/// Drops all capabilities but these from the bounding set, also those of
/// kernels newer than this program.
pub fn bounding(keep: u64) -> Answer<()> {
    for capability in 0..64 {
        if keep & 1 << capability != 0 {
            continue;
        }
        match sys!(PRCTL, PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            // Past the last one, unless the kernel knows it and refuses.
            Err(EINVAL) if sys!(PRCTL, PR_CAPBSET_READ, capability).is_err() => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub fn become_user(uid: u32, gid: u32) -> Answer<()> {
    sys!(PRCTL, PR_SET_KEEPCAPS, 1)?;
    sys!(SETRESGID, gid, gid, gid)?;
    sys!(SETRESUID, uid, uid, uid)?;
    sys!(PRCTL, PR_SET_KEEPCAPS, 0)?;
    Ok(())
}

/// See [`crate::wire::Op::OwnUsers`].
///
/// The maps are written by ourselves: the kernel lets a process without privileges outside
/// map the one user that made the namespace, and the group that it has.
pub fn own_users(proc: i32, uid: u32, gid: u32) -> Answer<()> {
    const CLONE_NEWUSER: usize = 0x1000_0000;
    const SAME: u32 = u32::MAX;
    sys!(SETRESGID, gid, gid, gid)?;
    sys!(SETRESUID, SAME, uid, SAME)?;
    // We stay hidden, so that our files in procfs are root's: as such we open them.
    hide();
    let _ = sys!(SETFSUID, 0);
    match sys!(UNSHARE, CLONE_NEWUSER) {
        Ok(_) => {
            write_at(proc, c"self/setgroups", b"deny")?;
            let mut line = [0u8; 24];
            write_at(proc, c"self/gid_map", same(gid, &mut line))?;
            write_at(proc, c"self/uid_map", same(uid, &mut line))?;
            few_threads()?;
        }
        // None are built in; none are left for anybody; a rule of the host's.
        Err(EINVAL | ENOSPC | EPERM | EACCES) => {
            sys!(SETRESUID, SAME, 0, SAME)?;
            return Ok(());
        }
        Err(errno) => return Err(errno),
    }
    sys!(SETRESUID, uid, uid, uid)?;
    Ok(())
}

/// `id id 1`: a map of one.
fn same(id: u32, line: &mut [u8; 24]) -> &[u8] {
    let mut digits = [0u8; 10];
    let (mut first, mut rest) = (digits.len(), id);
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let mut at = 0;
    for part in [&digits[first..], b" ", &digits[first..], b" 1"] {
        line[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    &line[..at]
}

/// Threads of a user are counted for each user namespace: here all of them are ours.
fn few_threads() -> Answer<()> {
    const RLIMIT_NPROC: usize = 6;
    const MOST: u64 = 1024;
    let mut limit = [0u64; 2];
    sys!(PRLIMIT64, 0, RLIMIT_NPROC, 0, limit.as_mut_ptr())?;
    let limit = limit.map(|limit| if limit < MOST { limit } else { MOST });
    sys!(PRLIMIT64, 0, RLIMIT_NPROC, limit.as_ptr(), 0)?;
    Ok(())
}

fn write_at(directory: i32, path: &CStr, value: &[u8]) -> Answer<()> {
    // `self` is a link of procfs's own, which leads into it.
    let fd = open(directory, path, O_WRONLY, 0, RESOLVE_BENEATH)?;
    let count = sys!(WRITE, fd, value.as_ptr(), value.len())?;
    close(fd);
    if count == value.len() { Ok(()) } else { Err(EINVAL) }
}

/// The shim is the container's only witness: without it, no container.
pub fn die_with_parent() -> Answer<()> {
    sys!(PRCTL, PR_SET_PDEATHSIG, 9)?;
    Ok(())
}

/// As runc does (`fixStdioPermissions`), but for pipes only: they are ours.
pub fn own_streams(uid: u32) -> Answer<()> {
    for stream in 0..3 {
        if fstat(stream).is_ok_and(|stat| stat.mode & S_IFMT == S_IFIFO) {
            match sys!(FCHOWN, stream, uid, u32::MAX) {
                // Its owner has no number in our user namespace.
                Ok(_) | Err(EPERM | EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

pub fn capabilities(effective: u64, permitted: u64, inheritable: u64) -> Answer<()> {
    let header = [0x2008_0522u32 /* _LINUX_CAPABILITY_VERSION_3 */, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        low(effective),
        low(permitted),
        low(inheritable),
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    sys!(CAPSET, header.as_ptr(), data.as_ptr())?;
    Ok(())
}

pub fn ambient(set: u64) -> Answer<()> {
    for capability in (0..64).filter(|bit| set & 1 << bit != 0) {
        sys!(PRCTL, PR_CAP_AMBIENT, 2 /* RAISE */, capability, 0, 0)?;
    }
    Ok(())
}

pub fn no_new_privs() -> Answer<()> {
    sys!(PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    Ok(())
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const u8,
}

pub fn seccomp(flags: u32, filter: &[u8]) -> Answer<()> {
    let len = u16::try_from(filter.len() / 8).map_err(|_| EINVAL)?;
    let program = Program { len, filter: filter.as_ptr() };
    sys!(SECCOMP, 1 /* SET_MODE_FILTER */, flags, &raw const program)?;
    Ok(())
}

/// The same with a listener for its notifications: the descriptor.
pub fn seccomp_listener(flags: u32, filter: &[u8]) -> Answer<i32> {
    let len = u16::try_from(filter.len() / 8).map_err(|_| EINVAL)?;
    let program = Program { len, filter: filter.as_ptr() };
    let flags = flags | 8 /* SECCOMP_FILTER_FLAG_NEW_LISTENER */;
    Ok(sys!(SECCOMP, 1 /* SET_MODE_FILTER */, flags, &raw const program)? as i32)
}

/// Writes to a file of the host, while there is one.
pub fn write(path: &CStr, value: &[u8]) -> Answer<()> {
    let fd = open(AT_FDCWD, path, O_WRONLY, 0, 0)?;
    let count = sys!(WRITE, fd, value.as_ptr(), value.len())?;
    close(fd);
    if count == value.len() { Ok(()) } else { Err(EINVAL) }
}

/// Of ourselves, in the procfs that the host has at its usual place.
pub fn attribute(names: List<'_>, value: &[u8]) -> Answer<()> {
    const PROC_ROOT: u64 = 1;
    let proc = open(AT_FDCWD, c"/proc", O_PATH | O_DIRECTORY, 0, 0)?;
    if filesystem(proc)? != PROC_MAGIC || fstat(proc)?.ino != PROC_ROOT {
        return Err(ENODEV);
    }
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS;
    let attributes = open(proc, c"thread-self/attr", O_PATH | O_DIRECTORY, 0, resolve)?;
    close(proc);
    // A kernel without security modules keeps no attributes.
    let mut file = Err(EINVAL);
    for name in names.iter() {
        match open(attributes, name, O_WRONLY, 0, resolve) {
            Err(ENOENT) => {}
            other => {
                file = other;
                break;
            }
        }
    }
    let file = file?;
    let count = sys!(WRITE, file, value.as_ptr(), value.len())?;
    close(file);
    close(attributes);
    if count == value.len() { Ok(()) } else { Err(EINVAL) }
}

pub fn keyring(name: &CStr) -> Answer<()> {
    match sys!(KEYCTL, 1 /* JOIN_SESSION_KEYRING */, name.as_ptr()) {
        // A kernel without keyrings has none to share.
        Ok(_) | Err(ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub fn loopback() -> Answer<()> {
    /// `struct ifreq` with flags.
    #[repr(C)]
    struct IfReq {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut request =
        IfReq { name: [0; 16], flags: 0x1 | 0x40 /* UP | RUNNING */, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let socket =
        sys!(SOCKET, 2 /* AF_INET */, 2 | O_CLOEXEC as usize /* SOCK_DGRAM */, 0)? as i32;
    sys!(IOCTL, socket, 0x8914 /* SIOCSIFFLAGS */, &raw const request)?;
    close(socket);
    Ok(())
}
