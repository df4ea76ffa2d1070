//! Streams and their clients, with pipes in place of a process.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream as Blocking},
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::{io::Io, streams::Outputs};

struct Fake(Arc<Streams>);

impl Lookup for Fake {
    fn streams(&self, exec: &str) -> Option<Arc<Streams>> {
        exec.is_empty().then(|| self.0.clone())
    }
}

/// The process's ends.
struct Process {
    streams: Arc<Streams>,
    lookup: Arc<Fake>,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Process {
    fn new() -> Self {
        let streams = Streams::new(false, Outputs::default());
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) =
            (pipe(), pipe(), pipe());
        streams.connect_pipes(Some(our_stdin), our_stdout, our_stderr).unwrap();
        let file = |fd: OwnedFd| Some(File::from(fd));
        Self {
            lookup: Arc::new(Fake(streams.clone())),
            streams,
            stdin: file(stdin),
            stdout: file(stdout),
            stderr: file(stderr),
        }
    }

    /// A client that has its `ok`.
    async fn attach(&self, request: &AttachRequest) -> Blocking {
        let (ours, theirs) = Blocking::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let theirs = UnixStream::from_std(theirs).unwrap();
        tokio::spawn(client(theirs, self.lookup.clone()));
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        (&ours).write_all(&line).unwrap();
        on_thread(ours, |ours| {
            let mut ok = [0; 3];
            ours.read_exact(&mut ok).unwrap();
            assert_eq!(&ok, b"ok\n");
        })
        .await
    }

    /// It ends.
    async fn end(&mut self) {
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        self.streams.drain(Duration::from_secs(10)).await;
    }
}

fn all() -> AttachRequest {
    AttachRequest { stdin: true, stdout: true, stderr: true, ..AttachRequest::default() }
}

/// Blocking work beside the event loop.
async fn on_thread<T: Send + 'static>(
    mut value: T,
    work: impl FnOnce(&mut T) + Send + 'static,
) -> T {
    tokio::task::spawn_blocking(move || {
        work(&mut value);
        value
    })
    .await
    .unwrap()
}

async fn read_all(client: Blocking) -> Vec<u8> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        (&client).read_to_end(&mut bytes).unwrap();
        bytes
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn frames_are_dockers() {
    let mut process = Process::new();
    let client = process.attach(&all()).await;
    process.stdout.as_mut().unwrap().write_all(b"out").unwrap();
    process.stderr.as_mut().unwrap().write_all(b"er").unwrap();
    process.end().await;
    let bytes = read_all(client).await;
    assert_eq!(bytes, b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x02er");
}

#[tokio::test]
async fn p04_half_close_reaches_the_process() {
    let mut process = Process::new();
    let client = process.attach(&all()).await;
    (&client).write_all(b"input").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let stdin = process.stdin.take().unwrap();
    on_thread(stdin, |stdin| {
        let mut text = String::new();
        stdin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "input");
    })
    .await;
    process.stdout.as_mut().unwrap().write_all(b"x").unwrap();
    process.end().await;
    assert_eq!(read_all(client).await.len(), 9);
}

#[tokio::test]
async fn p05_a_full_client_waits_and_a_dead_one_does_not() {
    let mut process = Process::new();
    let stuck = process.attach(&all()).await;
    let mut stdout = process.stdout.take().unwrap();
    // More than queue, socket and pipe hold together.
    let writer = tokio::task::spawn_blocking(move || stdout.write_all(&vec![b'x'; 4 << 20]));
    let waited = tokio::time::timeout(Duration::from_millis(200), async {
        while !writer.is_finished() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_err(), "nobody held the output up");
    drop(stuck);
    writer.await.unwrap().unwrap();
    process.end().await;
}

#[tokio::test]
async fn x05_the_end_waits_for_slow_clients_only_so_long() {
    let mut process = Process::new();
    let stuck = process.attach(&all()).await;
    let stdout = process.stdout.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(&stdout, 1 << 20).unwrap();
    on_thread(stdout, |stdout| stdout.write_all(&vec![b'x'; 1 << 20]).unwrap()).await;
    process.end().await;
    let bytes = read_all(stuck).await;
    assert_eq!(bytes.iter().filter(|byte| **byte == b'x').count(), 1 << 20);
}

#[tokio::test]
async fn input_that_nobody_read_makes_no_reset() {
    let mut process = Process::new();
    let client = process.attach(&all()).await;
    process.stdin = None;
    (&client).write_all(b"for nobody").unwrap();
    process.end().await;
    assert!(read_all(client).await.is_empty());
}

#[tokio::test]
async fn p05_quiet_clients_that_went_are_forgotten() {
    let process = Process::new();
    for _ in 0..20 {
        let client = process.attach(&all()).await;
        client.shutdown(std::net::Shutdown::Write).unwrap();
        drop(client);
    }
    let mut last = process.attach(&all()).await;
    while process.streams.client_count() > 2 {
        tokio::task::yield_now().await;
        last = process.attach(&all()).await;
    }
    drop(last);
}

#[tokio::test]
async fn input_before_the_request_to_close_counts_though_it_is_heard_of_later() {
    let mut process = Process::new();
    let (fifo, mut client) =
        pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (r, File::from(w))).unwrap();
    process.streams.feed(Io::new(fifo).unwrap());
    // It waits for its first readiness now; the event loop has no turn from here on.
    tokio::task::yield_now().await;
    client.write_all(b"grain\n").unwrap();
    process.streams.close_stdin();
    let stdin = process.stdin.take().unwrap();
    on_thread(stdin, |stdin| {
        let mut text = String::new();
        stdin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "grain\n");
    })
    .await;
    process.end().await;
}
