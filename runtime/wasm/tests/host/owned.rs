//! A guest that owns its host (CATALOGUE W27): native code in the place of compiled
//! code, in the process of the real host, in the real jail.
//!
//! The text of a module's compiled code is replaced by a program that does system calls
//! for the test: it reads a number and six arguments from standard input and writes the
//! kernel's answer to standard output. It begins when the host calls the guest: after
//! everything that the host gives up.
//!
//! These tests need root (namespaces, an overlay) as the sandbox's own do.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use knarr_sandbox::{Container, CreateOptions, RootfsMount, Stdio, create};
use knarr_sys::landlock::{Ruleset, Tcp};
use libc::c_long;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{HOST, compile};

/// The program, as an assembler makes it of
///
/// ```text
///         sub rsp, 0x4000; and rsp, -4096
///         lea rax, [rsp+0x1000]; mov [rsp], rax       first answer: where there is memory
/// reply:  write(1, rsp, 8)
///         read(0, rsp, 56); if not 56: exit_group(42)
///         rax, rdi, rsi, rdx, r10, r8, r9 = [rsp] …
///         if rax < 0: ebx, ecx = edi, esi; int 0x80   the gate of i386
///         else: syscall
///         mov [rsp], rax; jmp reply
/// ```
const PROGRAM: [u8; 133] = [
    0x48, 0x81, 0xec, 0x00, 0x40, 0x00, 0x00, 0x48, 0x81, 0xe4, 0x00, 0xf0, 0xff, 0xff, 0x48, 0x8d,
    0x84, 0x24, 0x00, 0x10, 0x00, 0x00, 0x48, 0x89, 0x04, 0x24, 0xb8, 0x01, 0x00, 0x00, 0x00, 0xbf,
    0x01, 0x00, 0x00, 0x00, 0x48, 0x89, 0xe6, 0xba, 0x08, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x31, 0xc0,
    0x31, 0xff, 0x48, 0x89, 0xe6, 0xba, 0x38, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x48, 0x83, 0xf8, 0x38,
    0x75, 0x37, 0x48, 0x8b, 0x04, 0x24, 0x48, 0x8b, 0x7c, 0x24, 0x08, 0x48, 0x8b, 0x74, 0x24, 0x10,
    0x48, 0x8b, 0x54, 0x24, 0x18, 0x4c, 0x8b, 0x54, 0x24, 0x20, 0x4c, 0x8b, 0x44, 0x24, 0x28, 0x4c,
    0x8b, 0x4c, 0x24, 0x30, 0x48, 0x85, 0xc0, 0x78, 0x04, 0x0f, 0x05, 0xeb, 0x06, 0x89, 0xfb, 0x89,
    0xf1, 0xcd, 0x80, 0x48, 0x89, 0x04, 0x24, 0xeb, 0xa1, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0xbf, 0x2a,
    0x00, 0x00, 0x00, 0x0f, 0x05,
];
/// In place of a system call's number: through the gate of i386.
const I386: i64 = i64::MIN;
const SIGSYS: u32 = 31;

/// A module's compiled code whose instructions are all ours: wherever it is entered, it
/// slides down to the program.
fn owned_code() -> Vec<u8> {
    let mut code = compile(&wat::parse_str(module()).unwrap()).0.unwrap();
    let word = |at: usize, length: usize| {
        code[at..at + length].iter().rev().fold(0usize, |all, byte| all << 8 | *byte as usize)
    };
    // ELF64: e_shoff, e_shentsize, e_shnum, e_shstrndx; sh_name, sh_offset, sh_size.
    let (table, size, count, names) = (word(40, 8), word(58, 2), word(60, 2), word(62, 2));
    let header = |index: usize| table + index * size;
    let names = word(header(names) + 24, 8);
    let text = (0..count)
        .map(header)
        .find(|header| code[names + word(*header, 4)..].starts_with(b".text\0"));
    let text = text.expect("compiled code has a text");
    let (start, length) = (word(text + 24, 8), word(text + 32, 8));
    assert!(length > PROGRAM.len() + 256, "{length}");
    code[start..start + length].fill(0x90);
    code[start + length - PROGRAM.len()..start + length].copy_from_slice(&PROGRAM);
    code
}

