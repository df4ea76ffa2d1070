//! What the stream addresses of a request mean.
//!
//! | address | meaning |
//! |---|---|
//! | empty | nothing: `/dev/null`, or output for attached clients only |
//! | `knarr-log:{LogTarget}` | Docker's json-file log, and attached clients |
//! | `knarr-attach:` | attached clients only; as stdin: a pipe kept open for them |
//! | `file://PATH` | appended to a file |
//! | `PATH`, `fifo://PATH` | a FIFO that containerd made |
//! | `binary://PATH?key=value` | a program that keeps the logs (containerd only) |
//!
//! Anything else (`npipe://`, `stream://` …) is refused by name.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use knarr_model::task::{ATTACH_SCHEME, LOG_SCHEME, LogTarget};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    error::{Error, Result},
    io::Io,
    json_log::JsonLog,
    streams::{Outputs, Raw},
};

/// The addresses of one process, as they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose streams they are, for a program that keeps logs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
    /// The container, or the exec.
    pub(crate) id: &'a str,
}

/// A program that keeps logs says so soon that it is ready.
const READY: Duration = Duration::from_secs(10);

/// Where standard input comes from.
#[derive(Debug)]
pub(crate) enum Input {
    /// `/dev/null`.
    Null,
    /// Attached clients.
    Attach,
    /// A FIFO.
    Fifo(Io),
}

impl Addresses {
    /// Somebody keeps what the process writes even when nobody is attached.
    pub(crate) fn keeps_output(&self) -> bool {
        let kept = |address: &str| !address.is_empty() && !address.starts_with(ATTACH_SCHEME);
        kept(&self.stdout) || kept(&self.stderr)
    }

    /// Opens what the addresses name.
    pub(crate) fn open(&self, owner: Option<Owner<'_>>) -> Result<(Input, Outputs)> {
        let input = if self.stdin.is_empty() {
            Input::Null
        } else if self.stdin.starts_with(ATTACH_SCHEME) {
            Input::Attach
        } else {
            Input::Fifo(fifo(path(&self.stdin)?, OFlags::RDONLY)?)
        };
        let mut outputs = Outputs::default();
        if let (Some(uri), Some(owner)) = (self.stdout.strip_prefix("binary://"), owner) {
            // One program for both streams, whatever the other address says.
            outputs.raw = logger(uri, owner)?.map(Some);
            return Ok((input, outputs));
        }
        for (index, address) in [&self.stdout, &self.stderr].into_iter().enumerate() {
            if address.is_empty() || address.starts_with(ATTACH_SCHEME) {
                continue;
            }
            if let Some(target) = address.strip_prefix(LOG_SCHEME) {
                // Both streams go into one log.
                if outputs.log.is_none() {
                    outputs.log = log(target)?;
                }
            } else if let Some(path) = address.strip_prefix("file://") {
                outputs.raw[index] = Some(Raw::File(append(path)?));
            } else {
                outputs.raw[index] = Some(Raw::Fifo(fifo(path(address)?, OFlags::RDWR)?));
            }
        }
        Ok((input, outputs))
    }
}

fn log(target: &str) -> Result<Option<JsonLog>> {
    let target: LogTarget = serde_json::from_str(target)
        .map_err(|error| Error::invalid(format!("invalid log target: {error}")))?;
    JsonLog::open(&target).map_err(|error| {
        let path = target.path.unwrap_or_default();
        Error::internal(format_args!("open log {}", path.display()), error)
    })
}

/// Starts a program that reads standard output from descriptor 3, standard error
/// from 4, and closes 5 when it is ready (containerd's `runtime/v2/logging`).
fn logger(uri: &str, owner: Owner<'_>) -> Result<[Raw; 2]> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("log program {path:?} is not an absolute path")));
    }
    let failed =
        |error: std::io::Error| Error::internal(format_args!("start log program {path}"), error);
    let pipe =
        || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()));
    let ((their_out, out), (their_err, err), (ready, their_ready)) = (pipe()?, pipe()?, pipe()?);
    let mut command = Command::new(decoded(path)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        command.arg(decoded(key)?);
        if !value.is_empty() {
            command.arg(decoded(value)?);
        }
    }
    command
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // It ends by itself when both streams do, and is reaped with the orphans.
    knarr_sys::spawn_with(command, vec![their_out, their_err, their_ready]).map_err(failed)?;
    let mut fds = [rustix::event::PollFd::new(&ready, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: READY.as_secs() as i64, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&patience)) {
        Ok(0) => {
            return Err(Error::internal(
                format_args!("log program {path}"),
                "it did not become ready",
            ));
        }
        Ok(_) => {}
        Err(error) => return Err(failed(error.into())),
    }
    Ok([Raw::Fifo(Io::new(out).map_err(failed)?), Raw::Fifo(Io::new(err).map_err(failed)?)])
}

/// Percent signs of a URI.
fn decoded(text: &str) -> Result<String> {
    let hex = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).ok().filter(|_| pair.len() == 2)?;
        u8::from_str_radix(digits, 16).ok()
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.as_bytes().get(at) {
        let code = (*byte == b'%').then(|| text.as_bytes().get(at + 1..at + 3).and_then(hex));
        at += if code.is_some() { 3 } else { 1 };
        let malformed = || Error::invalid(format!("malformed log address {text:?}"));
        bytes.push(code.unwrap_or(Some(*byte)).ok_or_else(malformed)?);
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| Error::invalid(format!("malformed log address {text:?}")))
}

fn path(address: &str) -> Result<&str> {
    let address = address.strip_prefix("fifo://").unwrap_or(address);
    match address.split_once("://") {
        None if address.starts_with('/') => Ok(address),
        _ => Err(Error::unimplemented(format!("streams to {address:?} are not supported"))),
    }
}

fn append(path: &str) -> Result<File> {
    let path = &decoded(path)?;
    if let Some(parent) = std::path::Path::new(path).parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::internal(format_args!("make {}", parent.display()), error))?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options.open(path).map_err(|error| Error::internal(format_args!("open {path}"), error))
}

/// Opens a FIFO without waiting for the other side.
///
/// Output is opened for both directions, so that it neither ends nor breaks when
/// its reader comes and goes (containerd's restart). Input is opened to be read
/// only: it ends when its last writer has gone, as with containerd's own shim,
/// and not before the first one came.
fn fifo(path: &str, direction: OFlags) -> Result<Io> {
    let flags = direction | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(|fd| {
            let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
            if kind == rustix::fs::FileType::Fifo { Ok(fd) } else { Err(Errno::INVAL) }
        })
        .map_err(std::io::Error::from)
        .and_then(Io::new)
        .map_err(|error| Error::internal(format_args!("open fifo {path}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_decoded() {
        assert_eq!(decoded("/a%20b/c").unwrap(), "/a b/c");
        assert_eq!(decoded("plain+text").unwrap(), "plain+text");
        for bad in ["%", "%2", "%zz", "%00", "%ff"] {
            assert!(decoded(bad).is_err(), "{bad}");
        }
        assert_eq!(path("fifo:///run/x").unwrap(), "/run/x");
        assert_eq!(path("/run/x").unwrap(), "/run/x");
        for bad in ["npipe:////./x", "relative", "binary:///x", ""] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
