//! Starting knarr-init and talking with it.
//!
//! ```text
//!  parent                                   child
//!  launch (clone3, execveat) ─────────────▶ reads its socket
//!  opens mounts, places it in its cgroup
//!  send (header, descriptors, operations) ▶ carries them out
//!                              ◀─ console ─ (with a terminal)
//!  opens more mounts           ◀─── ask ─── (in an operator's order)
//!  maps its owners             ◀── mount ── (copied from its own mounts)
//!  await_ready                 ◀── ready ── waits
//!  go ────────────────────────────────────▶ execve
//!  await_exec                  ◀─── EOF ─── it is the program now
//!                              ◀── error ── or not: which operation, errno
//! ```
//!
//! While the child is being made by the kernel on one processor, the parent
//! makes its mounts on another.

use std::{
    io::{ErrorKind::PermissionDenied, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use knarr_init::wire::{
    COVERS, FDS_PER_MESSAGE, Frame, MAGIC, MAX_BYTES, NETWORK, Op, SOCKET_FD, VISIBLE,
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    Child, Error, Failure, Stdio,
    error::describe,
    ops::{IdMaps, Ops, Owners, Wish, show},
    plan::{NET, Namespaces, PidNamespace, USER},
    rootless,
    teller::Teller,
    userns, wishes,
};

/// How long one answer may take: mounts on a sick disk take long, nothing else.
const PATIENCE: Duration = Duration::from_secs(120);

/// The one copy of knarr-init that all containers execute: sealed, in memory,
/// so that none of them can overwrite it through `/proc/self/exe` (CVE-2019-5736).
fn program() -> Result<BorrowedFd<'static>, Error> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.as_fd());
    }
    let made = wishes::sealed("knarr-init", knarr_init::IMAGE, true)?;
    Ok(PROGRAM.get_or_init(|| made).as_fd())
}

/// knarr-init, started, and our end of its socket.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    socket: OwnedFd,
    console: Option<OwnedFd>,
    /// Whom a seccomp filter of its may have to be told of.
    teller: Option<Arc<Teller>>,
    /// Everything before "go" is done.
    ready: bool,
}

/// Where the child is born.
#[derive(Default)]
pub(crate) struct Birth<'a> {
    /// CLONE_NEW* bits.
    pub(crate) created: u64,
    /// It may be looked at until its launch comes, by whoever writes its maps without
    /// being the host's root.
    pub(crate) visible: bool,
    /// Whether the network namespace among them may come a little later than the process,
    /// before it is ready: to make it takes the kernel longer than all the others.
    pub(crate) network_later: bool,
    /// A namespace's file or a pidfd whose pid namespace is joined.
    pub(crate) pid_namespace: Option<BorrowedFd<'a>>,
    /// A directory of cgroup2.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whom a seccomp filter of its may have to be told of.
    pub(crate) teller: Option<Arc<Teller>>,
}

/// Starts knarr-init. The streams are closed on our side.
pub(crate) fn launch(birth: &Birth<'_>, stdio: &Stdio) -> Result<Launched, Error> {
    let program = program()?;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Error::system("make a socket pair", errno))?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&ours, direction, Some(PATIENCE))
            .map_err(|errno| Error::system("set a socket's timeout", errno))?;
    }
    let null;
    let stdio = match stdio {
        Stdio::Fds { stdin, stdout, stderr } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        Stdio::Terminal { .. } => {
            null = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map_err(|error| Error::system("open /dev/null", error))?;
            [null.as_fd(); 3]
        }
    };
    // Where its users are not mapped yet, only clone may make it.
    let later = match birth.network_later && birth.created & u64::from(USER) == 0 {
        true => birth.created & u64::from(NET),
        false => 0,
    };
    let request = knarr_sys::Launch {
        namespaces: birth.created & !later,
        cgroup: birth.cgroup,
        program,
        argument: if birth.visible { Some(VISIBLE) } else { (later != 0).then_some(NETWORK) },
        stdio,
        socket: (theirs.as_fd(), SOCKET_FD),
    };
    let started = match birth.pid_namespace {
        None => knarr_sys::launch(&request),
        Some(namespace) => launch_in(namespace, &request)?,
    };
    let (pid, pidfd) = started.map_err(|errno| match errno {
        Errno::NOSPC => no_more_namespaces(),
        errno => Error::system("start a process (clone3)", errno),
    })?;
    let (child, teller) = (Child::new(pid, pidfd), birth.teller.clone());
    Ok(Launched { child, socket: ours, console: None, teller, ready: false })
}