/// Has memory with data, which the host keeps in a file of memory, and some text.
fn module() -> String {
    let work = "(i64.store (i32.const 8) (i64.mul (i64.load (i32.const 8)) (i64.const 3)))\n";
    format!(
        "(module (import \"wasi_snapshot_preview1\" \"fd_write\"
           (func $write (param i32 i32 i32 i32) (result i32)))
         (memory (export \"memory\") 2) (data (i32.const 70000) \"data\")
         (func (export \"_start\") {} (drop (call $write (i32.const 1) (i32.const 0)
           (i32.const 0) (i32.const 16)))))",
        work.repeat(100)
    )
}

/// What a container is made of.
struct Jail {
    dir: TempDir,
    id: String,
    spec: Value,
    launch: Value,
}

impl Jail {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("w27-{}-{number}", std::process::id());
        let dir = TempDir::new().unwrap();
        for name in ["lower/etc", "lower/data", "upper", "work", "volume"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("lower/etc/passwd"), "root:x:0:0::/:\n").unwrap();
        fs::write(dir.path().join("code.cwasm"), owned_code()).unwrap();
        let launch = json!({
            "host": HOST, "code": dir.path().join("code.cwasm"), "abi": "preview1-command",
            "preopens": [
                { "path": "/", "read_only": true }, { "path": "/data", "read_only": false },
            ],
            "network": null, "memory": null,
        });
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": ["guest"], "env": [], "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "mounts": [{
                "destination": "/data", "type": "bind", "source": dir.path().join("volume"),
                "options": ["rbind"],
            }],
            "linux": {
                "cgroupsPath": format!("/knarr-{id}/guest"),
                "namespaces": [
                    { "type": "mount" }, { "type": "pid" }, { "type": "network" },
                    { "type": "ipc" }, { "type": "uts" },
                ],
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            },
        });
        Self { dir, id, spec, launch }
    }

    fn network(mut self, tcp: &[u16]) -> Self {
        self.launch["network"] = json!({ "listen_tcp": tcp, "listen_udp": [], "dns": true });
        self
    }

    fn user(mut self, uid: u32, gid: u32) -> Self {
        self.spec["process"]["user"] =
            json!({ "uid": 0, "gid": 0, "username": format!("{uid}:{gid}") });
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Owned {
        let mut spec = self.spec.clone();
        spec["annotations"] = json!({ "dev.knarr.wasm": self.launch.to_string() });
        let spec: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        let overlay = |name: &str, part: &str| format!("{name}={}", self.path(part).display());
        let rootfs = [RootfsMount {
            kind: "overlay".to_owned(),
            source: "overlay".into(),
            options: vec![
                overlay("lowerdir", "lower"),
                overlay("upperdir", "upper"),
                overlay("workdir", "work"),
            ],
        }];
        let (stdin, to) = std::io::pipe().unwrap();
        let (from, stdout) = std::io::pipe().unwrap();
        let stderr = File::create(self.path("stderr")).unwrap();
        let stdio =
            Stdio::Fds { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        let created = create(CreateOptions {
            id: &self.id,
            bundle: self.dir.path(),
            spec: &spec,
            rootfs: &rootfs,
            stdio,
        });
        let container = created.unwrap().start().unwrap();
        let mut owned = Owned {
            container,
            to: File::from(std::os::fd::OwnedFd::from(to)),
            from: File::from(std::os::fd::OwnedFd::from(from)),
            memory: 0,
        };
        owned.memory = owned.answer().unwrap_or_else(|| {
            panic!("{}", fs::read_to_string(self.path("stderr")).unwrap_or_default())
        });
        owned
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let name = format!("knarr-{}", self.id);
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path().join(&name));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&name));
    }
}

/// The host, owned.
struct Owned {
    container: Container,
    to: File,
    from: File,
    /// The address of 12 KiB that are the program's.
    memory: i64,
}

impl Owned {
    fn answer(&mut self) -> Option<i64> {
        let mut answer = [0; 8];
        self.from.read_exact(&mut answer).ok()?;
        Some(i64::from_ne_bytes(answer))
    }

    /// What the kernel answers; none where it killed the process for asking.
    fn ask(&mut self, number: i64, args: &[i64]) -> Option<i64> {
        let mut request = [0; 56];
        let words = std::iter::once(&number).chain(args);
        for (place, word) in request.chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        self.to.write_all(&request).unwrap();
        self.answer()
    }

