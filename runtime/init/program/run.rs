//! Carries operations out.

use core::ffi::CStr;

use crate::{
    identity,
    kernel::*,
    reaper,
    root::Root,
    signal, socket, terminal,
    wire::{FDS_PER_MESSAGE, Frame, List, Op, Reader, SOCKET_FD},
};

/// What operations leave for later ones.
struct Launch {
    fds: &'static [[u8; 4]],
    root: Root,
    executable: Option<&'static CStr>,
    /// A copy of some of its own mounts, on the way to another place.
    tree: i32,
    later: Later,
}

/// Descriptors that the parent opens when they are asked for.
struct Later {
    fds: [i32; FDS_PER_MESSAGE],
    /// The place of the first of them in the parent's list, and of the one behind the last.
    places: (usize, usize),
}

impl Later {
    const NONE: Self = Self { fds: [-1; FDS_PER_MESSAGE], places: (0, 0) };

    /// The one of that place; those that lie behind it come along.
    fn take(&mut self, op: u32, place: usize) -> Answer<i32> {
        if !(self.places.0..self.places.1).contains(&place) {
            socket::say(Frame { kind: Frame::ASK, op, errno: 0 })?;
            let count = socket::receive(&mut [0u8], &mut self.fds)?;
            self.places = (place, place + count);
        }
        let fd = self.fds.get(place - self.places.0).ok_or(EPROTO)?;
        Ok(*fd)
    }
}

/// `early` is how that went which was done before the launch came.
pub fn run(early: Answer<()>) -> ! {
    let launch = socket::launch();
    identity::hide();
    let (index, errno) = match (launch, early) {
        (Err(errno), _) => (0, errno),
        (_, Err(errno)) => (Frame::EARLY, errno),
        (Ok((ops, fds)), Ok(())) => {
            let mut launch =
                Launch { fds, root: Root::new(), executable: None, tree: -1, later: Later::NONE };
            let mut reader = Reader(ops);
            let mut index = 0;
            loop {
                let Some(op) = Op::decode(&mut reader) else { break (index, EPROTO) };
                if let Err(errno) = launch.execute(index, op) {
                    break (index, errno);
                }
                index += 1;
            }
        }
    };
    let _ = socket::say(Frame { kind: Frame::ERROR, op: index, errno });
    // Until the parent has heard it: somebody may be at work in our namespaces,
    // and would report that they are gone instead of why.
    let _ = socket::await_go();
    exit(255)
}

impl Launch {
    fn fd(&self, fd: crate::wire::Fd) -> Answer<i32> {
        self.fds.get(fd.0 as usize).copied().map(i32::from_ne_bytes).ok_or(EBADF)
    }