/// A thread of its own joins the pid namespace, so that the child is born in it
/// and is still our direct child; the thread ends at once.
fn launch_in(
    namespace: BorrowedFd<'_>,
    request: &knarr_sys::Launch<'_>,
) -> Result<Result<(u32, OwnedFd), Errno>, Error> {
    let joined = std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("knarr-join".to_owned()).stack_size(64 * 1024);
        let handle = thread.spawn_scoped(scope, || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWPID)
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
            Ok::<_, Errno>(knarr_sys::launch(request))
        });
        handle.map(|handle| handle.join())
    });
    match joined {
        Ok(Ok(Ok(started))) => Ok(started),
        Ok(Ok(Err(errno))) => Err(Error::system("join the pid namespace", errno)),
        Ok(Err(_)) => Err(Error::new(Failure::System, "the joining thread panicked")),
        Err(error) => Err(Error::system("start a thread", error)),
    }
}

impl Launched {
    /// One that another process left waiting on a socket.
    pub(crate) fn left(
        child: Child,
        socket: OwnedFd,
        teller: Option<Arc<Teller>>,
    ) -> Result<Self, Error> {
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE))
                .map_err(|errno| Error::system("set a socket's timeout", errno))?;
        }
        Ok(Self { child, socket, console: None, teller, ready: true })
    }

    /// Opens what the launch wishes for and sends it. `given` are the
    /// descriptors that only the caller has.
    pub(crate) fn send(
        &self,
        ops: &Ops,
        mut given: impl FnMut(&Wish) -> Option<Result<OwnedFd, Error>>,
    ) -> Result<(), Error> {
        if ops.bytes.len() > MAX_BYTES {
            let text = "argument list too long";
            return Err(Error::new(Failure::NotExecutable, text));
        }
        let fds = ops
            .wishes
            .iter()
            .map(|wish| given(wish).unwrap_or_else(|| wishes::open(wish)))
            .collect::<Result<Vec<_>, _>>()?;
        let header = [MAGIC, ops.bytes.len() as u32, fds.len() as u32, 0];
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut batches = fds.chunks(FDS_PER_MESSAGE);
        self.send_with(&header, batches.next().unwrap_or_default())?;
        for batch in batches {
            self.send_with(&[0], batch)?;
        }
        self.send_all(&ops.bytes)
    }

    fn send_with(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), Error> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
            .map_err(|errno| self.broken("send descriptors", errno))?;
        self.send_all(&bytes[sent..])
    }

    fn send_all(&self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.broken("send the launch", errno)),
            }
        }
        Ok(())
    }

    /// What a broken conversation means: how the child ended, where it has.
    fn broken(&self, what: &str, errno: Errno) -> Error {
        match self.child.end() {
            Ok(status) if status.signal.is_none() && (1..200).contains(&status.code) => {
                let errno = Errno::from_raw_os_error(status.code as i32);
                Error::system("execute knarr-init", errno)
            }
            _ => Error::system(format_args!("knarr-init: {what}"), errno),
        }
    }

    /// Waits until everything before "go" is done; at once where it is known to be.
    pub(crate) fn await_ready(&mut self, ops: &Ops) -> Result<(), Error> {
        if !self.ready {
            self.await_hold(ops)?;
            self.ready = true;
        }
        Ok(())
    }

    /// Waits until it waits for the first of two times.
    pub(crate) fn await_hold(&mut self, ops: &Ops) -> Result<(), Error> {
        match self.receive(ops)? {
            Some(frame) if frame.kind == Frame::READY => Ok(()),
            Some(frame) => Err(self.failed(ops, frame)),
            None => Err(self.broken("wait until it is ready", Errno::PIPE)),
        }
    }

    /// Waits until it has gone on in a sibling, and takes that in its stead.
    pub(crate) fn await_birth(&mut self, ops: &Ops) -> Result<(), Error> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let frame = match self.receive(ops)? {
            Some(frame) if frame.kind == Frame::BORN => frame,
            Some(frame) => return Err(self.failed(ops, frame)),
            None => return Err(self.broken("wait for its sibling", Errno::PIPE)),
        };
        // A child of ours, whose number nobody else gets before we have waited for it.
        let pidfd = Pid::from_raw(frame.errno)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| Error::system("open the first process", errno))?;
        let before = std::mem::replace(&mut self.child, Child::new(frame.errno as u32, pidfd));
        before.wait_blocking()?;
        self.go()
    }

    /// Lets it go on.
    pub(crate) fn go(&self) -> Result<(), Error> {
        self.send_all(&[1])
    }

    /// Lets a program go on that waits for it itself. It may have ended before:
    /// its exit code says why.
    pub(crate) fn go_ahead(&self) {
        let _ = rustix::net::send(&self.socket, &[1], SendFlags::NOSIGNAL);
    }

    /// Waits until it has become the program.
    pub(crate) fn await_exec(&mut self, ops: &Ops) -> Result<(), Error> {
        match self.receive(ops)? {
            None => Ok(()),
            Some(frame) => Err(self.failed(ops, frame)),
        }
    }

    /// Ends it where something went wrong. As long as it is not waited for, the pid
    /// namespace that it was born in does not end.
    pub(crate) fn or_end<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        done.inspect_err(|_| drop(self.child.end()))
    }

    /// The master of the terminal, once.
    pub(crate) fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// The next frame that is more than a descriptor; none at the end.
    fn receive(&mut self, ops: &Ops) -> Result<Option<Frame>, Error> {
        loop {
            let mut given = None;
            let mut bytes = [0u8; Frame::SIZE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
            );
            let count = match received {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => 0,
                Err(errno) => return Err(self.broken("wait for its answer", errno)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    given = fds.last();
                }
            }
            if count == 0 {
                return Ok(None);
            }
            let frame = Frame::from_bytes(&bytes);
            if count < Frame::SIZE {
                return Err(self.broken("its answer is cut", Errno::PROTO));
            }
            match (frame.kind, given) {
                (Frame::CONSOLE, given) => self.console = given,
                (Frame::MAP, Some(mount)) => self.map(ops, frame.op, &mount)?,
                (Frame::LISTENER, _) => self.tell(frame.errno)?,
                (Frame::ASK, _) => self.open_now(ops, frame.op)?,
                _ => return Ok(Some(frame)),
            }
        }
    }

    /// Maps the owners of a mount of its, which the kernel lets only the host do.
    fn map(&self, ops: &Ops, op: u32, mount: &OwnedFd) -> Result<(), Error> {
        let Some(Op::MapTree { users, groups, recursive }) = ops.get(op) else {
            return Err(self.broken("a mount that nobody asked for", Errno::PROTO));
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let owners = Owners::Maps(IdMaps { users: text(users.0), groups: text(groups.0) });
        userns::map(mount.as_fd(), &owners, recursive, "a mount of its own")?;
        self.go()
    }

    /// Opens and sends what an operation asks for, and what those behind it will.
    fn open_now(&self, ops: &Ops, op: u32) -> Result<(), Error> {
        let wanted = ops.iter().skip(op as usize).take(FDS_PER_MESSAGE).map_while(|op| match op {
            Op::Attach { fd, .. } if fd.later().is_some() => ops.wished(fd),
            _ => None,
        });
        let open = |wish: &Wish| match wish {
            // An operator has granted it by writing it down.
            Wish::Bind(bind) => wishes::bind(bind),
            other => wishes::open(other),
        };
        let fds = wanted.map(open).collect::<Result<Vec<_>, _>>()?;
        self.send_with(&[0], &fds)
    }

    /// Hands the listener of its filter over.
    fn tell(&self, number: i32) -> Result<(), Error> {
        let Some(teller) = &self.teller else {
            let text = "seccomp listenerPath is not set";
            return Err(Error::new(Failure::InvalidSpec, text));
        };
        teller.tell(&self.child, number)?;
        self.go()
    }

    /// An operation failed: the sentence about it.
    fn failed(&self, ops: &Ops, frame: Frame) -> Error {
        let _ = self.child.end();
        sentence(ops, frame)
    }
}

