//! What a container wrote, read back from its log files.
//!
//! The shim writes Docker's json-file format: one JSON object a line, `json.log`
//! grows, a full one becomes `json.log.1`, that one `.2`, and so on. Reading
//! begins at the oldest file. Following waits for inotify, goes over to the new
//! file when the old one was renamed, and ends with the container's run: the
//! shim has written everything before it reports the exit.
//!
//! Files are read on threads that may wait: a log is as long as its limit allows, and
//! the disk as slow as it likes. Waiting for more costs no thread.
//!
//! **How it fails.** A line that is no JSON (torn by a full disk) is skipped; a
//! file that is missing counts as empty.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    pin::Pin,
};

use bytes::Bytes;
use rustix::fs::inotify;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;

use crate::{
    Error, Result,
    engine::Engine,
    facades::blocking,
    failpoint,
    view::{LogLine, LogOptions, Logs, OutputStream},
};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// A JSON line holds at most 16 KiB of output, each byte at most six characters.
const LONGEST: usize = 256 << 10;

impl Engine {
    /// What it wrote.
    ///
    /// # Errors
    /// `NotSupported` with log driver `none`.
    pub async fn logs(&self, key: &str, options: LogOptions) -> Result<Logs> {
        let container = self.find(key)?;
        if !options.stdout && !options.stderr {
            return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
        }
        let spec = container.spec();
        let Some(path) = self.log_path(&container) else {
            return Err(Error::not_supported("configured logging driver does not support reading"));
        };
        let running = container.is_running_now();
        let follow = options.follow && running;
        let end = Box::pin(container.end_of_run());
        let reader = Reader::open(path, options, follow.then_some(end as _)).await?;
        let lines = futures_util::stream::unfold(reader, |mut reader| async move {
            reader.next().await.map(|line| (line, reader))
        });
        Ok(Logs { tty: spec.tty, lines: Box::pin(lines) })
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(default)]
    log: String,
    #[serde(default, borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(default)]
    time: String,
}

type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Reads lines, file after file, and waits for more.
struct Reader {
    /// None while a thread reads.
    files: Option<Files>,
    /// Ends with the run; none where nothing is followed.
    end: Option<End>,
    /// The run is over: what is there now is all there will be.
    last_round: bool,
    watch: Option<AsyncFd<OwnedFd>>,
}

/// The files of a log, as far as they were read. Everything here blocks.
struct Files {
    path: PathBuf,
    options: LogOptions,
    /// The file being read; its inode tells whether it was renamed.
    file: Option<File>,
    inode: u64,
    /// Older files are to be read first.
    rest: VecDeque<File>,
    /// Bytes that are no whole line yet.
    partial: Vec<u8>,
    ready: VecDeque<LogLine>,
    finished: bool,
}

impl Reader {
    async fn open(path: PathBuf, options: LogOptions, end: Option<End>) -> Result<Self> {
        let watch = match &end {
            Some(_) => Some(watch(&path)?),
            None => None,
        };
        let files = blocking(move || {
            failpoint::hit("logs.read")?;
            Files::open(path, options)
        });
        Ok(Self { files: Some(files.await??), last_round: end.is_none(), end, watch })
    }

