//! The command line, as containerd calls a shim: Go's flags, then an action.
//!
//! ```text
//! containerd-shim-knarr-v1 -v
//! containerd-shim-knarr-v1 -info
//! containerd-shim-knarr-v1 -namespace NS -id ID -address A [-debug] start
//! containerd-shim-knarr-v1 -namespace NS -id ID -address A -bundle B delete
//! containerd-shim-knarr-v1 -namespace NS -id GROUP -address A -knarr-listen PATH
//!     [-knarr-systemd]                                                               (by start)
//! containerd-shim-knarr-v1 -namespace knarr -id POOL -address "" -knarr-socket PATH  (by knarrd)
//! ```

use std::path::PathBuf;

/// What containerd says in every call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Caller {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The container, or the group that a serving shim is for.
    pub(crate) id: String,
    /// Path of containerd's gRPC socket.
    pub(crate) address: String,
    /// Log more.
    pub(crate) debug: bool,
}

/// What the shim was started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Say the version.
    Version,
    /// Say what this runtime is, as containerd 2.x asks.
    Info,
    /// Serve tasks on a socket that knarrd named.
    Serve {
        /// The socket.
        socket: PathBuf,
        /// Log more.
        debug: bool,
    },
    /// Find or make the shim for a container, and say where it listens.
    Start(Caller),
    /// Clean up after a shim that is gone.
    Delete {
        /// Who asks.
        caller: Caller,
        /// The container's bundle; none is the working directory.
        bundle: Option<PathBuf>,
    },
    /// Serve containerd on the socket that is our standard input.
    Listen {
        /// Who asks.
        caller: Caller,
        /// The socket's path.
        socket: PathBuf,
        /// systemd makes a pod's control group.
        systemd: bool,
    },
}

/// Reads the arguments behind the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<Mode> {
    let mut caller = Caller::default();
    let (mut serve, mut listen, mut bundle, mut action) = (None, None, None, None);
    let mut systemd = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            anyhow::ensure!(action.is_none(), "more than one action: {argument}");
            action = Some(argument);
            continue;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut text = || value(name, inline.clone(), &mut arguments);
        match name {
            "v" | "version" => return Ok(Mode::Version),
            "info" => return Ok(Mode::Info),
            "debug" => caller.debug = inline.is_none_or(|value| value != "false"),
            "namespace" => caller.namespace = text()?,
            "id" => caller.id = text()?,
            "address" => caller.address = text()?,
            "bundle" => bundle = Some(PathBuf::from(text()?)),
            // What containerd passes and nobody here needs: events go over ttrpc.
            "publish-binary" | "socket" => {
                text()?;
            }
            "knarr-socket" => serve = Some(PathBuf::from(text()?)),
            "knarr-listen" => listen = Some(PathBuf::from(text()?)),
            "knarr-systemd" => systemd = true,
            _ => anyhow::bail!("unknown flag -{name}"),
        }
    }
    if let Some(socket) = serve {
        anyhow::ensure!(action.is_none(), "an action does not go with -knarr-socket");
        return Ok(Mode::Serve { socket, debug: caller.debug });
    }
    anyhow::ensure!(!caller.namespace.is_empty(), "flag -namespace is missing");
    anyhow::ensure!(!caller.id.is_empty(), "flag -id is missing");
    match (action.as_deref(), listen) {
        (None, Some(socket)) => Ok(Mode::Listen { caller, socket, systemd }),
        (Some("start"), None) => Ok(Mode::Start(caller)),
        (Some("delete"), None) => Ok(Mode::Delete { caller, bundle }),
        (Some(other), _) => anyhow::bail!("unknown action {other}"),
        (None, None) => anyhow::bail!(
            "an action is missing\n\nhint: containerd and knarrd start this program; \
             in containerd it is the runtime io.containerd.knarr.v1"
        ),
    }
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
        let caller = Caller {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            address: "/run/c.sock".into(),
            debug: true,
        };
        let from = ["-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/c"];
        let line = |rest: &[&'static str]| parse(&[&from[..], rest].concat());
        assert_eq!(line(&["-id", "c1", "-debug", "start"]).unwrap(), Mode::Start(caller.clone()));
        let delete = Mode::Delete { caller, bundle: Some("/b".into()) };
        assert_eq!(line(&["-id", "c1", "-bundle", "/b", "-debug", "delete"]).unwrap(), delete);
        for bad in [
            &["-id", "x"][..],
            &["start"],
            &["-nope"],
            &["-knarr-socket"],
            &["-namespace", "n", "-id", "x", "restart"],
            &["-namespace", "n", "-id", "x", "start", "delete"],
            &["-namespace", "n", "start"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
