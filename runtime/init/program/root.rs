//! Making the root filesystem: everything beneath a descriptor of the new root,
//! so that no link of the image and no race of a neighbour leads out of it.

use core::ffi::CStr;

use crate::{kernel::*, wire::COVERS};

const IN_ROOT: u64 = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
const MAX_PATH: usize = 4096;
const MS_REMOUNT: u64 = 32;
/// Links one behind the other, each to nothing.
const MAX_LINKS: u32 = 10;

/// Filesystems of the kernel, and where alone something may be mounted over what they show.
const KERNELS: [(u64, &[u8]); 5] = [
    (PROC_MAGIC, b"/proc"),
    (0x6265_6572 /* SYSFS_MAGIC */, b"/sys"),
    (0x27_e0eb /* CGROUP_SUPER_MAGIC */, b"/sys"),
    (0x6367_7270 /* CGROUP2_SUPER_MAGIC */, b"/sys"),
    (DEVPTS_MAGIC, b"/dev"),
];
/// The same for mounts that are of no filesystem that only they are of.
const OWN: [(&CStr, &[u8]); 2] = [(c"/dev", b"/dev"), (c"/sys/fs/cgroup", b"/sys")];

/// The new root and what is kept at hand while it is made.
pub struct Root {
    /// The root mount, or where we are before there is one.
    pub fd: i32,
    /// A directory that paths begin at instead.
    within: i32,
    /// A verified null device.
    null: Cover,
    /// Our procfs, free of other mounts as long as sysctls are written.
    pub proc: i32,
    /// An empty read-only filesystem.
    empty: Cover,
}

/// What masked paths are covered with.
struct Cover {
    mount: i32,
    /// It lies somewhere already; before Linux 6.15 only such mounts are copied.
    used: bool,
}

impl Cover {
    const NONE: Self = Self { mount: -1, used: false };

    fn put_on(&mut self, place: i32) -> Answer<()> {
        if !self.used {
            move_mount(self.mount, place)?;
            self.used = true;
            return Ok(());
        }
        let copy = clone_mount(self.mount, false)?;
        move_mount(copy, place)?;
        close(copy);
        Ok(())
    }
}

impl Root {
    pub fn new() -> Self {
        Self { fd: -1, within: -1, null: Cover::NONE, proc: -1, empty: Cover::NONE }
    }

    /// Masks are made no longer.
    pub fn close_covers(&mut self) {
        for cover in [&mut self.null, &mut self.empty] {
            if cover.mount >= 0 {
                close(cover.mount);
                *cover = Cover::NONE;
            }
        }
    }

    /// Where paths begin, and links end: at this directory, or for an empty path at the root.
    pub fn within(&mut self, path: &CStr) -> Answer<()> {
        if self.within >= 0 {
            close(self.within);
            self.within = -1;
        }
        if !path.is_empty() {
            let resolve = IN_ROOT | RESOLVE_NO_SYMLINKS;
            self.within = open(self.fd()?, path, O_PATH | O_DIRECTORY, 0, resolve)?;
        }
        Ok(())
    }

    /// The root; opened where the process has joined a namespace that has one.
    fn fd(&mut self) -> Answer<i32> {
        if self.within >= 0 {
            return Ok(self.within);
        }
        if self.fd < 0 {
            self.fd = open(AT_FDCWD, c"/", O_PATH | O_DIRECTORY, 0, 0)?;
        }
        Ok(self.fd)
    }

    pub fn open(&mut self, path: &CStr, flags: u64) -> Answer<i32> {
        open(self.fd()?, path, flags, 0, IN_ROOT)
    }

    /// Opens a directory and makes what is missing of it, also behind links that
    /// lead to nothing yet.
    pub fn directory(&mut self, path: &CStr) -> Answer<i32> {
        self.make_directory(path, MAX_LINKS)
    }