fn no_more_namespaces() -> Error {
    Error::system("make namespaces (too many of them)", Errno::NOSPC)
}

/// Docker's words for programs, plain ones for the rest.
fn sentence(ops: &Ops, frame: Frame) -> Error {
    let errno = Errno::from_raw_os_error(frame.errno);
    if frame.op == Frame::EARLY {
        return match errno {
            Errno::NOSPC => no_more_namespaces(),
            errno => Error::system("make a network namespace", errno),
        };
    }
    let Some(op) = ops.get(frame.op) else {
        return Error::system("knarr-init: the launch", errno);
    };
    let words = describe(&errno.into());
    let wished = |fd| match ops.wished(fd) {
        Some(Wish::Bind(bind) | Wish::Mapped(bind, ..)) => format!("{:?}", bind.source.display()),
        Some(Wish::Namespace(path)) => format!("namespace {}", path.display()),
        Some(Wish::Root) => "the root filesystem".to_owned(),
        _ => "the container".to_owned(),
    };
    match op {
        Op::Lookup { .. } => {
            let name = ops.iter().find_map(|op| match op {
                Op::Exec { argv, .. } => argv.iter().next().map(show),
                _ => None,
            });
            let name = name.unwrap_or_default();
            let by_path = name.contains('/');
            let (failure, why) = match errno {
                Errno::NOENT if by_path => {
                    (Failure::NotFound, format!("stat {name}: no such file or directory"))
                }
                // A candidate that is a directory counts for nothing in $PATH.
                Errno::NOENT | Errno::ISDIR if !by_path => {
                    (Failure::NotFound, "executable file not found in $PATH".to_owned())
                }
                _ => (Failure::NotExecutable, words),
            };
            Error::new(failure, format!("exec: {name:?}: {why}"))
        }
        Op::Exec { argv, .. } => {
            let path = argv.iter().next().map(show).unwrap_or_default();
            let (failure, why) = match errno {
                Errno::NOENT => (Failure::NotFound, "no such file or directory"),
                Errno::NOEXEC => (Failure::NotExecutable, "exec format error"),
                Errno::TOOBIG => (Failure::NotExecutable, "argument list too long"),
                _ => (Failure::NotExecutable, words.as_str()),
            };
            Error::new(failure, format!("exec {path}: {why}"))
        }
        Op::ExecFd { .. } => Error::system("execute knarr-wasm", errno),
        Op::Chdir { path, .. } => {
            let text =
                format!("chdir to cwd ({:?}) set in config.json failed: {words}", show(path));
            // Docker answers 126 to a working directory that cannot be used.
            Error::new(Failure::NotExecutable, text)
        }
        Op::Attach { target, .. } | Op::AttachTree { target } | Op::Mount { target, .. }
            if frame.errno == COVERS =>
        {
            let text = format!(
                "mount on {:?}: it would cover the root or a place of /proc, /sys or /dev that it \
                 does not name",
                show(target)
            );
            Error::new(Failure::InvalidSpec, text)
        }
        Op::Attach { fd, target } => {
            let hint = match errno {
                Errno::NOTDIR | Errno::ISDIR => {
                    ": are you trying to mount a directory onto a file (or vice-versa)?"
                }
                _ => "",
            };
            let what = format!("mount {} on {:?}", wished(fd), show(target));
            let error = Error::system(what, errno);
            if hint.is_empty() {
                error
            } else {
                Error::new(Failure::InvalidSpec, format!("{error}{hint}"))
            }
        }
        Op::CopyTree { source, .. } => {
            Error::system(format_args!("bind {:?} of the container", show(source)), errno)
        }
        Op::AttachTree { target } => {
            Error::system(format_args!("mount on {:?}", show(target)), errno)
        }
        // runc's words for what such a link is for.
        Op::Mount { target, kind, no_symlinks: true, .. } if errno == Errno::LOOP => {
            let text = format!(
                "filesystem {:?} must be mounted on ordinary directory: {:?} is a link",
                show(kind),
                show(target)
            );
            Error::new(Failure::InvalidSpec, text)
        }
        Op::Proc { target, .. } if errno == Errno::LOOP => {
            let text = format!(
                "filesystem \"proc\" must be mounted on ordinary directory: {:?} is a link",
                show(target)
            );
            Error::new(Failure::InvalidSpec, text)
        }
        Op::Mount { target, kind, .. } => {
            Error::system(format_args!("mount {} on {:?}", show(kind), show(target)), errno)
        }
        Op::Proc { target, .. } => {
            Error::system(format_args!("mount proc on {:?}", show(target)), errno)
        }
        Op::EnterRoot { .. } => Error::system("enter the root filesystem", errno),
        Op::Setns { fd, .. } => Error::system(format_args!("join {}", wished(fd)), errno),
        Op::Sysctl { path, value } => {
            let name = show(path).replacen("sys/", "", 1).replace('/', ".");
            let value = String::from_utf8_lossy(value.0);
            let text = format!("set sysctl {name}={value}: {words}");
            Error::new(Failure::InvalidSpec, text)
        }
        Op::Rlimit { resource, soft, hard } => {
            let text = format!(
                "set resource limit {} to {soft}:{hard}: {words}",
                LIMITS.get(resource as usize).unwrap_or(&"?")
            );
            Error::new(Failure::InvalidSpec, text)
        }
        Op::Mknod { path, .. } => {
            Error::system(format_args!("make device {:?}", show(path)), errno)
        }
        Op::Mask { path } => Error::system(format_args!("mask {:?}", show(path)), errno),
        Op::ReadOnly { path } => {
            Error::system(format_args!("make {:?} read-only", show(path)), errno)
        }
        Op::Terminal { .. } => Error::system("open a terminal", errno),
        Op::Groups { .. } => Error::system("set the supplementary groups", errno),
        Op::Identity { uid, gid } => {
            Error::system(format_args!("become user {uid}, group {gid}"), errno)
        }
        Op::OwnUsers { uid, gid, .. } => Error::system(
            format_args!("enter a user namespace of user {uid}, group {gid} alone"),
            errno,
        ),
        Op::Scheduler { .. } if errno == Errno::PERM => {
            // runc's words.
            let text = format!(
                "set the scheduler: {words} (process scheduler can't be used together with \
                 AllowedCPUs)"
            );
            Error::new(Failure::System, text)
        }
        Op::Seccomp { .. } => Error::system("load the seccomp filter", errno),
        Op::Attribute { value, .. } => {
            let value = String::from_utf8_lossy(value.0);
            let (text, what) = match value.strip_prefix("exec ") {
                Some(profile) => {
                    (format!("unable to apply apparmor profile {profile:?}"), "profile")
                }
                None => (format!("unable to apply selinux label {value:?}"), "label"),
            };
            match errno {
                Errno::NOENT => {
                    let text = format!("{text}: no such {what} is loaded");
                    Error::new(Failure::InvalidSpec, text)
                }
                _ => Error::system(text, errno),
            }
        }
        other => {
            let text = format!("{other:?}");
            let name = text.split([' ', '{']).next().unwrap_or_default().to_lowercase();
            Error::system(format_args!("prepare the container ({name})"), errno)
        }
    }
}

const LIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The descriptor of the pid namespace to be born in.
pub(crate) fn pid_namespace(namespaces: &Namespaces) -> Result<Option<OwnedFd>, Error> {
    match &namespaces.pid {
        PidNamespace::New | PidNamespace::Host => Ok(None),
        PidNamespace::Joined(path) => wishes::open(&Wish::Namespace(path.clone())).map(Some),
    }
}

/// Writes a process's OOM score through the host's own procfs.
pub(crate) fn oom_score(child: &Child, score: Option<i32>) -> Result<(), Error> {
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{}/oom_score_adj", child.pid());
    match std::fs::write(Path::new(&path), score.to_string()) {
        // Nobody there may make a process safer than it was born (as runc).
        Err(error) if error.kind() == PermissionDenied && rootless::contained() => Ok(()),
        other => other
            .map_err(|error| Error::system(format_args!("set oom_score_adj to {score}"), error)),
    }
}
