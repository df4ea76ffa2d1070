//! The command line, as containerd calls a shim: Go's flags, then an action.
//!
//! ```text
//! containerd-shim-knarr-v1 -v
//! containerd-shim-knarr-v1 -namespace knarr -id POOL -address "" -knarr-socket PATH
//! ```

use std::path::PathBuf;

/// What the shim was started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Say the version.
    Version,
    /// Serve tasks on a socket that knarrd named.
    Serve {
        /// The socket.
        socket: PathBuf,
        /// Log more.
        debug: bool,
    },
}

/// Reads the arguments behind the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<Mode> {
    let mut socket = None;
    let mut debug = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            anyhow::bail!(
                "{argument}: not supported yet\n\nhint: this shim is started by knarrd, \
                 with -knarr-socket PATH"
            );
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "v" | "version" => return Ok(Mode::Version),
            "debug" => debug = inline.is_none_or(|value| value != "false"),
            // What containerd passes and knarrd needs nothing of.
            "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                value(name, inline, &mut arguments)?;
            }
            "knarr-socket" => socket = Some(PathBuf::from(value(name, inline, &mut arguments)?)),
            _ => anyhow::bail!("unknown flag -{name}"),
        }
    }
    let socket = socket.ok_or_else(|| anyhow::anyhow!("flag -knarr-socket is missing"))?;
    Ok(Mode::Serve { socket, debug })
}

fn value(
    name: &str,
    inline: Option<String>,
    arguments: &mut impl Iterator<Item = String>,
) -> anyhow::Result<String> {
    inline.or_else(|| arguments.next()).ok_or_else(|| anyhow::anyhow!("flag -{name} needs a value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> anyhow::Result<Mode> {
        super::parse(line.iter().map(|s| (*s).to_owned()))
    }

    #[test]
    fn flags_are_those_of_go() {
        let serve = Mode::Serve { socket: "/s".into(), debug: false };
        let line = ["-namespace", "knarr", "-id", "p1", "-address", "", "-knarr-socket", "/s"];
        assert_eq!(parse(&line).unwrap(), serve);
        assert_eq!(parse(&["--knarr-socket=/s", "--id=x"]).unwrap(), serve);
        assert_eq!(parse(&["-v"]).unwrap(), Mode::Version);
        for bad in [&["-id", "x"][..], &["start"], &["-nope"], &["-knarr-socket"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
