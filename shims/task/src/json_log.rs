//! Docker's json-file log: one JSON object a line, rotated by size.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-11-23T19:34:38.123456789Z"}
//!
//! json.log  ──full──▶  json.log.1  ──▶  json.log.2  ──▶  (removed)
//! ```
//!
//! A line of output longer than 16 KiB becomes several objects, of which only
//! the last ends in `\n` and which share one time (moby
//! `daemon/logger/copier.go`); the cut never falls into a character. Escapes are
//! Go's (moby `daemon/logger/jsonfilelog/jsonlog/jsonlogbytes.go`): `<`, `>`,
//! `&` and U+2028/9 as `\u…`, and what is no UTF-8 as `\ufffd`.
//!
//! Failure: a write that fails (no space left) is counted and forgotten, the
//! file is cut back to its last whole line, and the container goes on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use knarr_model::task::LogTarget;

use crate::streams::Stream;

/// The longest piece of a line in one object, as Docker has it.
const PIECE: usize = 16 * 1024;
/// Encoded lines are written together up to about this many bytes.
const BATCH: usize = 64 * 1024;

/// The log of one task.
#[derive(Debug)]
pub(crate) struct JsonLog {
    file: File,
    path: PathBuf,
    size: u64,
    max_size: u64,
    max_files: u32,
    /// What follows the last newline, by stream.
    pending: [Pending; 2],
    clock: Clock,
    /// Writes that failed since the log was opened.
    lost: u64,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Time of the first piece, once one was written.
    since: Option<Timestamp>,
}

impl JsonLog {
    /// Opens the log for appending; `None` where nothing is to be kept.
    pub(crate) fn open(target: &LogTarget) -> io::Result<Option<Self>> {
        let Some(path) = target.path.clone() else { return Ok(None) };
        let file = open(&path, false)?;
        let size = file.metadata()?.len();
        Ok(Some(Self {
            file,
            path,
            size,
            max_size: if target.max_size == 0 { u64::MAX } else { target.max_size },
            max_files: target.max_files.max(1),
            pending: Default::default(),
            clock: Clock::default(),
            lost: 0,
        }))
    }

    /// Takes what a process wrote; whole lines and pieces reach the file now.
    pub(crate) fn write(&mut self, stream: Stream, mut data: &[u8]) {
        let mut batch = Vec::new();
        while !data.is_empty() {
            let pending = &mut self.pending[stream.index()];
            let room = PIECE - pending.bytes.len();
            let newline = data[..data.len().min(room + 1)].iter().position(|b| *b == b'\n');
            let (line, rest) = match newline {
                Some(at) => (&data[..=at], &data[at + 1..]),
                None if data.len() < room => {
                    pending.bytes.extend_from_slice(data);
                    break;
                }
                None => data.split_at(room),
            };
            data = rest;
            let time = pending.since.unwrap_or_else(Timestamp::now);
            let mut whole = std::mem::take(&mut pending.bytes);
            let bytes = if whole.is_empty() {
                line
            } else {
                whole.extend_from_slice(line);
                &whole
            };
            let cut = if newline.is_some() { bytes.len() } else { last_boundary(bytes) };
            pending.since = newline.is_none().then_some(time);
            pending.bytes = bytes[cut..].to_vec();
            self.line(&mut batch, stream, &bytes[..cut], time);
        }
        self.flush(&mut batch);
    }

