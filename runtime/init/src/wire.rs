//! The launch program: what the parent writes and `knarr-init` carries out.
//!
//! A launch is a flat list of operations in the order of their execution. The
//! parent sends over a stream socket
//!
//! ```text
//! Header { magic, bytes, fds, 0 }   four u32, with the first descriptors (SCM_RIGHTS)
//! one byte                          with each further batch of descriptors
//! operations                        `bytes` of them
//! ```
//!
//! and `knarr-init` answers with [`Frame`]s. Both ends are one build: the format
//! has no version, only a magic number that says so. Numbers are in the
//! machine's own order; everything is aligned to four bytes.
//!
//! This file is compiled twice: into the library, which has an allocator, and
//! into the program, which has not.

use core::ffi::CStr;

/// First word of a launch.
pub const MAGIC: u32 = 0x6b6e_7231;
/// Where the program finds its socket: out of the way of descriptors that the
/// container's program is to inherit.
pub const SOCKET_FD: i32 = 100;
/// The program's argument where it is to make itself a network namespace, while its
/// parent is still preparing the launch.
pub const NETWORK: &CStr = c"network";
/// The program's argument where its parent must be able to write the maps of its user namespace,
/// without being the host's root: it may be looked at until its launch comes, if one does.
pub const VISIBLE: &CStr = c"visible";
/// What an operation that mounts answers for a target that leads over links onto what is not to be
/// covered: the root, or a place of `/proc`, `/sys` or `/dev` that the target does not name. EXDEV,
/// which none of its system calls answers.
pub const COVERS: i32 = 18;
/// Descriptors per message; the kernel takes at most 253.
pub const FDS_PER_MESSAGE: usize = 200;
/// More operations' bytes than any honest launch has (2 MiB of arguments and
/// environment are the kernel's own limit).
pub const MAX_BYTES: usize = 8 << 20;

/// A descriptor, by its place in the list that the parent sends; with [`Fd::LATER`] in the list
/// of those that it opens when they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fd(pub u32);

impl Fd {
    /// The bit that says so.
    pub const LATER: u32 = 1 << 31;

    /// Its place in the list of those that are opened later.
    pub fn later(self) -> Option<usize> {
        (self.0 & Self::LATER != 0).then_some((self.0 & !Self::LATER) as usize)
    }
}

/// Strings, each ended by a zero byte, one behind the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct List<'a> {
    /// How many.
    pub count: u32,
    /// Their bytes.
    pub bytes: &'a [u8],
}

/// Raw bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

/// Where operations are written to.
pub trait Sink {
    /// Appends.
    fn put(&mut self, bytes: &[u8]);
}

/// What is left of a launch.
#[derive(Debug, Clone)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn padded(&mut self, count: usize) -> Option<&'a [u8]> {
        let head = self.take(count)?;
        self.take(count.wrapping_neg() & 3)?;
        Some(head)
    }
}

/// What an operation's field can be.
trait Field<'a>: Sized {
    fn write(&self, out: &mut impl Sink);
    fn read(reader: &mut Reader<'a>) -> Option<Self>;
}

impl<'a> Field<'a> for u32 {
    fn write(&self, out: &mut impl Sink) {
        out.put(&self.to_ne_bytes());
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        Some(Self::from_ne_bytes(reader.take(4)?.try_into().ok()?))
    }
}

impl<'a> Field<'a> for u64 {
    fn write(&self, out: &mut impl Sink) {
        out.put(&self.to_ne_bytes());
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        Some(Self::from_ne_bytes(reader.take(8)?.try_into().ok()?))
    }
}

impl<'a> Field<'a> for bool {
    fn write(&self, out: &mut impl Sink) {
        u32::from(*self).write(out);
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        Some(u32::read(reader)? != 0)
    }
}

impl<'a> Field<'a> for Fd {
    fn write(&self, out: &mut impl Sink) {
        self.0.write(out);
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        u32::read(reader).map(Self)
    }
}

impl<'a> Field<'a> for Bytes<'a> {
    fn write(&self, out: &mut impl Sink) {
        (self.0.len() as u32).write(out);
        out.put(self.0);
        out.put(&[0; 3][..self.0.len().wrapping_neg() & 3]);
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let count = u32::read(reader)? as usize;
        reader.padded(count).map(Self)
    }
}

