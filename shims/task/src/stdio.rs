//! What the stream addresses of a request mean.
//!
//! | address | meaning |
//! |---|---|
//! | empty | nothing: `/dev/null`, or output for attached clients only |
//! | `knarr-log:{LogTarget}` | Docker's json-file log, and attached clients |
//! | `knarr-attach:` | attached clients only; as stdin: a pipe kept open for them |
//! | `file://PATH` | appended to a file |
//! | `PATH` | a FIFO that containerd made |
//!
//! Anything else (`binary://`, `fifo://` …) is refused by name.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
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
    pub(crate) fn open(&self) -> Result<(Input, Outputs)> {
        let input = if self.stdin.is_empty() {
            Input::Null
        } else if self.stdin.starts_with(ATTACH_SCHEME) {
            Input::Attach
        } else {
            Input::Fifo(fifo(path(&self.stdin)?)?)
        };
        let mut outputs = Outputs::default();
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
                outputs.raw[index] = Some(Raw::Fifo(fifo(path(address)?)?));
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

fn path(address: &str) -> Result<&str> {
    match address.split_once("://") {
        None if address.starts_with('/') => Ok(address),
        _ => Err(Error::unimplemented(format!("streams to {address:?} are not supported"))),
    }
}

fn append(path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options.open(path).map_err(|error| Error::internal(format_args!("open {path}"), error))
}

/// Opens both directions, which never waits for the other side, and neither
/// ends nor breaks when the other side comes and goes (containerd's restart).
fn fifo(path: &str) -> Result<Io> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(|fd| {
            let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
            if kind == rustix::fs::FileType::Fifo { Ok(fd) } else { Err(Errno::INVAL) }
        })
        .map_err(std::io::Error::from)
        .and_then(Io::new)
        .map_err(|error| Error::internal(format_args!("open fifo {path}"), error))
}
