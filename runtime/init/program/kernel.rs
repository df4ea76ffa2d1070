//! System calls of x86_64, and the few structures they take.

use core::{arch::asm, ffi::CStr};

/// An error number.
pub type Errno = i32;
/// What a system call answers.
pub type Answer<T> = Result<T, Errno>;

pub const EPERM: Errno = 1;
pub const ENOENT: Errno = 2;
pub const EINTR: Errno = 4;
pub const EBADF: Errno = 9;
pub const EAGAIN: Errno = 11;
pub const ENOMEM: Errno = 12;
pub const EACCES: Errno = 13;
pub const EEXIST: Errno = 17;
pub const ENODEV: Errno = 19;
pub const ENOTDIR: Errno = 20;
pub const EISDIR: Errno = 21;
pub const EINVAL: Errno = 22;
pub const ENOSPC: Errno = 28;
pub const ENAMETOOLONG: Errno = 36;
pub const ENOSYS: Errno = 38;
pub const ELOOP: Errno = 40;
pub const EPROTO: Errno = 71;

pub const AT_FDCWD: i32 = -100;
pub const AT_EMPTY_PATH: usize = 0x1000;
pub const AT_RECURSIVE: usize = 0x8000;
pub const O_WRONLY: u64 = 1;
pub const O_RDWR: u64 = 2;
pub const O_CREAT: u64 = 0o100;
pub const O_EXCL: u64 = 0o200;
pub const O_NOCTTY: u64 = 0o400;
pub const O_DIRECTORY: u64 = 0o200000;
pub const O_NOFOLLOW: u64 = 0o400000;
pub const O_CLOEXEC: u64 = 0o2000000;
pub const O_PATH: u64 = 0o10000000;
pub const RESOLVE_NO_XDEV: u64 = 1;
pub const RESOLVE_NO_MAGICLINKS: u64 = 2;
pub const RESOLVE_NO_SYMLINKS: u64 = 4;
pub const RESOLVE_BENEATH: u64 = 8;
pub const RESOLVE_IN_ROOT: u64 = 16;
/// The filesystem of processes, and that of pseudo terminals (statfs(2)).
pub const PROC_MAGIC: u64 = 0x9fa0;
pub const DEVPTS_MAGIC: u64 = 0x1cd1;
pub const S_IFMT: u32 = 0o170000;
pub const S_IFCHR: u32 = 0o020000;
pub const S_IFIFO: u32 = 0o010000;
pub const S_IFDIR: u32 = 0o040000;
pub const S_IFREG: u32 = 0o100000;
pub const S_IFLNK: u32 = 0o120000;

/// One system call of up to six arguments.
///
/// # Safety
/// Pointers among the arguments must be what the kernel expects of `number`.
#[inline(always)]
pub unsafe fn call(number: usize, arguments: [usize; 6]) -> Answer<usize> {
    let result: isize;
    let [a, b, c, d, e, f] = arguments;
    // JUSTIFICATION: there is no libc here.
    // SAFETY: the syscall instruction clobbers rcx and r11 only; memory is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&result) { Err(-result as Errno) } else { Ok(result as usize) }
}

/// A system call by its name; missing arguments are zero.
macro_rules! sys {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        let given = [$($argument as usize),*];
        let mut arguments = [0usize; 6];
        arguments[..given.len()].copy_from_slice(&given);
        // JUSTIFICATION: every act of this program is a system call.
        // SAFETY: each caller passes what the manual page of the call asks for: numbers, zero
        // terminated strings, and structures that live on its stack.
        unsafe { $crate::kernel::call($number, arguments) }
    }};
}
pub(crate) use sys;

