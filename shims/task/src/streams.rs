//! The standard streams of one process: where its output goes, where its input
//! comes from.
//!
//! ```text
//!  process ──pipe──▶ pump ──▶ log file        (at once)
//!                      ├────▶ FIFO or file    (containerd's, waits for room)
//!                      └────▶ attach clients  (each a bounded queue, waits for room)
//!  process ◀──pipe── stdin ◀── FIFO, attach clients
//! ```
//!
//! Streams exist before the process does, so that clients can attach between
//! `Create` and `Start`, and they outlive it until all was delivered:
//!
//! ```text
//!  held ──flow()──▶ open ──drain()──▶ draining ──▶ finished
//!                    clients no longer hold the pumps up: what is left in the
//!                    pipes is bounded, and goes to the log and the queues
//! ```
//!
//! A client that does not read holds the container's output up, as with
//! Docker, but what was read is in the log before the pump waits. A client that
//! is gone is only detached. A pipe that somebody outside the container's
//! cgroup holds open is given up after a while.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{io::Io, json_log::JsonLog};

/// One read from a process.
const CHUNK: usize = 32 * 1024;
/// A pump waits for a client that has more than this before it.
const QUEUE: usize = 64 * 1024;

/// A FIFO that nobody reads when the process has ended waits so long for a reader.
const LATE_READER: Duration = Duration::from_secs(10);

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Also all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where output goes beside the attached clients.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    /// Docker's log.
    pub(crate) log: Option<JsonLog>,
    /// A FIFO of containerd or a plain file, by stream.
    pub(crate) raw: [Option<Raw>; 2],
}

/// Where bytes go as they are.
#[derive(Debug)]
pub(crate) enum Raw {
    /// Its reader may be slow: the pump waits.
    Fifo(Io),
    /// A plain file.
    File(File),
}

impl Raw {
    async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(data).await,
            Self::File(file) => (&*file).write_all(data),
        }
    }
}

/// The standard streams of one process.
#[derive(Debug)]
pub(crate) struct Streams {
    /// One raw stream instead of two framed ones.
    terminal: bool,
    log: Mutex<Option<JsonLog>>,
    raw: Mutex<[Option<Arc<Raw>>; 2]>,
    feeder: Mutex<Option<Arc<Notify>>>,
    /// Standard input was closed before there was one.
    closed_early: AtomicBool,
    clients: Mutex<Vec<Arc<Client>>>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
    stdin: watch::Sender<Stdin>,
    /// Output is read. Before, what the process says waits in its pipes for those who
    /// attach before its start.
    flowing: watch::Sender<bool>,
    draining: AtomicBool,
    finished: AtomicBool,
}

/// Standard input as it becomes.
#[derive(Debug, Clone)]
pub(crate) enum Stdin {
    /// The process is not there yet.
    Soon,
    /// Writable.
    Open(Arc<Io>),
    /// Closed, or there never was one.
    Closed,
}

impl Streams {
    /// Streams of a process that is still to be made.
    pub(crate) fn new(terminal: bool, outputs: Outputs) -> Arc<Self> {
        Arc::new(Self {
            terminal,
            log: Mutex::new(outputs.log),
            raw: Mutex::new(outputs.raw.map(|raw| raw.map(Arc::new))),
            feeder: Mutex::default(),
            closed_early: AtomicBool::new(false),
            clients: Mutex::default(),
            pumps: Mutex::default(),
            stdin: watch::Sender::new(Stdin::Soon),
            flowing: watch::Sender::new(true),
            draining: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        })
    }

    /// Leaves output where it is until [`flow`](Self::flow).
    pub(crate) fn hold(&self) {
        self.flowing.send_replace(false);
    }

    /// Everybody who wants to hear the first word is attached.
    pub(crate) fn flow(&self) {
        self.flowing.send_replace(true);
    }

    /// Waits for [`flow`](Self::flow).
    pub(crate) async fn flowing(&self) {
        // The sender is ours.
        let _ = self.flowing.subscribe().wait_for(|flowing| *flowing).await;
    }

