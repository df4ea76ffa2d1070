//! `knarrd unpack-layer`: layers are unpacked by a process that may nothing else
//! (CATALOGUE I08, S6). Needs root, as the engine does.

#[path = "../../../tests/harness/src/evil_tar.rs"]
#[allow(dead_code)]
mod evil_tar;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use evil_tar::{EvilTar, Header};
use knarr_store::{Error, Limits, Store, Worker};

struct Fixture {
    scratch: tempfile::TempDir,
    store: Arc<Store>,
}

fn fixture(worker: Option<Worker>) -> Fixture {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap().with_worker(worker);
    Fixture { scratch, store: Arc::new(store) }
}

fn knarrd() -> Option<Worker> {
    let program = env!("CARGO_BIN_EXE_knarrd").into();
    Some(Worker { program, arguments: vec!["unpack-layer".into()] })
}

impl Fixture {
    fn assert_clean(&self) {
        let left: Vec<_> =
            fs::read_dir(self.scratch.path().join("ingest")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Everything that a layer can hold.
fn everything() -> Vec<u8> {
    // POSIX ACL, version 2: user::rw-, user:7:r--, group::r--, mask::r--, other::r--.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 7), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&bits.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut setuid = Header::new(b'0', b"bin/su");
    setuid.owner(0o4755, 1234, 4321).size(3);
    let mut archive = EvilTar::new()
        .directory("bin/")
        .directory("bin/")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("bin/ping", b"ping")
        .entry(&setuid, b"su!")
        .pax(&[("SCHILY.xattr.user.note", b"kept"), ("mtime", b"123.000000456")])
        .file("bin/noted", &[7; 300_000])
        .hard_link("bin/twin", "bin/noted")
        .symlink("sbin", "bin")
        .file("sbin/through", b"a link")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)])
        .node(b'6', "fifo", 0, 0)
        .node(b'3', "null", 1, 3)
        .node(b'4', "disk", 7, 0)
        .file("gone/.wh.file", b"")
        .directory("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("deep/down/here", b"implied");
    // More directories' times than stay in memory.
    for number in 0..3000 {
        archive = archive.directory(&format!("many/{number}-{}", "x".repeat(60)));
    }
    archive.finish()
}

/// All that can be seen of a tree.
fn seen(root: &Path) -> BTreeMap<OsString, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = match () {
            () if kind.is_file() => format!("{:?}", fs::read(&path).unwrap()),
            () if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => String::new(),
        };
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let mut attributes = BTreeMap::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
            attributes.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
        }
        let text = format!(
            "{:o} {}:{} links {} device {:x} time {}.{} {attributes:?} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            if kind.is_dir() { 0 } else { metadata.nlink() },
            if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            // Directories that are only implied have the time of their making.
            if metadata.mtime() > 1_500_000_000 { 0 } else { metadata.mtime() },
            if metadata.mtime() > 1_500_000_000 { 0 } else { metadata.mtime_nsec() },
        );
        if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path.strip_prefix(root).unwrap().as_os_str().to_owned(), text);
    }
    all
}

#[test]
fn i08_a_layer_is_the_same_whoever_unpacks_it() {
    let archive = everything();
    let [here, apart] = [None, knarrd()].map(|worker| {
        let fixture = fixture(worker);
        let unpacked = fixture.store.unpack(archive.as_slice(), &Limits::default()).unwrap();
        let diff_id = unpacked.diff_id();
        let info = unpacked.publish().unwrap();
        fixture.assert_clean();
        (diff_id, info, seen(&fixture.store.layer_path(&diff_id)))
    });
    assert_eq!((here.0, here.1), (apart.0, apart.1));
    assert_eq!(here.2, apart.2);
    let of = |path: &str| &apart.2[&OsString::from(path)];
    assert!(of("fifo").starts_with("10644 0:0"), "{}", of("fifo"));
    assert!(of("fifo").contains("posix_acl_access"), "{}", of("fifo"));
    assert!(of("bin/ping").contains("security.capability"), "{}", of("bin/ping"));
    assert!(of("bin/su").starts_with("104755 1234:4321"), "{}", of("bin/su"));
    assert!(of("gone/file").starts_with("20"), "a whiteout: {}", of("gone/file"));
    assert!(of("opaque").contains("trusted.overlay.opaque"), "{}", of("opaque"));
    assert!(of("bin/noted").contains("time 123.456"), "{}", of("bin/noted"));
}

/// Looks at the process that reads, once it has something to read.
struct Looking<'a> {
    archive: &'a [u8],
    seen: Option<String>,
}

impl Read for Looking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let first = buffer.len().min(512);
        if self.archive.len() <= 1024 && self.seen.is_none() {
            // It waits for the rest: it has read from what was there, after it gave up
            // everything else.
            self.seen = Some(look());
        }
        self.archive.read(&mut buffer[..first])
    }
}

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP.
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31;

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].trim().to_owned()
}

fn child() -> u32 {
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        children.push_str(&fs::read_to_string(task.path().join("children")).unwrap());
    }
    children.split_whitespace().next().expect("a child").parse().unwrap()
}