    fn execute(&mut self, index: u32, op: Op<'static>) -> Answer<()> {
        let root = &mut self.root;
        match op {
            Op::Setns { fd, kinds } => sys!(SETNS, self.fd(fd)?, kinds).map(drop),
            Op::Propagation { flags } => mount_setattr(AT_FDCWD, c"/", AT_RECURSIVE, 0, flags),
            Op::OpenNull {} => root.open_null(),
            Op::EnterRoot { fd } => {
                let mount = self.fd(fd)?;
                self.root.enter(mount)
            }
            Op::Mount { target, kind, source, flags, data, no_symlinks } => {
                root.mount(target, kind, source, flags, data, no_symlinks)
            }
            Op::Attach { fd, target } => {
                let mount = match fd.later() {
                    None => self.fd(fd)?,
                    Some(place) => self.later.take(index, place)?,
                };
                self.root.attach(mount, target)
            }
            Op::Within { path } => root.within(path),
            Op::CopyTree { source, recursive } => {
                let place = root.open(source, O_PATH)?;
                self.tree = clone_mount(place, recursive)?;
                close(place);
                Ok(())
            }
            Op::ChangeTree { recursive, set, clear, propagation } => {
                let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
                mount_change(self.tree, c"", flags, (set, clear), propagation)
            }
            Op::MapTree { .. } => {
                socket::give(Frame::MAP, index, self.tree)?;
                socket::await_go()
            }
            Op::AttachTree { target } => self.root.attach(self.tree, target),
            Op::Proc { target, attributes, options } => {
                root.proc(target, attributes, options.iter())
            }
            Op::Sysctl { path, value } => root.sysctl(path, value.0),
            Op::Mkdir { path } => root.mkdir(path),
            Op::Mknod { path, mode, device, uid, gid } => root.mknod(path, mode, device, uid, gid),
            Op::Symlink { path, target } => root.symlink(path, target),
            Op::Mask { path } => root.mask(path),
            Op::ReadOnly { path } => root.read_only(path),
            Op::ReadOnlyMount { path } => root.read_only_mount(path),
            Op::Hostname { name } => sys!(SETHOSTNAME, name.0.as_ptr(), name.0.len()).map(drop),
            Op::Domainname { name } => sys!(SETDOMAINNAME, name.0.as_ptr(), name.0.len()).map(drop),
            Op::Rlimit { resource, soft, hard } => {
                let limit = [soft, hard];
                sys!(PRLIMIT64, 0, resource, limit.as_ptr(), 0).map(drop)
            }
            Op::Loopback {} => identity::loopback(),
            Op::Ready {} => {
                socket::say(Frame { kind: Frame::READY, op: index, errno: 0 })?;
                socket::await_go()
            }
            Op::ReadyAhead {} => socket::say(Frame { kind: Frame::READY, op: index, errno: 0 }),
            Op::KeepSocket {} => sys!(FCNTL, SOCKET_FD, 2 /* F_SETFD */, 0).map(drop),
            Op::Terminal { rows, cols, uid, console } => {
                terminal::open_pair(root, index, rows, cols, uid, console)
            }
            Op::ControllingTerminal {} => terminal::control(0),
            Op::Setsid {} => sys!(SETSID).map(drop),
            Op::Umask { mask } => sys!(UMASK, mask).map(drop),
            Op::Chdir { path, create } => root.chdir(path, create),
            Op::Bounding { keep } => identity::bounding(keep),
            Op::Identity { uid, gid } => identity::become_user(uid, gid),
            Op::OwnUsers { proc, uid, gid } => identity::own_users(self.fd(proc)?, uid, gid),
            Op::Groups { groups } => {
                sys!(SETGROUPS, groups.0.len() / 4, groups.0.as_ptr()).map(drop)
            }
            Op::Capabilities { effective, permitted, inheritable } => {
                identity::capabilities(effective, permitted, inheritable)
            }
            Op::Ambient { set } => identity::ambient(set),
            Op::Keyring { name } => identity::keyring(name),
            Op::NoNewPrivs {} => identity::no_new_privs(),
            Op::Seccomp { flags, filter } => identity::seccomp(flags, filter.0),
            Op::Keep { count } => self.keep(count),
            Op::CloseFrom { first } => {
                sys!(CLOSE_RANGE, first, u32::MAX, 4 /* CLOSE_RANGE_CLOEXEC */).map(drop)
            }
            Op::Signals {} => signal::reset(),
            Op::Lookup { candidates } => {
                self.executable = Some(lookup(candidates)?);
                Ok(())
            }
            Op::Exec { argv, env } => {
                let path = self.executable.ok_or(ENOENT)?;
                let (argv, env) = (pointers(argv)?, pointers(env)?);
                sys!(EXECVE, path.as_ptr(), argv, env).map(drop)
            }
            Op::ExecFd { fd, argv, env } => {
                let (argv, env) = (pointers(argv)?, pointers(env)?);
                sys!(EXECVEAT, self.fd(fd)?, c"".as_ptr(), argv, env, AT_EMPTY_PATH).map(drop)
            }
            Op::Fork {} => reaper::fork(),
            Op::Hold {} => reaper::hold(),
            Op::DieWithParent {} => identity::die_with_parent(),
            Op::OwnStreams { uid } => identity::own_streams(uid),
            Op::Unshare { kinds } => sys!(UNSHARE, kinds).map(drop),
            Op::JoinCgroup { fd } => {
                let fd = self.fd(fd)?;
                sys!(WRITE, fd, c"0".as_ptr(), 1)?;
                close(fd);
                Ok(())
            }
            Op::Personality { persona } => sys!(PERSONALITY, persona).map(drop),
            Op::Listen { fd } => {
                let listener = self.fd(fd)?;
                // Who waits for long holds nothing of the host's.
                self.root.close_covers();
                socket::say(Frame { kind: Frame::READY, op: index, errno: 0 })?;
                socket::await_caller(listener)
            }
            Op::PlaceRoot { fd, target } => {
                let mount = self.fd(fd)?;
                self.root.place(mount, target)
            }
            Op::SetMount { target, recursive, set, clear, propagation } => {
                root.set_mount(target, recursive, (set, clear), propagation)
            }
            Op::Pivot {} => root.pivot(),
            Op::Chroot {} => root.chroot(),
            Op::TimeOffsets { text } => identity::write(c"/proc/self/timens_offsets", text.0),
            Op::Scheduler { attributes } => {
                sys!(SCHED_SETATTR, 0, attributes.0.as_ptr(), 0).map(drop)
            }
            Op::MemoryPolicy { mode, nodes } => {
                // The kernel reads one bit less than it is told.
                let (mask, bits) = match nodes.0.len() {
                    0 => (core::ptr::null(), 0),
                    bytes => (nodes.0.as_ptr(), bytes * 8 + 1),
                };
                sys!(SET_MEMPOLICY, mode, mask, bits).map(drop)
            }
            Op::Unmount { path } => root_of_host(path),
            Op::IoPriority { priority } => sys!(IOPRIO_SET, 1, 0, priority).map(drop),
            Op::Attribute { names, value } => identity::attribute(names, value.0),
            Op::FileLabel { path, label } => root.label(path, label.0),
            Op::Reborn { kinds } => reaper::reborn(index, kinds),
            Op::SeccompListener { flags, filter } => {
                let listener = identity::seccomp_listener(flags, filter.0)?;
                socket::say(Frame { kind: Frame::LISTENER, op: index, errno: listener })?;
                socket::await_go()?;
                close(listener);
                Ok(())
            }
        }
    }

