//! What went wrong, where the caller reads it: engines take the last error of
//! the log for the reason of a failure.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::args::Flags;

/// The log of one call.
pub(crate) struct Log {
    file: Option<File>,
    json: bool,
    debug: bool,
}

impl Log {
    pub(crate) fn open(flags: &Flags) -> Result<Self> {
        let json = match flags.get("log-format") {
            None | Some("" | "text") => false,
            Some("json") => true,
            Some(other) => bail!("invalid log-format: {other}"),
        };
        let path = flags.get("log").filter(|path| !path.is_empty() && *path != "/dev/stderr");
        let open = |path| {
            File::options()
                .append(true)
                .create(true)
                // As runc's: nobody else writes what engines take for the reason of a failure.
                .mode(0o644)
                .open(path)
                .with_context(|| format!("open log {path}"))
        };
        Ok(Self { file: path.map(open).transpose()?, json, debug: flags.has("debug") })
    }

    /// Why the verb failed.
    pub(crate) fn error(&self, text: &str) {
        self.write("error", text);
        if self.file.is_some() {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// What the caller should know though the verb goes on.
    pub(crate) fn warning(&self, text: &str) {
        self.write("warning", text);
    }

    /// What only `--debug` shows.
    pub(crate) fn debug(&self, text: &str) {
        if self.debug {
            self.write("debug", text);
        }
    }

    fn write(&self, level: &str, text: &str) {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let line = if self.json {
            format!("{}\n", json!({ "level": level, "msg": text, "time": time }))
        } else {
            format!("time={time:?} level={level} msg={text:?}\n")
        };
        // Nobody could be told that the log cannot be written.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}