    fn make_directory(&mut self, path: &CStr, links: u32) -> Answer<i32> {
        match self.open(path, O_PATH | O_DIRECTORY) {
            Err(ENOENT) => {}
            other => return other,
        }
        let bytes = path.to_bytes();
        let mut prefix = [0u8; MAX_PATH];
        prefix.get_mut(..=bytes.len()).ok_or(ENAMETOOLONG)?[..bytes.len()].copy_from_slice(bytes);
        // Mostly only the last name is missing, so what is there is looked for from the end.
        let mut end = bytes.len();
        let mut parent = loop {
            end = bytes[..end].iter().rposition(|byte| *byte == b'/').ok_or(EINVAL)?;
            prefix[end] = 0;
            let upper = if end == 0 { c"/" } else { until_nul(&prefix)? };
            match self.open(upper, O_PATH | O_DIRECTORY) {
                Err(ENOENT) if end > 0 => {}
                other => break other?,
            }
        };
        // From here on each name is made and opened again through the root.
        while end < bytes.len() {
            prefix[end] = b'/';
            let name = until_nul(&prefix[end + 1..])?;
            match sys!(MKDIRAT, parent, name.as_ptr(), 0o755) {
                Ok(_) | Err(EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            close(parent);
            parent = match self.open(until_nul(&prefix)?, O_PATH | O_DIRECTORY) {
                Err(ENOENT) if links > 0 => {
                    let done = until_nul(&prefix)?.to_bytes().len();
                    let mut aim = [0u8; MAX_PATH];
                    self.follow(until_nul(&prefix)?, &bytes[done..], &mut aim)?;
                    return self.make_directory(until_nul(&aim)?, links - 1);
                }
                other => other?,
            };
            end += 1 + name.to_bytes().len();
        }
        Ok(parent)
    }

    /// The path that a link leads to, with what follows behind it.
    fn follow(&mut self, link: &CStr, rest: &[u8], aim: &mut [u8; MAX_PATH]) -> Answer<()> {
        let fd = self.open(link, O_PATH | O_NOFOLLOW)?;
        let mut target = [0u8; MAX_PATH];
        let read = sys!(READLINKAT, fd, c"".as_ptr(), target.as_mut_ptr(), target.len());
        close(fd);
        // Not a link: it has gone meanwhile.
        let target = target.get(..read.map_err(|_| ENOENT)?).ok_or(ENAMETOOLONG)?;
        let bytes = link.to_bytes();
        let slash = bytes.iter().rposition(|byte| *byte == b'/').ok_or(EINVAL)?;
        // A relative one begins in the directory that it lies in.
        let before = if target.first() == Some(&b'/') { &[][..] } else { &bytes[..=slash] };
        let mut at = 0;
        for part in [before, target, rest] {
            aim.get_mut(at..at + part.len()).ok_or(ENAMETOOLONG)?.copy_from_slice(part);
            at += part.len();
        }
        *aim.get_mut(at).ok_or(ENAMETOOLONG)? = 0;
        Ok(())
    }

    /// The directory that a path lies in, made if missing, and its last name.
    fn parent<'p>(&mut self, path: &'p CStr) -> Answer<(i32, &'p CStr)> {
        let bytes = path.to_bytes_with_nul();
        let slash = bytes.iter().rposition(|byte| *byte == b'/').ok_or(EINVAL)?;
        let name = CStr::from_bytes_with_nul(&bytes[slash + 1..]).map_err(|_| EINVAL)?;
        if matches!(name.to_bytes(), b"" | b"." | b"..") {
            return Err(EINVAL);
        }
        let mut buffer = [0u8; MAX_PATH];
        buffer.get_mut(..slash).ok_or(ENAMETOOLONG)?.copy_from_slice(&bytes[..slash]);
        if slash == 0 {
            buffer[0] = b'/';
        }
        Ok((self.directory(until_nul(&buffer)?)?, name))
    }

    /// The file at a path, made if missing.
    fn file(&mut self, path: &CStr) -> Answer<i32> {
        self.make_file(path, MAX_LINKS)
    }

    fn make_file(&mut self, path: &CStr, links: u32) -> Answer<i32> {
        match self.open(path, O_PATH) {
            Err(ENOENT) => {}
            other => return other,
        }
        let (parent, name) = self.parent(path)?;
        let flags = O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY;
        match open(parent, name, flags, 0o755, 0) {
            Ok(fd) => close(fd),
            Err(EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        close(parent);
        match self.open(path, O_PATH) {
            Err(ENOENT) if links > 0 => {
                let mut aim = [0u8; MAX_PATH];
                self.follow(path, b"", &mut aim)?;
                self.make_file(until_nul(&aim)?, links - 1)
            }
            other => other,
        }
    }

    /// Makes a detached mount the root of our namespace.
    pub fn enter(&mut self, mount: i32) -> Answer<()> {
        // On top of the old root, so that no directory of the host is needed.
        self.place(mount, c"")?;
        self.pivot()
    }

    /// Puts a detached mount on a path of the host, and works beneath it.
    pub fn place(&mut self, mount: i32, target: &CStr) -> Answer<()> {
        let target = if target.is_empty() { c"/" } else { target };
        let here = open(AT_FDCWD, target, O_PATH | O_DIRECTORY, 0, 0)?;
        move_mount(mount, here)?;
        close(here);
        self.fd = mount;
        Ok(())
    }

    /// Makes what was placed the root of our namespace.
    pub fn pivot(&mut self) -> Answer<()> {
        let mount = self.fd;
        sys!(FCHDIR, mount)?;
        sys!(PIVOT_ROOT, c".".as_ptr(), c".".as_ptr())?;
        // The old root now lies on the new one. It goes before any name is
        // looked up: ".." at the root steps onto what is mounted there, also
        // for openat2 with RESOLVE_IN_ROOT, and a link of the image may say so.
        sys!(UMOUNT2, c".".as_ptr(), 2 /* MNT_DETACH */)?;
        sys!(FCHDIR, mount)?;
        Ok(())
    }

    /// Where there is no pivot_root: the host's root stays beneath ours.
    pub fn chroot(&mut self) -> Answer<()> {
        sys!(FCHDIR, self.fd)?;
        sys!(CHROOT, c".".as_ptr())?;
        sys!(FCHDIR, self.fd)?;
        Ok(())
    }

    /// Refuses to cover what the target does not name: the image's links, and whoever else can
    /// write where it leads, choose the place. Asked of the descriptor that is mounted on, so
    /// that nothing changes in between (CVE-2025-52881, CVE-2019-19921).
    fn may_cover(&mut self, place: i32, target: &CStr) -> Answer<()> {
        let named = |dir: &[u8]| {
            let rest = target.to_bytes().strip_prefix(dir);
            rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let here = Place::of(place)?;
        let root = Place::of(self.fd()?)?;
        if here == root {
            return Err(COVERS);
        }
        let kind = filesystem(place)?;
        if KERNELS.iter().any(|(magic, dir)| kind == *magic && !named(dir)) {
            return Err(COVERS);
        }
        if here.mount == root.mount {
            return Ok(());
        }
        for (path, dir) in OWN {
            if named(dir) {
                continue;
            }
            match self.open(path, O_PATH) {
                Ok(own) => {
                    let own_place = Place::of(own);
                    close(own);
                    let mount = own_place?.mount;
                    if mount == here.mount && mount != root.mount {
                        return Err(COVERS);
                    }
                }
                // It has none.
                Err(ENOENT | ENOTDIR | ELOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub fn open_null(&mut self) -> Answer<()> {
        let null = open(AT_FDCWD, c"/dev/null", O_PATH | O_NOFOLLOW, 0, 0)?;
        let stat = fstat(null)?;
        if stat.mode & S_IFMT != S_IFCHR || stat.rdev != 0x103 {
            return Err(ENODEV);
        }
        // A copy that stays ours when the host's mounts are let go of.
        self.null = Cover { mount: clone_mount(null, false)?, used: false };
        close(null);
        Ok(())
    }

    /// mount(2) on a directory that we hold: it is our working directory meanwhile.
    pub fn mount(
        &mut self,
        target: &CStr,
        kind: &CStr,
        source: &CStr,
        flags: u64,
        data: &CStr,
        strict: bool,
    ) -> Answer<()> {
        if strict {
            self.no_link(target)?;
        }
        // A tmpfs is as open as what it lies on, unless it is told (as runc).
        let mut mode = [0u8; MAX_PATH];
        let data = match kind == c"tmpfs" && flags & MS_REMOUNT == 0 && !has_mode(data.to_bytes()) {
            true => match self.open(target, O_PATH | O_DIRECTORY) {
                Ok(place) => {
                    let bits = fstat(place)?.mode & 0o7777;
                    close(place);
                    with_mode(data, bits, &mut mode)?
                }
                Err(_) => data,
            },
            false => data,
        };
        let fd = self.directory(target)?;
        if strict {
            self.same_without_links(target, fd)?;
        }
        if flags & MS_REMOUNT == 0 {
            self.may_cover(fd, target)?;
        }
        sys!(FCHDIR, fd)?;
        sys!(MOUNT, source.as_ptr(), c".".as_ptr(), kind.as_ptr(), flags, data.as_ptr())?;
        close(fd);
        Ok(())
    }

    /// Refuses a link, also one that leads to nothing: a directory would be made there.
    fn no_link(&mut self, path: &CStr) -> Answer<()> {
        match open(self.fd()?, path, O_PATH | O_DIRECTORY, 0, IN_ROOT | RESOLVE_NO_SYMLINKS) {
            Ok(fd) => {
                close(fd);
                Ok(())
            }
            Err(ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Refuses a path that has led over a symbolic link.
    fn same_without_links(&mut self, path: &CStr, fd: i32) -> Answer<()> {
        let strict =
            open(self.fd()?, path, O_PATH | O_DIRECTORY, 0, IN_ROOT | RESOLVE_NO_SYMLINKS)?;
        let (a, b) = (fstat(fd)?, fstat(strict)?);
        close(strict);
        if (a.dev, a.ino) == (b.dev, b.ino) { Ok(()) } else { Err(ELOOP) }
    }

    pub fn attach(&mut self, mount: i32, target: &CStr) -> Answer<()> {
        let directory = fstat(mount)?.mode & S_IFMT == S_IFDIR;
        let place = if directory { self.directory(target)? } else { self.file(target)? };
        self.may_cover(place, target)?;
        // What the caller's own words put on procfs is one (as runc).
        if target == c"/proc" && filesystem(mount)? != PROC_MAGIC {
            return Err(COVERS);
        }
        move_mount(mount, place)?;
        close(place);
        close(mount);
        Ok(())
    }

    /// Puts a detached mount on a file that is there or is made, and is no link
    /// (CVE-2025-52565).
    pub fn attach_here(&mut self, mount: i32, path: &CStr) -> Answer<()> {
        let (parent, name) = self.parent(path)?;
        match open(parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY, 0o755, 0) {
            Ok(fd) => close(fd),
            Err(EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let place = open(parent, name, O_PATH | O_NOFOLLOW, 0, 0)?;
        close(parent);
        if fstat(place)?.mode & S_IFMT == S_IFLNK {
            return Err(ELOOP);
        }
        self.may_cover(place, path)?;
        move_mount(mount, place)?;
        close(place);
        close(mount);
        Ok(())
    }

    pub fn proc<'o>(
        &mut self,
        target: &CStr,
        attributes: u64,
        options: impl Iterator<Item = &'o CStr>,
    ) -> Answer<()> {
        let mount = new_mount(c"proc", options, attributes)?;
        if !target.is_empty() {
            self.no_link(target)?;
            let place = self.directory(target)?;
            self.same_without_links(target, place)?;
            move_mount(mount, place)?;
            close(place);
        }
        self.proc = mount;
        Ok(())
    }

    pub fn sysctl(&self, path: &CStr, value: &[u8]) -> Answer<()> {
        let resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS;
        let fd = open(self.proc, path, O_WRONLY, 0, resolve)?;
        let count = sys!(WRITE, fd, value.as_ptr(), value.len())?;
        close(fd);
        if count == value.len() { Ok(()) } else { Err(EINVAL) }
    }

    pub fn mkdir(&mut self, path: &CStr) -> Answer<()> {
        close(self.directory(path)?);
        Ok(())
    }

    pub fn mknod(&mut self, path: &CStr, mode: u32, device: u64, uid: u32, gid: u32) -> Answer<()> {
        let (parent, name) = self.parent(path)?;
        match sys!(MKNODAT, parent, name.as_ptr(), mode, device) {
            Ok(_) => {}
            Err(EEXIST) => {
                // The same device is as good as ours; anything else is not.
                let fd = open(parent, name, O_PATH | O_NOFOLLOW, 0, 0)?;
                let stat = fstat(fd)?;
                close(fd);
                if stat.mode & S_IFMT != mode & S_IFMT || stat.rdev != device {
                    return Err(EEXIST);
                }
            }
            Err(errno) => return Err(errno),
        }
        if uid != 0 || gid != 0 {
            sys!(FCHOWNAT, parent, name.as_ptr(), uid, gid, 0x100 /* AT_SYMLINK_NOFOLLOW */)?;
        }
        close(parent);
        Ok(())
    }

    pub fn symlink(&mut self, path: &CStr, target: &CStr) -> Answer<()> {
        let (parent, name) = self.parent(path)?;
        match sys!(SYMLINKAT, target.as_ptr(), parent, name.as_ptr()) {
            Ok(_) | Err(EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        close(parent);
        Ok(())
    }

    /// The file at a path that may be missing.
    fn existing(&mut self, path: &CStr) -> Answer<Option<i32>> {
        match self.open(path, O_PATH | O_NOFOLLOW) {
            Ok(fd) => Ok(Some(fd)),
            Err(ENOENT | ENOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub fn mask(&mut self, path: &CStr) -> Answer<()> {
        let Some(place) = self.existing(path)? else { return Ok(()) };
        let kind = fstat(place)?.mode & S_IFMT;
        if kind == S_IFLNK {
            // What is hidden lies elsewhere, and would not be.
            return Err(ELOOP);
        }
        if kind == S_IFDIR {
            if self.empty.mount < 0 {
                let options = [c"size=0", c"nr_inodes=2", c"ro"].into_iter();
                self.empty.mount =
                    new_mount(c"tmpfs", options, 0xf /* ro nosuid nodev noexec */)?;
            }
            self.empty.put_on(place)?;
        } else {
            self.null.put_on(place)?;
        }
        close(place);
        Ok(())
    }

    pub fn read_only(&mut self, path: &CStr) -> Answer<()> {
        let Some(place) = self.existing(path)? else { return Ok(()) };
        let copy = clone_mount(place, true)?;
        mount_setattr(copy, c"", AT_EMPTY_PATH | AT_RECURSIVE, 1 /* MOUNT_ATTR_RDONLY */, 0)?;
        move_mount(copy, place)?;
        close(copy);
        close(place);
        Ok(())
    }

    pub fn read_only_mount(&mut self, path: &CStr) -> Answer<()> {
        let mount = self.open(path, O_PATH)?;
        mount_setattr(mount, c"", AT_EMPTY_PATH, 1, 0)?;
        close(mount);
        Ok(())
    }

    pub fn set_mount(
        &mut self,
        path: &CStr,
        recursive: bool,
        (set, clear): (u64, u64),
        propagation: u64,
    ) -> Answer<()> {
        let mount = self.open(path, O_PATH)?;
        let deep = if recursive { AT_RECURSIVE } else { 0 };
        mount_change(mount, c"", AT_EMPTY_PATH | deep, (set, clear), propagation)?;
        close(mount);
        Ok(())
    }

    pub fn label(&mut self, path: &CStr, label: &[u8]) -> Answer<()> {
        let fd = self.open(path, O_DIRECTORY)?;
        let name = c"security.selinux";
        sys!(FSETXATTR, fd, name.as_ptr(), label.as_ptr(), label.len(), 0)?;
        close(fd);
        Ok(())
    }

    pub fn chdir(&mut self, path: &CStr, create: bool) -> Answer<()> {
        let fd =
            if create { self.directory(path)? } else { self.open(path, O_PATH | O_DIRECTORY)? };
        sys!(FCHDIR, fd)?;
        close(fd);
        // A working directory outside of the root shows as "(unreachable)…".
        let mut buffer = [0u8; MAX_PATH];
        sys!(GETCWD, buffer.as_mut_ptr(), buffer.len())?;
        if buffer[0] == b'/' { Ok(()) } else { Err(ENOENT) }
    }
}

/// Whether options of a tmpfs say how open it is.
fn has_mode(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option.starts_with(b"mode="))
}

/// The options with `mode=` behind them.
fn with_mode<'b>(options: &CStr, mode: u32, buffer: &'b mut [u8; MAX_PATH]) -> Answer<&'b CStr> {
    let digits = [9, 6, 3, 0].map(|shift| b'0' + (mode >> shift & 7) as u8);
    let comma: &[u8] = if options.is_empty() { b"" } else { b"," };
    // A leading zero is none in what the kernel shows.
    let digits = if digits[0] == b'0' { &digits[1..] } else { &digits[..] };
    let mut at = 0;
    for part in [options.to_bytes(), comma, b"mode=", digits] {
        // What the kernel itself reads of options is a page.
        buffer.get_mut(at..at + part.len()).ok_or(EINVAL)?.copy_from_slice(part);
        at += part.len();
    }
    *buffer.get_mut(at).ok_or(EINVAL)? = 0;
    until_nul(buffer)
}

fn until_nul(bytes: &[u8]) -> Answer<&CStr> {
    CStr::from_bytes_until_nul(bytes).map_err(|_| ENAMETOOLONG)
}