    /// The kernel numbers descriptors from the lowest free one on, so that the
    /// first ones received have the numbers that the program expects.
    fn keep(&self, count: u32) -> Answer<()> {
        for place in 0..count {
            let fd = self.fd(crate::wire::Fd(place))?;
            if fd != place as i32 + 3 {
                return Err(EBADF);
            }
            sys!(FCNTL, fd, 2 /* F_SETFD */, 0)?;
        }
        Ok(())
    }
}

/// Takes a mount of the host's away that must not be seen through ours; where that
/// cannot be, something empty lies on it.
fn root_of_host(path: &CStr) -> Answer<()> {
    match sys!(UMOUNT2, path.as_ptr(), 2 /* MNT_DETACH */) {
        Err(EINVAL | EPERM) => {
            let empty = c"tmpfs".as_ptr();
            sys!(MOUNT, empty, path.as_ptr(), empty, 0, c"size=0".as_ptr()).map(drop)
        }
        other => other.map(drop),
    }
}

/// As `execvp` and Go's `LookPath` search: whoever is first and executable.
fn lookup(candidates: List<'static>) -> Answer<&'static CStr> {
    let mut failure = ENOENT;
    for path in candidates.iter() {
        match stat(path) {
            Ok(stat) if stat.mode & S_IFMT == S_IFDIR => failure = EISDIR,
            Ok(stat) if stat.mode & S_IFMT == S_IFREG && stat.mode & 0o111 != 0 => return Ok(path),
            Ok(_) => failure = EACCES,
            Err(ENOENT | ENOTDIR) => {}
            Err(errno) => failure = errno,
        }
    }
    Err(failure)
}

/// The array of pointers that execve takes.
fn pointers(list: List<'static>) -> Answer<*const u8> {
    let count = list.count as usize;
    let room = memory((count + 1).checked_mul(8).ok_or(ENOMEM)?)?;
    for (slot, string) in room.as_chunks_mut::<8>().0.iter_mut().zip(list.iter()) {
        *slot = (string.as_ptr() as usize).to_ne_bytes();
    }
    Ok(room.as_ptr())
}
