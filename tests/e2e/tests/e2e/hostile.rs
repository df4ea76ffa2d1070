//! The command line before an engine that is not to be believed (CATALOGUE A13).

use std::{
    io::{BufWriter, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Stdio},
};

use knarr_harness::bin_dir;

/// An engine that answers every request with the same.
struct Liar {
    dir: tempfile::TempDir,
}

impl Liar {
    /// It says some bytes, and then more of the same for as long as somebody reads.
    fn new(answer: &'static [u8], more: &'static [u8]) -> Self {
        Self::that(move |stream| lie(stream, answer, more))
    }

    fn that(lie: impl Fn(UnixStream) + Copy + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    if has_asked(&mut stream) {
                        lie(stream);
                    }
                });
            }
        });
        Self { dir }
    }

    /// Runs `knarr` with little memory; its exit code, and both of its streams.
    fn ask(&self, args: &[&str]) -> (i32, String) {
        // A client that keeps what it is told ends here, not the machine.
        self.ask_with(2_000_000, "2>&1", args)
    }

    /// Runs `knarr` with so many KiB of memory, and its streams where this says.
    fn ask_with(&self, memory: u32, streams: &str, args: &[&str]) -> (i32, String) {
        let output = Command::new("sh")
            .args(["-c", &format!("ulimit -v {memory}; exec \"$0\" \"$@\" {streams}")])
            .arg(bin_dir().join("knarr"))
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}/s", self.dir.path().display()))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("sh");
        let code = output.status.code().unwrap_or(-1);
        (code, String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Reads the head of a request; false where none comes.
fn has_asked(stream: &mut UnixStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
        request.push(byte[0]);
    }
    true
}

fn lie(mut stream: UnixStream, answer: &[u8], more: &[u8]) {
    let more = more.repeat(if more.is_empty() { 0 } else { (64 << 10) / more.len() + 1 });
    let mut going = stream.write_all(answer).is_ok() && !more.is_empty();
    while going {
        going = stream.write_all(&more).is_ok();
    }
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";

#[test]
fn a13_no_answer_is_too_long_to_be_refused() {
    let endless = Liar::new(HEAD, b"[[],[],[],\"x\",");
    for line in [
        &["ps"][..],
        &["images"],
        &["volume", "ls"],
        &["network", "ls"],
        &["inspect", "x"],
        &["info"],
        &["system", "df"],
        &["top", "x"],
        &["wait", "x"],
        &["history", "x"],
        &["container", "prune", "-f"],
    ] {
        let (code, said) = endless.ask(line);
        assert_eq!(code, 1, "{line:?}: {said}");
        assert!(said.contains("longer than"), "{line:?}: {said}");
    }
    // One line that does not end.
    let line = Liar::new(HEAD, b"xxxxxxxxxxxxxxxx");
    for words in [&["events"][..], &["pull", "x"], &["load", "-i", "/dev/null"]] {
        let (code, said) = line.ask(words);
        assert_eq!(code, 1, "{words:?}: {said}");
        assert!(said.contains("has no end"), "{words:?}: {said}");
    }
    // A failure's message, and a head.
    let failure = Liar::new(b"HTTP/1.1 500 Sorry\r\n\r\n", b"sorry ");
    let (code, said) = failure.ask(&["ps"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("with a message (> 1048576 bytes)"), "{said}");
    let head = Liar::new(b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n");
    assert_eq!(head.ask(&["ps"]).0, 1);
}

#[test]
fn a13_many_lines_fill_no_memory() {
    // 100 MB of them, each about another layer.
    let many = Liar::that(|stream| {
        let mut stream = BufWriter::new(stream);
        let long = "x".repeat(1_000);
        let mut say = || {
            stream.write_all(HEAD)?;
            for number in 0..100_000 {
                writeln!(stream, r#"{{"status":"Waiting","id":"{number}{long}"}}"#)?;
            }
            writeln!(stream, r#"{{"error":"enough"}}"#)?;
            stream.flush()
        };
        // Who ends before the end is found out below.
        let _: std::io::Result<()> = say();
    });
    let (code, said) = many.ask_with(60_000, "2>&1 >/dev/null", &["pull", "x"]);
    assert_eq!((code, said.as_str()), (1, "knarr: enough\n"));
}

/// Names and labels come from images; a terminal obeys some of what it is shown.
#[test]
fn a05_a_terminal_is_shown_names_and_not_told_commands() {
    let world = crate::world();
    let image = knarr_harness::ImageBuilder::busybox()
        .unwrap()
        .named("hostile:1")
        .config("Labels", serde_json::json!({"l": "\u{1b}]0;owned\u{7}\u{1b}[2Jx\ny\u{9b}31m"}));
    world.load(&image.docker_archive());
    world.knarr(&["create", "--name", "one", "hostile:1", "printf", "\u{1b}[31m"]).ok();
    let knarr = bin_dir().join("knarr");
    let shown = |words: &str| {
        let line = format!("env DOCKER_HOST={} {} {words}", world.host(), knarr.display());
        world.host_run("script", &["-qec", &line, "/dev/null"])
    };
    for words in [
        "ps -a --no-trunc",
        "ps -a --format '{{.Labels}}'",
        "ps -a --format 'table {{.Labels}}\\t{{.Names}}'",
        "ps -a --format json",
        "inspect one",
        "inspect one --format '{{.Config.Labels.l}}'",
        "image inspect hostile:1 --format '{{index .Config.Labels \"l\"}}'",
        // A message of the engine's that quotes the user's words.
        "run --rm --user \"$(printf '\\033[31mx')\" busybox true",
    ] {
        let run = shown(words);
        let commands = run.stdout.chars().filter(|c| matches!(c, '\u{1b}' | '\u{7}' | '\u{9b}'));
        assert_eq!(commands.count(), 0, "{words}: {:?}", run.stdout);
    }
    let table = shown("ps -a --format 'table {{.Labels}}\\t{{.Names}}'").stdout;
    assert!(table.contains("\\x1b]0;owned\\x07\\x1b[2Jx\\ny\\u009b31m"), "{table:?}");
    // Elsewhere, and where the program itself speaks, everything is as it is.
    let raw = world.knarr(&["ps", "-a", "--format", "{{.Labels}}"]).ok();
    assert!(raw.contains("\u{1b}[2J"), "{raw:?}");
    let own = shown("run --rm busybox printf '\\033[31mred'").stdout;
    assert!(own.contains("\u{1b}[31mred"), "{own:?}");
}