pub const READ: usize = 0;
pub const WRITE: usize = 1;
pub const CLOSE: usize = 3;
pub const FSTAT: usize = 5;
pub const MMAP: usize = 9;
pub const RT_SIGACTION: usize = 13;
pub const RT_SIGPROCMASK: usize = 14;
pub const IOCTL: usize = 16;
pub const DUP3: usize = 292;
pub const GETPID: usize = 39;
pub const SOCKET: usize = 41;
pub const ACCEPT4: usize = 288;
pub const CHROOT: usize = 161;
pub const IOPRIO_SET: usize = 251;
pub const SCHED_SETATTR: usize = 314;
pub const SENDMSG: usize = 46;
pub const RECVMSG: usize = 47;
pub const GETSOCKOPT: usize = 55;
pub const CLONE: usize = 56;
pub const EXECVE: usize = 59;
pub const WAIT4: usize = 61;
pub const KILL: usize = 62;
pub const FCNTL: usize = 72;
pub const GETCWD: usize = 79;
pub const FCHDIR: usize = 81;
pub const FCHOWN: usize = 93;
pub const UMASK: usize = 95;
pub const SETPGID: usize = 109;
pub const SETSID: usize = 112;
pub const SETGROUPS: usize = 116;
pub const SETRESUID: usize = 117;
pub const SETRESGID: usize = 119;
pub const SETFSUID: usize = 122;
pub const CAPSET: usize = 126;
pub const FSETXATTR: usize = 190;
pub const RT_SIGTIMEDWAIT: usize = 128;
pub const PERSONALITY: usize = 135;
pub const FSTATFS: usize = 138;
pub const PIVOT_ROOT: usize = 155;
pub const PRCTL: usize = 157;
pub const MOUNT: usize = 165;
pub const UMOUNT2: usize = 166;
pub const SETHOSTNAME: usize = 170;
pub const SETDOMAINNAME: usize = 171;
pub const EXIT_GROUP: usize = 231;
pub const KEYCTL: usize = 250;
pub const MKDIRAT: usize = 258;
pub const MKNODAT: usize = 259;
pub const FCHOWNAT: usize = 260;
pub const NEWFSTATAT: usize = 262;
pub const SYMLINKAT: usize = 266;
pub const READLINKAT: usize = 267;
pub const SET_MEMPOLICY: usize = 238;
pub const PRLIMIT64: usize = 302;
pub const UNSHARE: usize = 272;
pub const SETNS: usize = 308;
pub const SECCOMP: usize = 317;
pub const EXECVEAT: usize = 322;
pub const OPEN_TREE: usize = 428;
pub const MOVE_MOUNT: usize = 429;
pub const FSOPEN: usize = 430;
pub const FSCONFIG: usize = 431;
pub const FSMOUNT: usize = 432;
pub const CLOSE_RANGE: usize = 436;
pub const OPENAT2: usize = 437;
pub const STATX: usize = 332;
pub const MOUNT_SETATTR: usize = 442;

/// `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// `struct stat`.
#[repr(C)]
#[derive(Default)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    _pad: u32,
    pub rdev: u64,
    _rest: [u64; 12],
}

/// What is wanted of `struct statx` (statx(2)), in words of eight bytes: the inode's number and,
/// since Linux 5.8, that of the mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub ino: u64,
    pub mount: u64,
}

impl Place {
    pub fn of(fd: i32) -> Answer<Self> {
        const WANTED: usize = 0x100 /* STATX_INO */ | 0x1000 /* STATX_MNT_ID */;
        let mut words = [0u64; 32];
        sys!(STATX, fd, c"".as_ptr(), AT_EMPTY_PATH, WANTED, words.as_mut_ptr())?;
        Ok(Self { ino: words[4], mount: words[18] })
    }
}

/// The magic number of the filesystem that a file lies on (statfs(2)).
pub fn filesystem(fd: i32) -> Answer<u64> {
    let mut statfs = [0u64; 15];
    sys!(FSTATFS, fd, statfs.as_mut_ptr())?;
    Ok(statfs[0])
}