    fn call(&mut self, number: c_long, args: &[i64]) -> i64 {
        self.ask(number, args).unwrap_or_else(|| panic!("killed for {number} {args:?}"))
    }

    /// Puts bytes into its memory.
    fn put(&mut self, at: i64, bytes: &[u8]) -> i64 {
        let place = self.memory + at;
        let request = [libc::SYS_read, 0, place, bytes.len() as i64, 0, 0, 0];
        self.to.write_all(&request.map(i64::to_ne_bytes).concat()).unwrap();
        self.to.write_all(bytes).unwrap();
        assert_eq!(self.answer(), Some(bytes.len() as i64));
        place
    }

    /// Reads bytes of its memory.
    fn get(&mut self, at: i64, length: usize) -> Vec<u8> {
        let place = self.memory + at;
        let request = [libc::SYS_write, 1, place, length as i64, 0, 0, 0];
        self.to.write_all(&request.map(i64::to_ne_bytes).concat()).unwrap();
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes).unwrap();
        assert_eq!(self.answer(), Some(length as i64));
        bytes
    }

    fn path(&mut self, path: &str) -> i64 {
        self.put(0, &[path.as_bytes(), b"\0"].concat())
    }

    fn open(&mut self, path: &str, flags: i32) -> i64 {
        let path = self.path(path);
        self.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), 0o600])
    }

    /// How it ended: its exit code, or 128 and the signal.
    fn end(self) -> u32 {
        let Self { container, to, from, .. } = self;
        drop((to, from));
        let status = container.init().wait_blocking().unwrap();
        container.delete().unwrap();
        status.code
    }
}

const EPERM: i64 = -(libc::EPERM as i64);
const ENOSYS: i64 = -(libc::ENOSYS as i64);