    /// Writes what has no newline behind it: there will be no more.
    pub(crate) fn finish(&mut self) {
        let mut batch = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Pending { bytes, since } = std::mem::take(&mut self.pending[stream.index()]);
            if !bytes.is_empty() {
                let time = since.unwrap_or_else(Timestamp::now);
                self.line(&mut batch, stream, &bytes, time);
            }
        }
        self.flush(&mut batch);
    }

    fn line(&mut self, batch: &mut Vec<u8>, stream: Stream, text: &[u8], time: Timestamp) {
        let start = batch.len();
        batch.extend_from_slice(b"{\"log\":\"");
        escape(batch, text);
        batch.extend_from_slice(b"\",\"stream\":\"");
        batch.extend_from_slice(stream.name().as_bytes());
        batch.extend_from_slice(b"\",\"time\":\"");
        self.clock.format(batch, time);
        batch.extend_from_slice(b"\"}\n");
        let before = self.size + start as u64;
        if before > 0 && self.size + batch.len() as u64 > self.max_size {
            let mut line = batch.split_off(start);
            self.flush(batch);
            self.rotate();
            batch.append(&mut line);
        } else if batch.len() >= BATCH {
            self.flush(batch);
        }
    }

    fn flush(&mut self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        match self.file.write_all(batch) {
            Ok(()) => self.size += batch.len() as u64,
            Err(error) => {
                // Half a line would spoil the next one.
                let _ = self.file.set_len(self.size);
                self.lost += 1;
                if self.lost == 1 {
                    tracing::warn!("write log {}: {error}", self.path.display());
                }
            }
        }
        batch.clear();
    }

    fn rotate(&mut self) {
        let result = (|| {
            if self.max_files > 1 {
                for n in (1..self.max_files - 1).rev() {
                    rename(&numbered(&self.path, n), &numbered(&self.path, n + 1))?;
                }
                rename(&self.path, &numbered(&self.path, 1))?;
            }
            open(&self.path, true)
        })();
        match result {
            Ok(file) => {
                self.file = file;
                self.size = 0;
            }
            // The old file goes on growing by what can still be written.
            Err(error) => tracing::warn!("rotate log {}: {error}", self.path.display()),
        }
    }
}

fn open(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // `O_APPEND` also after truncation: readers and `set_len` may move the end.
    options.create(true).append(true).mode(0o640);
    let file = options.open(path)?;
    if truncate {
        file.set_len(0)?;
    }
    Ok(file)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Where a piece may end without cutting a character: its end, or the start of
/// a character that is not complete.
fn last_boundary(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        match bytes[at] {
            0x80..=0xbf => continue,
            first @ 0xc2..=0xf4 => {
                let length = if first < 0xe0 { 2 } else { 3 + usize::from(first >= 0xf0) };
                return if at + length > bytes.len() { at } else { bytes.len() };
            }
            _ => break,
        }
    }
    bytes.len()
}

/// Appends `text` as the inside of a JSON string, with Go's choice of escapes.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        let bytes = valid.as_bytes();
        let mut start = 0;
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            let length = match byte {
                b'"' | b'\\' | b'<' | b'>' | b'&' | 0..0x20 => 1,
                // U+2028 and U+2029: legal JSON, but a line's end to JavaScript.
                0xe2 if matches!(bytes[at..], [_, 0x80, 0xa8 | 0xa9, ..]) => 3,
                _ => {
                    at += 1;
                    continue;
                }
            };
            out.extend_from_slice(&bytes[start..at]);
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                0xe2 => {
                    out.extend_from_slice(b"\\u202");
                    out.push(if bytes[at + 2] == 0xa8 { b'8' } else { b'9' });
                }
                _ => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                }
            }
            at += length;
            start = at;
        }
        out.extend_from_slice(&bytes[start..]);
        // Go replaces byte by byte.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// Times as text; the date is only worked out once a second.
#[derive(Debug, Default)]
struct Clock {
    second: i64,
    text: String,
}