    /// Takes our ends of the process's pipes.
    pub(crate) fn connect_pipes(
        self: &Arc<Self>,
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<()> {
        let stdin = match stdin {
            Some(fd) => Stdin::Open(Arc::new(Io::new(fd)?)),
            None => Stdin::Closed,
        };
        self.stdin.send_replace(stdin);
        self.pump(Stream::Stdout, Arc::new(Io::new(stdout)?));
        self.pump(Stream::Stderr, Arc::new(Io::new(stderr)?));
        Ok(())
    }

    /// Takes the master side of the process's terminal.
    pub(crate) fn connect_terminal(self: &Arc<Self>, master: OwnedFd) -> io::Result<Arc<Io>> {
        let io = Arc::new(Io::new(master)?);
        self.stdin.send_replace(Stdin::Open(io.clone()));
        self.pump(Stream::Stdout, io.clone());
        Ok(io)
    }

    /// Feeds standard input from a FIFO of containerd, until its writer goes or
    /// [`close_stdin`](Self::close_stdin) is called.
    pub(crate) fn feed(self: &Arc<Self>, fifo: Io) {
        let streams = self.clone();
        let close = Arc::new(Notify::new());
        *lock(&self.feeder) = Some(close.clone());
        tokio::spawn(async move {
            let mut stdin = streams.stdin.subscribe();
            let ended = async {
                let _ = stdin.wait_for(|stdin| matches!(stdin, Stdin::Closed)).await;
            };
            let copied = async {
                loop {
                    let chunk = tokio::select! {
                        biased;
                        chunk = fifo.read_chunk(CHUNK) => chunk?,
                        () = close.notified() => break,
                    };
                    if chunk.is_empty() {
                        return Ok(());
                    }
                    streams.write_stdin(&chunk).await?;
                }
                // What was written before the request to close still counts, also
                // where the request was heard of first.
                while let Some(chunk) = fifo.read_now(CHUNK)?.filter(|chunk| !chunk.is_empty()) {
                    streams.write_stdin(&chunk).await?;
                }
                io::Result::Ok(())
            };
            tokio::select! {
                () = ended => {}
                // Without a writer or without a reader: it has ended.
                _ = copied => {}
            }
            streams.end_stdin();
        });
    }

    /// Standard input, once it is known.
    pub(crate) async fn stdin(&self) -> Option<Arc<Io>> {
        let mut stdin = self.stdin.subscribe();
        let known = stdin.wait_for(|stdin| !matches!(stdin, Stdin::Soon)).await.ok()?;
        match &*known {
            Stdin::Open(io) => Some(io.clone()),
            _ => None,
        }
    }

    /// Writes to standard input, waiting for the process to read.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> io::Result<()> {
        match self.stdin().await {
            Some(io) => io.write_all(data).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Closes standard input after what was written before. A terminal has no
    /// end of input of its own and stays open.
    pub(crate) fn close_stdin(&self) {
        match &*lock(&self.feeder) {
            Some(feeder) => feeder.notify_one(),
            None if matches!(*self.stdin.borrow(), Stdin::Soon) => {
                self.closed_early.store(true, Ordering::Relaxed);
            }
            None => self.end_stdin(),
        }
    }

    /// Does what [`close_stdin`](Self::close_stdin) was asked for before the
    /// process had its streams; what waits in a FIFO is still read.
    pub(crate) fn close_stdin_if_asked(&self) {
        if self.closed_early.swap(false, Ordering::Relaxed) {
            self.close_stdin();
        }
    }

    fn end_stdin(&self) {
        if !self.terminal {
            self.stdin.send_replace(Stdin::Closed);
        }
    }

    /// Adds a client; it is told everything from now on.
    pub(crate) fn attach(&self, want: [bool; 2]) -> Arc<Client> {
        let client = Arc::new(Client::new(want));
        let mut clients = lock(&self.clients);
        clients.retain(|client| !client.is_gone());
        clients.iter().for_each(|client| client.poke.notify_one());
        if self.finished.load(Ordering::Relaxed) {
            client.finish();
        } else {
            clients.push(client.clone());
        }
        client
    }

    /// Somebody is attached.
    pub(crate) fn has_clients(&self) -> bool {
        !lock(&self.clients).is_empty()
    }

    #[cfg(test)]
    pub(crate) fn client_count(&self) -> usize {
        lock(&self.clients).len()
    }

    fn clients(&self) -> Vec<Arc<Client>> {
        lock(&self.clients).clone()
    }

    fn pump(self: &Arc<Self>, stream: Stream, io: Arc<Io>) {
        let streams = self.clone();
        let task = tokio::spawn(async move {
            streams.flowing().await;
            loop {
                match io.read_chunk(CHUNK).await {
                    Ok(chunk) if !chunk.is_empty() => streams.deliver(stream, &chunk).await,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!("read {}: {error}", stream.name());
                        break;
                    }
                }
                // A container that floods its output must not keep the shim
                // from hearing `Kill`.
                tokio::task::yield_now().await;
            }
        });
        lock(&self.pumps).push(task);
    }

    async fn deliver(&self, stream: Stream, data: &[u8]) {
        if let Some(log) = &mut *lock(&self.log) {
            log.write(stream, data);
        }
        let raw = lock(&self.raw)[stream.index()].clone();
        if let Some(raw) = raw {
            // Without a reader there is nobody to tell.
            let _ = raw.write_all(data).await;
        }
        for client in self.clients() {
            if client.want[stream.index()] {
                client.push(self.frame(stream, data), &self.draining).await;
            }
        }
    }

    /// Docker's frame: stream, three zeros, length; or nothing on a terminal.
    fn frame(&self, stream: Stream, data: &[u8]) -> Vec<u8> {
        if self.terminal {
            return data.to_vec();
        }
        let mut frame = Vec::with_capacity(8 + data.len());
        frame.extend_from_slice(&[stream as u8 + 1, 0, 0, 0]);
        frame.extend_from_slice(&(data.len() as u32).to_be_bytes());
        frame.extend_from_slice(data);
        frame
    }

    /// The process is gone: delivers what is left of its output, then closes
    /// everything. `patience` bounds the wait for somebody else who still holds
    /// the pipes open; slow clients get two seconds of it, as with dockerd, and
    /// the rest of their queue while the shim lives.
    pub(crate) async fn drain(&self, patience: Duration) {
        self.stdin.send_replace(Stdin::Closed);
        self.draining.store(true, Ordering::Relaxed);
        self.flow();
        for client in self.clients() {
            client.room.notify_waiters();
        }
        let pumps = std::mem::take(&mut *lock(&self.pumps));
        // A pump that is given up must not read on.
        let guards: Vec<_> = pumps.iter().map(|pump| AbortOnDrop(pump.abort_handle())).collect();
        let ended = timeout(patience, async {
            for pump in pumps {
                let _ = pump.await;
            }
        });
        if ended.await.is_err() {
            tracing::warn!("somebody still holds the output of a process that is gone");
        }
        drop(guards);
        if let Some(mut log) = lock(&self.log).take() {
            log.finish();
        }
        let raw = std::mem::take(&mut *lock(&self.raw));
        raw.into_iter().flatten().for_each(close);
        self.finished.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut *lock(&self.clients));
        clients.iter().for_each(|client| client.finish());
        let sent = async {
            for client in &clients {
                client.sent().await;
            }
        };
        let _ = timeout(Duration::from_secs(2), sent).await;
    }
}