/// Everything that ends the process at once, with arguments that would succeed elsewhere
/// where there are such.
fn deadly() -> Vec<(&'static str, i64, Vec<i64>)> {
    let (exec, anonymous) =
        (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let i64s = |args: &[i32]| args.iter().map(|arg| i64::from(*arg)).collect::<Vec<_>>();
    let mut all = vec![
        ("mmap exec", libc::SYS_mmap, vec![0, 4096, exec.into(), anonymous.into(), -1, 0]),
        ("mmap wx", libc::SYS_mmap, vec![0, 4096, 7, anonymous.into(), -1, 0]),
        ("execve", libc::SYS_execve, vec![0, 0, 0]),
        ("execveat", libc::SYS_execveat, vec![-100, 0, 0, 0, libc::AT_EMPTY_PATH.into()]),
        ("memfd_create", libc::SYS_memfd_create, vec![0, 0]),
        ("fork by clone", libc::SYS_clone, i64s(&[libc::SIGCHLD, 0, 0, 0, 0])),
        ("namespace by clone", libc::SYS_clone, vec![0x7002_0000 | 0x0001_0900, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, vec![1, 0]),
        ("tgkill of another", libc::SYS_tgkill, vec![2, 2, 0]),
        ("int 0x80: getpid", I386 | 20, vec![]),
        ("int 0x80: socketcall", I386 | 102, vec![1]),
        ("int 0x80: execve", I386 | 11, vec![]),
        ("x32: getpid", 0x4000_0000 | libc::SYS_getpid, vec![]),
        ("x32: execve", 0x4000_0000 | 520, vec![]),
        ("AF_UNIX", libc::SYS_socket, i64s(&[libc::AF_UNIX, libc::SOCK_STREAM, 0])),
        ("AF_NETLINK", libc::SYS_socket, i64s(&[libc::AF_NETLINK, libc::SOCK_RAW, 0])),
        ("AF_PACKET", libc::SYS_socket, i64s(&[libc::AF_PACKET, libc::SOCK_RAW, 0])),
        ("AF_ALG", libc::SYS_socket, i64s(&[libc::AF_ALG, libc::SOCK_SEQPACKET, 0])),
        ("AF_VSOCK", libc::SYS_socket, i64s(&[libc::AF_VSOCK, libc::SOCK_STREAM, 0])),
        ("raw", libc::SYS_socket, i64s(&[libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP])),
        ("ping", libc::SYS_socket, i64s(&[libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP])),
        ("mptcp", libc::SYS_socket, i64s(&[libc::AF_INET, libc::SOCK_STREAM, 262])),
        ("AF_INET of 64 bits", libc::SYS_socket, vec![1 << 32 | 38, 5, 0]),
    ];
    let bare = [
        ("vfork", libc::SYS_vfork),
        ("fork", libc::SYS_fork),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("kcmp", libc::SYS_kcmp),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("chroot", libc::SYS_chroot),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_setup", libc::SYS_io_setup),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("mknod", libc::SYS_mknod),
        ("mknodat", libc::SYS_mknodat),
        ("chown", libc::SYS_chown),
        ("fchownat", libc::SYS_fchownat),
        ("setxattr", libc::SYS_setxattr),
        ("setuid", libc::SYS_setuid),
        ("setresuid", libc::SYS_setresuid),
        ("setgroups", libc::SYS_setgroups),
        ("capset", libc::SYS_capset),
        ("personality", libc::SYS_personality),
        ("modify_ldt", libc::SYS_modify_ldt),
        ("iopl", libc::SYS_iopl),
        ("ioperm", libc::SYS_ioperm),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("reboot", libc::SYS_reboot),
        ("swapon", libc::SYS_swapon),
        ("syslog", libc::SYS_syslog),
        ("acct", libc::SYS_acct),
        ("quotactl", libc::SYS_quotactl),
        ("sethostname", libc::SYS_sethostname),
        ("clock_settime", libc::SYS_clock_settime),
        ("shmget", libc::SYS_shmget),
        ("msgget", libc::SYS_msgget),
        ("mq_open", libc::SYS_mq_open),
        ("memfd_secret", libc::SYS_memfd_secret),
        ("pkey_mprotect", libc::SYS_pkey_mprotect),
        ("remap_file_pages", libc::SYS_remap_file_pages),
        ("setpriority", libc::SYS_setpriority),
        ("sched_setscheduler", libc::SYS_sched_setscheduler),
        ("setsid", libc::SYS_setsid),
    ];
    all.extend(bare.map(|(name, number)| (name, number, vec![0; 6])));
    all
}

#[test]
fn w27_what_no_guest_needs_kills_an_owned_host() {
    let jail = Jail::new().network(&[]);
    for (name, number, args) in deadly() {
        let mut owned = jail.start();
        assert_eq!(owned.ask(number, &args), None, "{name} was answered");
        assert_eq!(owned.end(), 128 + SIGSYS, "{name}");
    }
}

#[test]
fn w27_an_owned_host_has_no_way_to_new_code() {
    let jail = Jail::new();
    // A page that is writable and holds code, and a file of the volume.
    let mut owned = jail.start();
    let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let page = owned.call(libc::SYS_mmap, &[0, 4096, 3, flags, -1, 0]);
    assert!(page > 0, "{page}");
    assert_eq!(owned.ask(libc::SYS_mprotect, &[page, 4096, 5]), None);
    assert_eq!(owned.end(), 128 + SIGSYS);

    let mut owned = jail.start();
    let file = owned.open("/rootfs/data/code", libc::O_CREAT | libc::O_RDWR);
    assert!(file > 2, "{file}");
    let code = owned.put(0, &[0x90; 64]);
    assert_eq!(owned.call(libc::SYS_write, &[file, code, 64]), 64);
    let private = i64::from(libc::MAP_PRIVATE);
    assert_eq!(owned.ask(libc::SYS_mmap, &[0, 4096, 5, private, file, 0]), None);
    assert_eq!(owned.end(), 128 + SIGSYS);
}

#[test]
fn w27_an_owned_host_is_refused_what_libraries_try() {
    let jail = Jail::new();
    let mut owned = jail.start();
    let memory = owned.memory;
    for (name, number, args, wanted) in [
        ("clone3", libc::SYS_clone3, vec![memory, 88], ENOSYS),
        ("a newer call", 9999, vec![], ENOSYS),
        ("dumpable", libc::SYS_prctl, vec![4, 1], EPERM),
        ("keepcaps", libc::SYS_prctl, vec![8, 1], EPERM),
        ("securebits", libc::SYS_prctl, vec![28, 0], EPERM),
        ("mm", libc::SYS_prctl, vec![35, 1, memory], EPERM),
        ("F_SETOWN", libc::SYS_fcntl, vec![1, 8, 1], EPERM),
        ("F_SETSIG", libc::SYS_fcntl, vec![1, 10, 9], EPERM),
        ("F_NOTIFY", libc::SYS_fcntl, vec![0, 1026, 1], EPERM),
        ("TIOCSTI", libc::SYS_ioctl, vec![0, 0x5412, memory], EPERM),
        ("TIOCSCTTY", libc::SYS_ioctl, vec![0, 0x540e, 1], EPERM),
        ("limits", libc::SYS_prlimit64, vec![0, 7, memory, 0], EPERM),
        ("another's limits", libc::SYS_prlimit64, vec![1 << 20, 7, 0, memory], EPERM),
        ("seccomp", libc::SYS_seccomp, vec![1, 0, 0], EPERM),
        ("socketpair", libc::SYS_socketpair, vec![1, 1, 0, memory], EPERM),
        ("landlock", libc::SYS_landlock_create_ruleset, vec![0, 0, 1], EPERM),
        ("fchmod", libc::SYS_fchmod, vec![0, 0o777], EPERM),
    ] {
        assert_eq!(owned.call(number, &args), wanted, "{name}");
    }
    assert_eq!(owned.end(), 42);

    // Without a network there is no socket at all.
    for number in [libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_setsockopt] {
        let mut owned = jail.start();
        assert_eq!(owned.ask(number, &[0, memory, 16]), None, "{number}");
        assert_eq!(owned.end(), 128 + SIGSYS);
    }
    let mut owned = jail.start();
    assert_eq!(owned.ask(libc::SYS_socket, &[2, 1, 0]), None);
    assert_eq!(owned.end(), 128 + SIGSYS);
}

#[test]
fn w27_an_owned_host_sees_the_granted_trees_and_nothing_else() {
    let jail = Jail::new().network(&[]);
    let mut owned = jail.start();
    let made = owned.open("/rootfs/data/new", libc::O_CREAT | libc::O_RDWR);
    assert!(made > 2, "{made}");
    assert!(owned.open("/rootfs/etc/passwd", libc::O_RDONLY) > 2);
    for path in ["/rootfs/new", "/rootfs/etc/new", "/new", "/etc/new"] {
        assert!(owned.open(path, libc::O_CREAT | libc::O_RDWR) < 0, "{path}");
    }
    for path in
        ["/proc/self/mem", "/proc/1/root", "/sys/kernel", "/dev/null", "/etc/passwd", "/dev/mem"]
    {
        assert!(owned.open(path, libc::O_RDONLY) < 0, "{path}");
        assert!(owned.open(&format!("/rootfs/../../..{path}"), libc::O_RDONLY) < 0, "{path}");
    }
    // Landlock, where the kernel has it: the root holds nothing anyway.
    let root = owned.open("/", libc::O_RDONLY | libc::O_DIRECTORY);
    if landlock() {
        assert_eq!(root, -i64::from(libc::EACCES));
    }
    // What is open: streams, what was granted, what the event loop waits with.
    for fd in 0..64 {
        let stat = owned.memory + 512;
        if owned.call(libc::SYS_fstat, &[fd, stat]) < 0 {
            continue;
        }
        let bytes = owned.get(512 + 24, 4);
        let mode = u32::from_ne_bytes(bytes.try_into().unwrap());
        if mode & libc::S_IFMT == libc::S_IFSOCK {
            // The event loop's pair, which has no name and leads to itself.
            let length = owned.put(600, &110u32.to_ne_bytes());
            let name = owned.memory + 700;
            assert_eq!(owned.call(libc::SYS_getsockname, &[fd, name, length]), 0);
            assert_eq!(owned.get(600, 4), 2u32.to_ne_bytes(), "{fd} has a name");
            assert_eq!(owned.get(700, 2), 1u16.to_ne_bytes(), "AF_UNIX");
        }
        if mode & libc::S_IFMT != libc::S_IFDIR {
            continue;
        }
        let up = owned.path("../../../../proc/1/mem");
        let opened = owned.call(libc::SYS_openat, &[fd, up, libc::O_RDONLY.into(), 0]);
        assert!(opened < 0, "{fd}");
    }
    assert_eq!(owned.end(), 42);
}

#[test]
fn w27_an_owned_host_binds_granted_ports_only() {
    let jail = Jail::new().network(&[7000]);
    let mut owned = jail.start();
    let bind = |owned: &mut Owned, kind: i32, port: u16| {
        let socket = owned.call(libc::SYS_socket, &[2, kind.into(), 0]);
        assert!(socket > 2, "{socket}");
        let address = [&2u16.to_ne_bytes()[..], &port.to_be_bytes(), &[0; 12]].concat();
        let address = owned.put(0, &address);
        owned.call(libc::SYS_bind, &[socket, address, 16])
    };
    assert_eq!(bind(&mut owned, libc::SOCK_STREAM, 7000), 0);
    assert_eq!(bind(&mut owned, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0), 0);
    assert_eq!(bind(&mut owned, libc::SOCK_DGRAM, 0), 0);
    if landlock_of_ports() {
        assert_eq!(bind(&mut owned, libc::SOCK_STREAM, 7001), -i64::from(libc::EACCES));
    }
    // Options that reach into the kernel: a filter of the socket's, TLS, memory of ours.
    let socket = owned.call(libc::SYS_socket, &[2, 1, 0]);
    let value = owned.put(0, &1u64.to_ne_bytes());
    for (level, name) in [(1, 26), (1, 50), (1, 60), (6, 31), (0, 35), (0, 64), (255, 1)] {
        let set = owned.call(libc::SYS_setsockopt, &[socket, level, name, value, 8]);
        assert_eq!(set, EPERM, "{level} {name}");
    }
    assert_eq!(owned.call(libc::SYS_setsockopt, &[socket, 6, 1, value, 4]), 0, "TCP_NODELAY");
    assert_eq!(owned.end(), 42);
}

#[test]
fn w27_the_jail_is_what_the_kernel_says_it_is() {
    let jail = Jail::new().user(1000, 1001);
    std::os::unix::fs::chown(jail.path("volume"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(jail.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut owned = jail.start();
    assert_eq!(owned.call(libc::SYS_getuid, &[]), 1000);
    assert!(owned.open("/rootfs/data/mine", libc::O_CREAT | libc::O_RDWR) > 2);
    let made = fs::metadata(jail.path("volume/mine")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1001), "as a native container's");

    let of = |name: &str| {
        fs::read_to_string(format!("/proc/{}/{name}", owned.container.init().pid())).unwrap()
    };
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // It has a user namespace of its own, in which nobody else is.
    assert_eq!(words(of("uid_map")), ["1000", "1000", "1"]);
    assert_eq!(words(of("gid_map")), ["1001", "1001", "1"]);
    assert_eq!(of("setgroups"), "deny\n");
    let status = of("status");
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Seccomp_filters:\t2",
    ] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    for line in of("mountinfo").lines() {
        let flags = line.split(' ').nth(5).unwrap();
        for flag in ["nosuid", "nodev", "noexec"] {
            assert!(flags.split(',').any(|one| one == flag), "{flag}: {line}");
        }
    }
    let limits = of("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        words(line[name.len()..].to_owned())[..2].join(" ")
    };
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max msgqueue size"), "0 0");
    assert_eq!(limit("Max locked memory"), "0 0");
    // Threads, which are counted for its user namespace alone.
    assert_eq!(limit("Max processes"), "1024 1024");
    let files: u64 = limit("Max open files").split(' ').nth(1).unwrap().parse().unwrap();
    assert!(files <= 16_384, "{files}");
    assert_eq!(owned.end(), 42);
}

#[test]
fn w27_the_user_namespace_takes_nothing_from_root() {
    let jail = Jail::new();
    let mut owned = jail.start();
    assert_eq!(owned.call(libc::SYS_getuid, &[]), 0);
    assert!(owned.open("/rootfs/data/mine", libc::O_CREAT | libc::O_RDWR) > 2);
    assert_eq!(fs::metadata(jail.path("volume/mine")).unwrap().uid(), 0);
    let map = format!("/proc/{}/uid_map", owned.container.init().pid());
    let map = fs::read_to_string(map).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "1"]);
    assert_eq!(owned.end(), 42);
}

/// Whether this kernel has a Landlock that the host uses.
fn landlock() -> bool {
    Ruleset::new(Tcp::Denied).unwrap().is_some()
}

fn landlock_of_ports() -> bool {
    Ruleset::new(Tcp::Denied).unwrap().is_some_and(|ruleset| ruleset.knows_tcp())
}