/// openat2. A name that is being renamed while it is looked up makes the kernel
/// answer EAGAIN: it is tried again, but not forever.
pub fn open(at: i32, path: &CStr, flags: u64, mode: u32, resolve: u64) -> Answer<i32> {
    let how = OpenHow { flags: flags | O_CLOEXEC, mode: u64::from(mode), resolve };
    // As many tries as `knarr_sys::TRIES`.
    for _ in 0..10_000 {
        match sys!(OPENAT2, at, path.as_ptr(), &raw const how, size_of::<OpenHow>()) {
            Err(EAGAIN | EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(fd) => return Ok(fd as i32),
        }
    }
    Err(EAGAIN)
}

pub fn close(fd: i32) {
    let _ = sys!(CLOSE, fd);
}

pub fn fstat(fd: i32) -> Answer<Stat> {
    let mut stat = Stat::default();
    sys!(FSTAT, fd, &raw mut stat)?;
    Ok(stat)
}

/// Follows symbolic links, as execve does.
pub fn stat(path: &CStr) -> Answer<Stat> {
    let mut stat = Stat::default();
    sys!(NEWFSTATAT, AT_FDCWD, path.as_ptr(), &raw mut stat, 0)?;
    Ok(stat)
}

pub fn mount_setattr(fd: i32, path: &CStr, flags: usize, set: u64, propagation: u64) -> Answer<()> {
    mount_change(fd, path, flags, (set, 0), propagation)
}

/// The same with attributes to clear.
pub fn mount_change(
    fd: i32,
    path: &CStr,
    flags: usize,
    (set, clear): (u64, u64),
    propagation: u64,
) -> Answer<()> {
    let attr = MountAttr { set, clear, propagation, userns: 0 };
    sys!(MOUNT_SETATTR, fd, path.as_ptr(), flags, &raw const attr, size_of::<MountAttr>())?;
    Ok(())
}

/// A copy of the mount behind a descriptor, detached.
pub fn clone_mount(fd: i32, recursive: bool) -> Answer<i32> {
    let deep = if recursive { AT_RECURSIVE } else { 0 };
    let flags = 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC as usize | AT_EMPTY_PATH | deep;
    Ok(sys!(OPEN_TREE, fd, c"".as_ptr(), flags)? as i32)
}

/// Puts the mount behind one descriptor on the place behind the other.
pub fn move_mount(from: i32, to: i32) -> Answer<()> {
    let flags = 0x4 /* F_EMPTY_PATH */ | 0x40 /* T_EMPTY_PATH */;
    sys!(MOVE_MOUNT, from, c"".as_ptr(), to, c"".as_ptr(), flags)?;
    Ok(())
}

/// A new filesystem as a detached mount; options are `name=value` or `name`.
pub fn new_mount<'a>(
    kind: &CStr,
    options: impl Iterator<Item = &'a CStr>,
    attributes: u64,
) -> Answer<i32> {
    const SET_FLAG: usize = 0;
    const SET_STRING: usize = 1;
    const CREATE: usize = 6;
    let context = sys!(FSOPEN, kind.as_ptr(), 1 /* FSOPEN_CLOEXEC */)? as i32;
    for option in options {
        let bytes = option.to_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            None => sys!(FSCONFIG, context, SET_FLAG, option.as_ptr(), 0, 0)?,
            Some(at) => {
                let mut name = [0u8; 64];
                name.get_mut(..at).ok_or(ENAMETOOLONG)?.copy_from_slice(&bytes[..at]);
                if at == name.len() {
                    return Err(ENAMETOOLONG);
                }
                let value = option.to_bytes_with_nul()[at + 1..].as_ptr();
                sys!(FSCONFIG, context, SET_STRING, name.as_ptr(), value, 0)?
            }
        };
    }
    sys!(FSCONFIG, context, CREATE, 0, 0, 0)?;
    let mount = sys!(FSMOUNT, context, 1 /* FSMOUNT_CLOEXEC */, attributes)? as i32;
    close(context);
    Ok(mount)
}

/// Zeroed memory of our own.
pub fn memory(bytes: usize) -> Answer<&'static mut [u8]> {
    let address = sys!(
        MMAP,
        0,
        bytes.max(1),
        3,    /* READ|WRITE */
        0x22, /* PRIVATE|ANONYMOUS */
        -1isize,
        0
    )?;
    // JUSTIFICATION: the only allocator is mmap.
    // SAFETY: the kernel gave us these bytes, zeroed; nobody else has them and they are never unmapped.
    Ok(unsafe { core::slice::from_raw_parts_mut(address as *mut u8, bytes) })
}

pub fn exit(code: i32) -> ! {
    loop {
        let _ = sys!(EXIT_GROUP, code);
    }
}