impl<'a> Field<'a> for &'a CStr {
    fn write(&self, out: &mut impl Sink) {
        Bytes(self.to_bytes_with_nul()).write(out);
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        CStr::from_bytes_with_nul(Bytes::read(reader)?.0).ok()
    }
}

impl<'a> Field<'a> for List<'a> {
    fn write(&self, out: &mut impl Sink) {
        self.count.write(out);
        Bytes(self.bytes).write(out);
    }
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let count = u32::read(reader)?;
        Some(Self { count, bytes: Bytes::read(reader)?.0 })
    }
}

impl<'a> List<'a> {
    /// The strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let string = CStr::from_bytes_until_nul(rest).ok()?;
            rest = &rest[string.to_bytes_with_nul().len()..];
            Some(string)
        })
    }
}

macro_rules! ops {
    ($( $(#[$doc:meta])* $name:ident = $code:literal { $( $(#[$field_doc:meta])* $field:ident: $kind:ty ),* } )*) => {
        /// One operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Op<'a> {
            $( $(#[$doc])* $name { $( $(#[$field_doc])* $field: $kind ),* }, )*
        }

        impl<'a> Op<'a> {
            /// Appends it.
            #[allow(dead_code)] // the program only reads
            pub fn encode(&self, out: &mut impl Sink) {
                match self {
                    $( Self::$name { $($field),* } => {
                        Field::write(&($code as u32), out);
                        $( Field::write($field, out); )*
                    } )*
                }
            }

            /// The next one; none at the end or where the bytes are not ours.
            #[deny(unreachable_patterns)] // a number that is given twice
            pub fn decode(reader: &mut Reader<'a>) -> Option<Self> {
                match u32::read(reader)? {
                    $( $code => Some(Self::$name { $( $field: Field::read(reader)? ),* }), )*
                    _ => None,
                }
            }
        }
    };
}

ops! {
    /// Joins the namespaces `kinds` (CLONE_NEW* bits) behind a namespace's file or a pidfd.
    Setns = 1 {
        /// The namespace or the process.
        fd: Fd,
        /// CLONE_NEW* bits.
        kinds: u32
    }
    /// Sets the propagation of every mount of the namespace.
    Propagation = 2 {
        /// MS_PRIVATE, MS_SLAVE, MS_SHARED.
        flags: u64
    }
    /// Remembers the host's `/dev/null`, verified to be that device, as what
    /// masked files are covered with. Before [`Op::EnterRoot`].
    OpenNull = 3 {}
    /// Makes a detached mount the root of the namespace and lets go of the
    /// host's mounts.
    EnterRoot = 4 {
        /// The mount.
        fd: Fd
    }
    /// Mounts a new filesystem on a directory beneath the root, made if missing.
    Mount = 6 {
        /// Absolute path in the container.
        target: &'a CStr,
        /// Type of the filesystem.
        kind: &'a CStr,
        /// What mountinfo shows as the source.
        source: &'a CStr,
        /// MS_* bits.
        flags: u64,
        /// Options for the filesystem.
        data: &'a CStr,
        /// No component of the target may be a symbolic link.
        no_symlinks: bool
    }
    /// Puts a detached mount on a file or directory beneath the root, made if missing.
    Attach = 7 {
        /// The mount. One that is opened later is asked for here, with those of the
        /// operations of this kind behind it: the kernel lists mounts by their age.
        fd: Fd,
        /// Absolute path in the container.
        target: &'a CStr
    }
    /// From here on paths begin at this directory as if it were the root: no link of what lies
    /// beneath leads out of it. An empty path takes that back.
    Within = 58 {
        /// Absolute path in the container, without links.
        path: &'a CStr
    }
    /// Copies what the container has at a path by now, as a detached mount that the next
    /// operations change and [`Op::AttachTree`] puts somewhere.
    CopyTree = 64 {
        /// Absolute path in the container.
        source: &'a CStr,
        /// With the mounts beneath.
        recursive: bool
    }
    /// Changes the copy: attributes and propagation.
    ChangeTree = 65 {
        /// The mounts beneath too.
        recursive: bool,
        /// MOUNT_ATTR_* bits to set.
        set: u64,
        /// MOUNT_ATTR_* bits to clear.
        clear: u64,
        /// MS_PRIVATE, MS_SLAVE, MS_SHARED or zero.
        propagation: u64
    }
    /// Has the parent map the owners of the copy: the host's rights are needed.
    MapTree = 66 {
        /// Lines of `inside outside count`.
        users: Bytes<'a>,
        /// The same for groups.
        groups: Bytes<'a>,
        /// The mounts beneath too.
        recursive: bool
    }
    /// Puts the copy on a file or directory beneath the root, made if missing.
    AttachTree = 67 {
        /// Absolute path in the container.
        target: &'a CStr
    }
    /// Mounts procfs of the pid namespace, keeps it at hand for
    /// [`Op::Sysctl`], and puts it on `target` unless that is empty.
    Proc = 8 {
        /// Absolute path in the container or nothing.
        target: &'a CStr,
        /// MOUNT_ATTR_* bits.
        attributes: u64,
        /// `name=value` options of procfs.
        options: List<'a>
    }
    /// Writes a sysctl through our own procfs, whatever the image put on `/proc`.
    Sysctl = 9 {
        /// Path beneath procfs: `sys/net/ipv4/ip_forward`.
        path: &'a CStr,
        /// What is written.
        value: Bytes<'a>
    }
    /// Makes a directory beneath the root and its parents; no error where it is.
    Mkdir = 10 {
        /// Absolute path in the container.
        path: &'a CStr
    }
    /// Makes a device node, FIFO or socket beneath the root.
    Mknod = 11 {
        /// Absolute path in the container.
        path: &'a CStr,
        /// Type and permissions.
        mode: u32,
        /// The device's number.
        device: u64,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32
    }
    /// Makes a symbolic link beneath the root; no error where a file of that name is.
    Symlink = 12 {
        /// Absolute path in the container.
        path: &'a CStr,
        /// What it says.
        target: &'a CStr
    }
    /// Hides a file behind `/dev/null` or a directory behind an empty read-only
    /// filesystem; nothing where there is nothing, and an error where there is a link.
    Mask = 13 {
        /// Absolute path in the container.
        path: &'a CStr
    }
    /// Makes what is at a path read-only, with all mounts beneath; nothing where
    /// there is nothing.
    ReadOnly = 14 {
        /// Absolute path in the container.
        path: &'a CStr
    }
    /// Makes the mount at a path read-only (not the mounts beneath).
    ReadOnlyMount = 15 {
        /// Absolute path in the container.
        path: &'a CStr
    }
    /// Sets the host name.
    Hostname = 16 {
        /// The name.
        name: Bytes<'a>
    }
    /// Sets the NIS domain name.
    Domainname = 17 {
        /// The name.
        name: Bytes<'a>
    }
    /// Sets one resource limit.
    Rlimit = 18 {
        /// RLIMIT_*.
        resource: u32,
        /// What is enforced.
        soft: u64,
        /// How far it may be raised.
        hard: u64
    }
    /// Brings the loopback interface up.
    Loopback = 19 {}
    /// Says that everything is ready and waits to be told to go on.
    Ready = 20 {}
    /// Opens a terminal in the container's devpts, hands its master to the
    /// parent, makes the other side the controlling terminal and streams 0 to 2.
    Terminal = 21 {
        /// Height in characters.
        rows: u32,
        /// Width in characters.
        cols: u32,
        /// Who owns it.
        uid: u32,
        /// Bind it to `/dev/console`.
        console: bool
    }
    /// Makes standard input the controlling terminal.
    ControllingTerminal = 5 {}
    /// Starts a session.
    Setsid = 22 {}
    /// Sets the file mode creation mask.
    Umask = 23 {
        /// The mask.
        mask: u32
    }
    /// Changes to a directory beneath the root, which is made if missing, and
    /// verifies that it is beneath the root.
    Chdir = 24 {
        /// Absolute path in the container.
        path: &'a CStr,
        /// Make it if missing.
        create: bool
    }
    /// Drops all capabilities but these from the bounding set.
    Bounding = 25 {
        /// Bit set of capabilities to keep.
        keep: u64
    }
    /// Becomes the user, keeping permitted capabilities over the change.
    Identity = 26 {
        /// User.
        uid: u32,
        /// Primary group.
        gid: u32
    }
    /// Sets the supplementary groups. Before [`Op::Identity`], where the namespace lets anybody
    /// choose.
    Groups = 63 {
        /// Four bytes each.
        groups: Bytes<'a>
    }
    /// Enters a user namespace of its own that knows one user and one group, by the numbers that
    /// they have outside, and becomes them. Whoever it is in there, what it owns is what that user
    /// owns, and no capability is worth anything outside. After [`Op::Groups`]; before
    /// [`Op::Bounding`], which begins anew. A host that has no user namespaces, or no more of
    /// them for anybody, goes without.
    OwnUsers = 68 {
        /// The procfs of the host.
        proc: Fd,
        /// User.
        uid: u32,
        /// Group.
        gid: u32
    }
    /// Sets the capabilities of the thread.
    Capabilities = 27 {
        /// Bit set.
        effective: u64,
        /// Bit set.
        permitted: u64,
        /// Bit set.
        inheritable: u64
    }
    /// Raises ambient capabilities.
    Ambient = 28 {
        /// Bit set.
        set: u64
    }
    /// Joins a session keyring of its own.
    Keyring = 29 {
        /// Its description.
        name: &'a CStr
    }
    /// Sets no_new_privs.
    NoNewPrivs = 30 {}
    /// Loads a seccomp filter.
    Seccomp = 31 {
        /// SECCOMP_FILTER_FLAG_* bits.
        flags: u32,
        /// Instructions, eight bytes each.
        filter: Bytes<'a>
    }
    /// Lets the program inherit the first descriptors of the list as 3, 4, …
    Keep = 32 {
        /// How many.
        count: u32
    }
    /// Marks everything from this number on to be closed by exec.
    CloseFrom = 33 {
        /// The first one.
        first: u32
    }
    /// Gives all signals their default action and unblocks them.
    Signals = 34 {}
    /// Finds the executable: the first of the candidates that is a regular
    /// file which somebody may execute.
    Lookup = 35 {
        /// Paths in the container.
        candidates: List<'a>
    }
    /// Becomes the executable that [`Op::Lookup`] found.
    Exec = 36 {
        /// Arguments.
        argv: List<'a>,
        /// Environment.
        env: List<'a>
    }
    /// Becomes the program behind a descriptor.
    ExecFd = 37 {
        /// The program.
        fd: Fd,
        /// Arguments.
        argv: List<'a>,
        /// Environment.
        env: List<'a>
    }
    /// Goes on in a child; stays itself as the init that forwards and reaps.
    Fork = 38 {}
    /// Leaves namespaces for new ones.
    Unshare = 40 {
        /// CLONE_NEW* bits.
        kinds: u32
    }
    /// Is killed when the thread that made it ends. A change of credentials
    /// takes it back.
    DieWithParent = 41 {}
    /// Gives those of its standard streams that are pipes to the user, so that
    /// `/dev/stdout` can be opened.
    OwnStreams = 42 {
        /// The user.
        uid: u32
    }
    /// Moves itself into a cgroup. A thread that moves itself by `tasks` is
    /// spared the kernel's wait for a grace period (8 ms), which whoever moves
    /// another process pays.
    JoinCgroup = 52 {
        /// The group's `tasks` (v1), opened for writing.
        fd: Fd
    }
    /// Says that everything is ready and goes on: the program itself waits to be
    /// told, on the socket that [`Op::KeepSocket`] leaves it.
    ReadyAhead = 53 {}
    /// Lets the program inherit the socket. After [`Op::CloseFrom`].
    KeepSocket = 54 {}
    /// Sets the execution domain.
    Personality = 39 {
        /// See personality(2).
        persona: u32
    }
    /// As [`Op::Ready`], but for a parent that will not be there any more:
    /// from here on the conversation goes on with whoever connects.
    Listen = 43 {
        /// A listening stream socket.
        fd: Fd
    }
    /// Puts the root on a path of the host, or over its root, without entering
    /// it: the host's mounts stay visible until [`Op::Pivot`].
    PlaceRoot = 44 {
        /// The mount.
        fd: Fd,
        /// Absolute path on the host; nothing is the root.
        target: &'a CStr
    }
    /// Makes the root that was placed the root of the namespace, and lets go of
    /// the host's mounts.
    Pivot = 45 {}
    /// The same where the kernel knows no pivot_root, that is on the root of an
    /// initial ramdisk: the host's root stays, beneath ours.
    Chroot = 46 {}
    /// Changes the mount at a path: attributes and propagation.
    SetMount = 51 {
        /// Absolute path in the container.
        target: &'a CStr,
        /// The mounts beneath too.
        recursive: bool,
        /// MOUNT_ATTR_* bits to set.
        set: u64,
        /// MOUNT_ATTR_* bits to clear.
        clear: u64,
        /// MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE or zero.
        propagation: u64
    }
    /// Sets the clocks of the time namespace that the program will be in.
    TimeOffsets = 47 {
        /// Lines of `clock seconds nanoseconds`.
        text: Bytes<'a>
    }
    /// Sets scheduling policy and attributes.
    Scheduler = 48 {
        /// `struct sched_attr`.
        attributes: Bytes<'a>
    }
    /// Sets the I/O priority.
    IoPriority = 49 {
        /// Class and level, see ioprio_set(2).
        priority: u32
    }
    /// Sets an attribute of our own that a security module keeps until exec:
    /// the label or profile of the program, of its keyring. Through the host's
    /// procfs, verified to be one; so before the root is entered.
    Attribute = 60 {
        /// Its names in `attr`: the first that this kernel has is written.
        names: List<'a>,
        /// What is written.
        value: Bytes<'a>
    }
    /// Labels a directory beneath the root, for security modules.
    FileLabel = 61 {
        /// Absolute path in the container.
        path: &'a CStr,
        /// The label.
        label: Bytes<'a>
    }
    /// Goes on in a sibling that is born in new namespaces, after the user
    /// namespace that is to own them was joined: says the parent its number,
    /// and waits until that has taken it.
    Reborn = 62 {
        /// CLONE_NEW* bits.
        kinds: u32
    }
    /// Stays, so that others can join its namespaces: reaps what comes to it, and ends at
    /// SIGTERM or SIGINT. Never fails; nothing follows.
    Hold = 57 {}
    /// Sets the NUMA memory policy.
    MemoryPolicy = 55 {
        /// See set_mempolicy(2), with its flags.
        mode: u32,
        /// A bit for each node.
        nodes: Bytes<'a>
    }
    /// Lets go of a mount of the host's, where its root stays beneath ours.
    Unmount = 56 {
        /// Absolute, on the host.
        path: &'a CStr
    }
    /// Loads a seccomp filter whose notifications go to a listener, says its
    /// number to the parent, and waits until that has taken it.
    SeccompListener = 50 {
        /// SECCOMP_FILTER_FLAG_* bits.
        flags: u32,
        /// Instructions, eight bytes each.
        filter: Bytes<'a>
    }
}

/// What `knarr-init` says to its parent: four u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// [`Frame::READY`], [`Frame::ERROR`], [`Frame::CONSOLE`], [`Frame::LISTENER`], [`Frame::BORN`],
    /// [`Frame::MAP`] or [`Frame::ASK`].
    pub kind: u32,
    /// Index of the operation, or [`Frame::EARLY`].
    pub op: u32,
    /// The kernel's error number.
    pub errno: i32,
}

impl Frame {
    /// Everything before [`Op::Ready`] is done.
    pub const READY: u32 = 1;
    /// An operation failed; nothing follows.
    pub const ERROR: u32 = 2;
    /// The master of the terminal comes with this frame.
    pub const CONSOLE: u32 = 3;
    /// The listener of a seccomp filter is the descriptor whose number `errno` is.
    pub const LISTENER: u32 = 4;
    /// The process is another from here on: the one whose number `errno` is.
    pub const BORN: u32 = 5;
    /// A mount comes with this frame, for the parent to map.
    pub const MAP: u32 = 6;
    /// The operation needs a descriptor that is to be opened now.
    pub const ASK: u32 = 7;
    /// In place of an operation: what [`NETWORK`] asks for has failed.
    pub const EARLY: u32 = u32::MAX;
    /// Bytes of a frame.
    pub const SIZE: usize = 16;

    /// As bytes.
    #[allow(dead_code)]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.op.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    /// From bytes.
    #[allow(dead_code)]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Self {
            kind: u32::from_ne_bytes(word(0)),
            op: u32::from_ne_bytes(word(4)),
            errno: i32::from_ne_bytes(word(8)),
        }
    }
}