    async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            // None where a thread failed, which was told.
            let files = self.files.as_mut()?;
            if let Some(line) = files.ready.pop_front() {
                return Some(Ok(line));
            }
            if files.finished {
                return None;
            }
            match self.read_on().await {
                Ok(true) => {}
                Ok(false) => self.wait_for_more().await,
                Err(error) => {
                    self.files = None;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Reads until there is a line or nothing more; answers whether there was anything.
    async fn read_on(&mut self) -> Result<bool> {
        let mut files = self.files.take().ok_or_else(|| Error::internal("read a log twice"))?;
        let (files, outcome) = blocking(move || {
            let outcome = files.read_on();
            (files, outcome)
        })
        .await?;
        let failed = |error| Error::io(format!("read {}", files.path.display()), error);
        let outcome = outcome.map_err(failed);
        self.files = Some(files);
        outcome
    }

    /// All that is there was read: what is to come, or the end.
    async fn wait_for_more(&mut self) {
        let Some(files) = &mut self.files else { return };
        let (Some(end), Some(watch), false) = (&mut self.end, &self.watch, self.last_round) else {
            files.finished = true;
            return;
        };
        let until = files.options.until;
        let over = async {
            match until {
                Some(until) => {
                    let left = until.duration_since(jiff::Timestamp::now());
                    let left = std::time::Duration::try_from(left).unwrap_or_default();
                    tokio::time::sleep(left).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end => self.last_round = true,
            () = over => self.last_round = true,
            ready = watch.readable() => if let Ok(mut ready) = ready {
                drain(watch);
                ready.clear_ready();
            },
        }
    }
}

impl Files {
    fn open(path: PathBuf, options: LogOptions) -> Result<Self> {
        let mut files = open_all(&path);
        if let Some(lines) = options.tail {
            skip_to_tail(&mut files, lines)
                .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        }
        let mut rest: VecDeque<File> = files.into();
        let file = rest.pop_front();
        let inode =
            file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.ino());
        Ok(Self {
            path,
            options,
            file,
            inode,
            rest,
            partial: Vec::new(),
            ready: VecDeque::new(),
            finished: false,
        })
    }

    /// Reads on, and goes over to the next file at the end of one; answers whether there
    /// was anything.
    fn read_on(&mut self) -> std::io::Result<bool> {
        if self.fill()? {
            return Ok(true);
        }
        let next = self.rest.pop_front().or_else(|| self.successor());
        let more = next.is_some();
        if let Some(next) = next {
            self.take(next);
        }
        Ok(more)
    }

    /// Reads a chunk; answers whether there was anything.
    fn fill(&mut self) -> std::io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut chunk = vec![0; CHUNK];
        let length = file.read(&mut chunk)?;
        if length == 0 {
            return Ok(false);
        }
        self.partial.extend_from_slice(&chunk[..length]);
        let mut begin = 0;
        while let Some(at) = self.partial[begin..].iter().position(|&byte| byte == b'\n') {
            let line = parse(&self.partial[begin..begin + at]);
            begin += at + 1;
            if let Some(line) = line {
                if self.too_late(&line) {
                    self.finished = true;
                    break;
                }
                if self.wanted(&line) {
                    self.ready.push_back(line);
                }
            }
        }
        self.partial.drain(..begin);
        if self.partial.len() > LONGEST {
            self.partial.clear();
        }
        Ok(true)
    }

    fn wanted(&self, line: &LogLine) -> bool {
        let stream = match line.stream {
            OutputStream::Stdout => self.options.stdout,
            OutputStream::Stderr => self.options.stderr,
        };
        stream
            && self.options.since.is_none_or(|since| {
                line.time.parse::<jiff::Timestamp>().is_ok_and(|time| time >= since)
            })
    }

    fn too_late(&self, line: &LogLine) -> bool {
        self.options.until.is_some_and(|until| {
            line.time.parse::<jiff::Timestamp>().is_ok_and(|time| time > until)
        })
    }

    fn take(&mut self, file: File) {
        self.inode = file.metadata().map_or(0, |meta| meta.ino());
        self.file = Some(file);
        self.partial.clear();
    }

    /// The file after the one that was read, if that one was renamed meanwhile.
    fn successor(&self) -> Option<File> {
        let current = File::open(&self.path).ok()?;
        let inode = |file: &File| file.metadata().map_or(0, |meta| meta.ino());
        if inode(&current) == self.inode {
            return None;
        }
        if self.file.is_none() {
            return Some(current);
        }
        // It may have been renamed more than once: then there are files between.
        let mut newer = current;
        for number in 1.. {
            let Ok(older) = File::open(rotated(&self.path, number)) else { break };
            if inode(&older) == self.inode {
                break;
            }
            newer = older;
        }
        Some(newer)
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let record: Record<'_> = serde_json::from_slice(line).ok()?;
    let stream = match &*record.stream {
        "stderr" => OutputStream::Stderr,
        _ => OutputStream::Stdout,
    };
    Some(LogLine { stream, time: record.time, bytes: Bytes::from(record.log) })
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// All files of a log, the oldest first.
fn open_all(path: &Path) -> Vec<File> {
    let mut files: Vec<File> = File::open(path).into_iter().collect();
    for number in 1.. {
        let Ok(file) = File::open(rotated(path, number)) else { break };
        files.push(file);
    }
    files.reverse();
    files
}

/// Leaves only files and positions of the last `lines` lines.
fn skip_to_tail(files: &mut Vec<File>, lines: usize) -> std::io::Result<()> {
    let mut missing = lines;
    let mut keep = Vec::new();
    while let Some(mut file) = files.pop() {
        if missing == 0 && !keep.is_empty() {
            break;
        }
        let position = tail_of(&mut file, &mut missing)?;
        file.seek(SeekFrom::Start(position))?;
        keep.push(file);
    }
    keep.reverse();
    *files = keep;
    Ok(())
}

/// Where the last `missing` lines of a file begin; counts down what it has.
fn tail_of(file: &mut File, missing: &mut usize) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if *missing == 0 {
        return Ok(end);
    }
    let mut block = vec![0; CHUNK];
    let mut position = end;
    while position > 0 {
        let length = position.min(CHUNK as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..usize::try_from(length).unwrap_or(CHUNK)];
        file.read_exact(block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            let offset = position + at as u64;
            // The last line feed ends the last line, every other one begins a line.
            if *byte == b'\n' && offset + 1 < end {
                *missing -= 1;
                if *missing == 0 {
                    return Ok(offset + 1);
                }
            }
        }
    }
    if end > 0 {
        *missing -= 1;
    }
    Ok(0)
}

#[expect(deprecated, reason = "the successors are unsafe; an OwnedFd cannot be closed behind us")]
/// Watches the directory: the file grows, or is renamed and made anew.
fn watch(path: &Path) -> Result<AsyncFd<OwnedFd>> {
    let failed = |error: std::io::Error| Error::io("follow the log", error);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|error| failed(error.into()))?;
    let interest = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM;
    inotify::add_watch(&fd, directory, interest).map_err(|error| failed(error.into()))?;
    AsyncFd::new(fd).map_err(failed)
}

fn drain(watch: &AsyncFd<OwnedFd>) {
    let mut buffer = [0; 4096];
    while rustix::io::read(watch.get_ref(), &mut buffer).is_ok_and(|length| length > 0) {}
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