impl Clock {
    /// Go's `time.RFC3339Nano`: no zeros at the end of the fraction.
    fn format(&mut self, out: &mut Vec<u8>, time: Timestamp) {
        let second = time.as_second();
        if self.text.is_empty() || self.second != second {
            self.second = second;
            self.text = Timestamp::from_second(second).unwrap_or_default().to_string();
            self.text.pop(); // the `Z`
        }
        out.extend_from_slice(self.text.as_bytes());
        let nanos = time.subsec_nanosecond();
        if nanos > 0 {
            let digits = format!(".{nanos:09}");
            out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
        }
        out.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &Path, max_size: u64, max_files: u32) -> LogTarget {
        LogTarget { path: Some(path.to_owned()), max_size, max_files }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn escaped(text: &[u8]) -> String {
        let mut out = Vec::new();
        escape(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_are_those_of_go() {
        assert_eq!(
            escaped(b"a\"b\\c\n\r\t\x00\x1f\x7f"),
            "a\\\"b\\\\c\\n\\r\\u0009\\u0000\\u001f\x7f"
        );
        assert_eq!(escaped(b"<&>"), "\\u003c\\u0026\\u003e");
        assert_eq!(escaped("é\u{2028}\u{2029}€😀".as_bytes()), "é\\u2028\\u2029€😀");
        assert_eq!(escaped(b"x\xff\xfey\xe2\x82"), "x\\ufffd\\ufffdy\\ufffd\\ufffd");
    }

    #[test]
    fn times_are_those_of_go() {
        let mut clock = Clock::default();
        for (nanos, text) in [
            (0, "2026-11-23T19:34:38Z"),
            (120_000_000, "2026-11-23T19:34:38.12Z"),
            (1, "2026-11-23T19:34:38.000000001Z"),
        ] {
            let mut out = Vec::new();
            let second = "2026-11-23T19:34:38Z".parse::<Timestamp>().unwrap().as_second();
            clock.format(&mut out, Timestamp::new(second, nanos).unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn lines_are_written_whole_and_streams_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let mut log = JsonLog::open(&target(&path, 0, 1)).unwrap().unwrap();
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"err\n");
        assert_eq!(lines(&path).len(), 2, "half a line waits");
        log.write(Stream::Stdout, b"o\nthree");
        log.finish();
        let got: Vec<(String, String)> = lines(&path)
            .iter()
            .map(|l| (l["log"].as_str().unwrap().into(), l["stream"].as_str().unwrap().into()))
            .collect();
        let want =
            [("one\n", "stdout"), ("err\n", "stderr"), ("two\n", "stdout"), ("three", "stdout")];
        assert_eq!(got, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn x04_long_lines_are_cut_into_pieces_that_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        for chunk in [1, 7, 4096, 16 * 1024, 100_000] {
            let mut log = JsonLog::open(&target(&path, 0, 1)).unwrap().unwrap();
            let text = format!("{}\nend", "aé€😀".repeat(8000));
            for part in text.as_bytes().chunks(chunk) {
                log.write(Stream::Stdout, part);
            }
            log.finish();
            let lines = lines(&path);
            let joined: String = lines.iter().map(|l| l["log"].as_str().unwrap()).collect();
            assert!(joined == text, "chunk {chunk}");
            assert_eq!(lines.len(), 80_000 / PIECE + 2, "chunk {chunk}");
            assert_eq!(lines[0]["time"], lines[1]["time"]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_line_of_exactly_one_piece_keeps_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let mut log = JsonLog::open(&target(&path, 0, 1)).unwrap().unwrap();
        let mut text = vec![b'x'; PIECE];
        text.push(b'\n');
        log.write(Stream::Stdout, &text);
        log.finish();
        let joined: String =
            lines(&path).iter().map(|l| l["log"].as_str().unwrap().to_owned()).collect();
        assert_eq!(joined.as_bytes(), text);
    }

    #[test]
    fn x04_rotation_caps_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let mut log = JsonLog::open(&target(&path, 1000, 3)).unwrap().unwrap();
        for n in 0..200 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["json.log", "json.log.1", "json.log.2"]);
        let mut last = Vec::new();
        for n in (0..3).rev() {
            let path = if n == 0 { path.clone() } else { numbered(&path, n) };
            assert!(fs::metadata(&path).unwrap().len() <= 1000);
            last.extend(lines(&path).into_iter().map(|l| l["log"].as_str().unwrap().to_owned()));
        }
        let first = 200 - last.len();
        assert!(last.iter().enumerate().all(|(n, l)| *l == format!("line {}\n", first + n)));
    }

    #[test]
    fn one_file_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let mut log = JsonLog::open(&target(&path, 300, 1)).unwrap().unwrap();
        for n in 0..50 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(fs::metadata(&path).unwrap().len() <= 300);
        assert_eq!(lines(&path).last().unwrap()["log"], "line 49\n");
    }

    #[test]
    fn k06_a_full_disk_is_survived() {
        let mut log = JsonLog::open(&target(Path::new("/dev/full"), 0, 1)).unwrap().unwrap();
        log.write(Stream::Stdout, b"one\ntwo\n");
        assert_eq!(log.lost, 1);
    }
}