/// Whoever reads the other end sees the end now. Who is about to open it would wait for a
/// writer for ever and lose what was written: containerd does that beside its other work,
/// and may be slower than a short program.
fn close(raw: Arc<Raw>) {
    let writing = match &*raw {
        Raw::Fifo(fifo) => fifo.writing_end(),
        Raw::File(_) => None,
    };
    drop(raw);
    let Some(writing) = writing.filter(|writing| !writing.is_read()) else { return };
    tokio::spawn(timeout(LATE_READER, async move {
        while !writing.is_read() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }));
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One attached client: a queue of what it has not been sent yet.
#[derive(Debug)]
pub(crate) struct Client {
    want: [bool; 2],
    queue: Mutex<Queue>,
    /// There is something to send, or nothing will come.
    ready: Notify,
    /// There is room in the queue, or nobody to send to.
    room: Notify,
    /// Somebody wants to know whether it is still there.
    poke: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    finished: bool,
    gone: bool,
}

impl Client {
    fn new(want: [bool; 2]) -> Self {
        Self {
            want,
            queue: Mutex::default(),
            ready: Notify::new(),
            room: Notify::new(),
            poke: Notify::new(),
        }
    }

    async fn push(&self, frame: Vec<u8>, draining: &AtomicBool) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut queue = lock(&self.queue);
                if queue.gone {
                    return;
                }
                if queue.bytes < QUEUE || draining.load(Ordering::Relaxed) {
                    queue.bytes += frame.len();
                    queue.chunks.push_back(frame);
                    break;
                }
            }
            room.await;
        }
        self.ready.notify_one();
    }

    /// What is to be sent next; none when all was sent. [`done`](Self::done)
    /// follows.
    pub(crate) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if let Some(chunk) = queue.chunks.pop_front() {
                    return Some(chunk);
                }
                if queue.finished || queue.gone {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }

    /// `bytes` of it have been sent.
    pub(crate) fn done(&self, bytes: usize) {
        let mut queue = lock(&self.queue);
        queue.bytes = queue.bytes.saturating_sub(bytes);
        if queue.bytes == 0 {
            queue.chunks = VecDeque::new();
        }
        drop(queue);
        self.room.notify_waiters();
    }

    /// Nobody is there any more.
    pub(crate) fn gone(&self) {
        let mut queue = lock(&self.queue);
        *queue = Queue { finished: queue.finished, gone: true, ..Queue::default() };
        drop(queue);
        self.room.notify_waiters();
        self.ready.notify_one();
    }

    /// Waits until somebody wants to know whether it is still there.
    pub(crate) async fn poked(&self) {
        self.poke.notified().await;
    }

    /// Whether [`gone`](Self::gone) was said.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.queue).gone
    }

    fn finish(&self) {
        lock(&self.queue).finished = true;
        self.ready.notify_one();
    }

    async fn sent(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.is_gone() {
                return;
            }
            room.await;
        }
    }
}

/// Locks; a panic elsewhere has not left these values half-made.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