fn look() -> String {
    let pid = child();
    let wanted = ["NoNewPrivs:\t1", "Max data size             536870912"];
    let text = || {
        ["status", "limits"]
            .map(|name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap())
            .concat()
            + &format!("root {:?}\n", names(&format!("/proc/{pid}/root")))
            + &format!("net {}\n", namespace(pid, "net") != namespace(std::process::id(), "net"))
            + &format!("mnt {}\n", namespace(pid, "mnt") != namespace(std::process::id(), "mnt"))
            + &format!("descriptors {}\n", fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
    };
    let own = filters(&fs::read_to_string("/proc/self/status").unwrap());
    // System calls are the last that it gives up; until then it reads nothing.
    await_answer(|| {
        let text = text();
        let caps = u64::from_str_radix(&field(&text, "CapPrm:"), 16).unwrap();
        let ready = caps & !NEEDED == 0
            && filters(&text) == own + 1
            && wanted.iter().all(|word| text.contains(word));
        ready.then_some(text)
    })
}

/// How many filters of system calls a process has.
fn filters(status: &str) -> u32 {
    field(status, "Seccomp_filters:").parse().unwrap()
}

fn names(directory: &str) -> Vec<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

fn namespace(pid: u32, kind: &str) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Asks again until there is an answer.
fn await_answer<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(std::time::Instant::now() < end, "no answer");
        std::thread::yield_now();
    }
}

#[test]
fn i08_whoever_unpacks_has_no_privilege_but_those_that_it_needs() {
    let fixture = fixture(knarrd());
    let archive = EvilTar::new().directory("d/").file("d/f", &[1; 2000]).finish();
    let mut looking = Looking { archive: &archive, seen: None };
    fixture.store.unpack(&mut looking, &Limits::default()).unwrap();
    let text = looking.seen.unwrap();
    let field = |name: &str| field(&text, name);
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        let caps = u64::from_str_radix(&field(set), 16).unwrap();
        assert_eq!(caps & !NEEDED, 0, "{set} {caps:x}");
    }
    assert_eq!(field("Threads:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("root"), r#"["fs"]"#);
    assert_eq!((field("net"), field("mnt")), ("true".into(), "true".into()));
    let core = text.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let open: usize = field("descriptors").parse().unwrap();
    assert!(open < 12, "{open} descriptors");
}

#[test]
fn i08_what_is_refused_there_is_refused_here_and_nothing_is_left() {
    let fixture = fixture(knarrd());
    let unpack = |archive: &[u8], limits: &Limits| {
        let outcome = fixture.store.unpack(archive, limits).map(|_| ());
        fixture.assert_clean();
        outcome
    };
    let error = unpack(&EvilTar::new().file("../x", b"").finish(), &Limits::default());
    assert!(matches!(error, Err(Error::Entry { .. })), "{error:?}");
    let error = unpack(b"no archive", &Limits::default());
    assert!(matches!(error, Err(Error::Archive(_))), "{error:?}");
    let large = EvilTar::new().file("f", &vec![1; 4 << 20]).finish();
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    let error = unpack(&large, &limits);
    assert!(matches!(error, Err(Error::TooLarge { limit: 1_048_576, .. })), "{error:?}");
    // Entries and what is beyond the ratio are the image's, not one layer's.
    let limits = Limits { entries: 10, ..Limits::default() };
    let seven = |from: u32| {
        (from..from + 7).fold(EvilTar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish()
    };
    unpack(&seven(0), &limits).unwrap();
    let error = unpack(&seven(7), &limits).unwrap_err().to_string();
    assert!(error.contains("too many entries"), "{error}");
    let error = fixture.store.unpack(Broken, &Limits::default()).map(|_| ());
    assert!(matches!(error, Err(Error::Source(_))), "{error:?}");
    fixture.assert_clean();
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn i08_the_engine_survives_whoever_dies_of_a_layer() {
    let archive = everything();
    let of = |script: &str| {
        let arguments = vec!["-c".into(), script.into()];
        let fixture = fixture(Some(Worker { program: "/bin/sh".into(), arguments }));
        let error = fixture.store.unpack(archive.as_slice(), &Limits::default()).map(|_| ());
        fixture.assert_clean();
        error.unwrap_err()
    };
    // Its limits: the layer is at fault, and is not tried again.
    for signal in ["XCPU", "ABRT"] {
        let error = of(&format!("kill -{signal} $$"));
        assert!(matches!(error, Error::Stopped { .. }) && error.is_content(), "{error}");
    }
    // Somebody else killed it, or it is no unpacker: the layer is not to blame.
    for script in ["kill -KILL $$", "exit 1", "echo no answer", "cat > /dev/null"] {
        let error = of(script);
        assert!(matches!(error, Error::Io { .. }) && !error.is_content(), "{error}");
    }
    let missing = Worker { program: "/nowhere".into(), arguments: vec![] };
    let fixture = fixture(Some(missing));
    let error = fixture.store.unpack(archive.as_slice(), &Limits::default()).map(|_| ());
    assert!(matches!(error, Err(Error::Io { .. })), "{error:?}");
    fixture.assert_clean();
}
