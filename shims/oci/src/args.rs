//! Command lines as runc takes them.
//!
//! Flags have one dash or two, and their value behind `=` or in the next word.
//! The words of `exec` and `ps` belong to another program from the container's
//! name on; elsewhere flags may stand behind it too. There is no table of
//! defaults here: a flag that is not given has no value.

use anyhow::{Result, bail, ensure};

/// A flag: its names and whether a value follows.
struct Flag {
    names: &'static [&'static str],
    value: bool,
    about: &'static str,
}

const fn value(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag { names, value: true, about }
}

const fn switch(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag { names, value: false, about }
}

struct Command {
    name: &'static str,
    words: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    /// Everything behind the first word is not ours.
    foreign: bool,
}

const GLOBAL: &[Flag] = &[
    switch(&["debug"], "log more"),
    value(&["log"], "file to write errors to (default: standard error)"),
    value(&["log-format"], "text (default) or json"),
    value(&["root"], "directory of the containers' state, on tmpfs (default: /run/knarr-oci)"),
    value(&["criu"], "accepted for compatibility; nothing is checkpointed"),
    switch(&["systemd-cgroup"], "let systemd make the control groups"),
    value(&["rootless"], "true, false or auto (default): pass over groups that may not be made"),
    switch(&["help", "h"], "show help"),
    switch(&["version", "v"], "print the version"),
];

const BUNDLE: Flag =
    value(&["bundle", "b"], "directory of config.json (default: the current directory)");
const CONSOLE: Flag =
    value(&["console-socket"], "unix socket that is sent the master of the terminal");
const PID_FILE: Flag = value(&["pid-file"], "file to write the process id to");
const NO_PIVOT: Flag = switch(&["no-pivot"], "enter the root with chroot, on a ramdisk");
const NO_KEYRING: Flag = switch(&["no-new-keyring"], "keep the caller's session keyring");
const PRESERVE: Flag = value(&["preserve-fds"], "pass so many descriptors more than the streams");
const PIDFD: Flag = value(&["pidfd-socket"], "unix socket that is sent the process's pidfd");
const FORMAT: Flag = value(&["format", "f"], "table (default) or json");

const COMMANDS: &[Command] = &[
    Command {
        name: "create",
        words: "<container-id>",
        about: "make a container, whose program waits for start",
        flags: &[BUNDLE, CONSOLE, PIDFD, PID_FILE, NO_PIVOT, NO_KEYRING, PRESERVE],
        foreign: false,
    },
    Command {
        name: "delete",
        words: "<container-id>",
        about: "remove what is left of a container",
        flags: &[switch(&["force", "f"], "kill it first, if it still runs")],
        foreign: false,
    },
    Command {
        name: "events",
        words: "<container-id>",
        about: "show what a container uses, and its out-of-memory events",
        flags: &[
            value(&["interval"], "time between two of them (default: 5s)"),
            switch(&["stats"], "show it once"),
        ],
        foreign: false,
    },
    Command {
        name: "exec",
        words: "<container-id> <command> [arguments…] | --process process.json <container-id>",
        about: "run another program in a container",
        flags: &[
            CONSOLE,
            value(&["cwd"], "working directory in the container"),
            value(&["env", "e"], "NAME=value for its environment"),
            switch(&["tty", "t"], "give it a terminal"),
            value(&["user", "u"], "uid[:gid]"),
            value(&["additional-gids", "g"], "further groups"),
            value(&["process", "p"], "file with an OCI process"),
            switch(&["detach", "d"], "do not wait for it"),
            PIDFD,
            PID_FILE,
            value(&["process-label"], "SELinux label"),
            value(&["apparmor"], "AppArmor profile"),
            switch(&["no-new-privs"], "set no_new_privs"),
            value(&["cap", "c"], "a further capability"),
            PRESERVE,
            value(&["cgroup"], "control group below the container's, as [controller:]path"),
            switch(&["ignore-paused"], "also in a paused container"),
        ],
        foreign: true,
    },
    Command {
        name: "features",
        words: "",
        about: "show what this runtime can do, as JSON",
        flags: &[],
        foreign: false,
    },
    Command {
        name: "kill",
        words: "<container-id> [signal]",
        about: "send a signal (default: SIGTERM) to a container's first process",
        flags: &[switch(&["all", "a"], "to all of its processes")],
        foreign: false,
    },
    Command {
        name: "list",
        words: "",
        about: "list the containers of this root",
        flags: &[FORMAT, switch(&["quiet", "q"], "names only")],
        foreign: false,
    },
    Command {
        name: "pause",
        words: "<container-id>",
        about: "freeze all processes of a container",
        flags: &[],
        foreign: false,
    },
    Command {
        name: "ps",
        words: "<container-id> [ps options]",
        about: "show the processes of a container",
        flags: &[FORMAT],
        foreign: true,
    },
    Command {
        name: "resume",
        words: "<container-id>",
        about: "thaw a paused container",
        flags: &[],
        foreign: false,
    },
    Command {
        name: "run",
        words: "<container-id>",
        about: "create and start a container, and wait for its end",
        flags: &[
            BUNDLE,
            CONSOLE,
            PIDFD,
            switch(&["detach", "d"], "do not wait for its end"),
            switch(&["keep"], "do not delete it at its end"),
            PID_FILE,
            switch(&["no-subreaper"], "do not reap what the program leaves behind"),
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
        ],
        foreign: false,
    },
    Command {
        name: "spec",
        words: "",
        about: "write a config.json to begin with",
        flags: &[BUNDLE, switch(&["rootless"], "for a user without privileges")],
        foreign: false,
    },
    Command {
        name: "start",
        words: "<container-id>",
        about: "run the program of a created container",
        flags: &[],
        foreign: false,
    },
    Command {
        name: "state",
        words: "<container-id>",
        about: "show the state of a container, as JSON",
        flags: &[],
        foreign: false,
    },
    Command {
        name: "update",
        words: "<container-id>",
        about: "change the limits of a container",
        flags: &[
            value(&["resources", "r"], "file with OCI resources, - for standard input"),
            value(&["blkio-weight"], "I/O weight, 10 to 1000"),
            value(&["cpu-period"], "microseconds of a period"),
            value(&["cpu-quota"], "microseconds of each period"),
            value(&["cpu-burst"], "microseconds that may be saved up"),
            value(&["cpu-share", "cpu-shares"], "weight against other containers"),
            value(&["cpu-rt-period"], "microseconds of a realtime period"),
            value(&["cpu-rt-runtime"], "microseconds of each realtime period"),
            value(&["cpu-idle"], "1 for the weight of idle"),
            value(&["cpuset-cpus"], "CPUs"),
            value(&["cpuset-mems"], "memory nodes"),
            value(&["kernel-memory"], "accepted for compatibility; the kernel has no such limit"),
            value(&["kernel-memory-tcp"], "bytes of TCP buffers"),
            value(&["memory"], "bytes"),
            value(&["memory-reservation"], "bytes of the soft limit"),
            value(&["memory-swap"], "bytes of memory and swap, -1 for no limit"),
            value(&["pids-limit"], "processes"),
        ],
        foreign: false,
    },
];

/// Flags that were given, in order.
#[derive(Debug, Default)]
pub(crate) struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// The value that was given last.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// Every value that was given.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "false")
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("invalid value {text:?} for flag -{name}"),
        }
    }
}

/// A verb with its own flags and words.
#[derive(Debug)]
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) flags: Flags,
    pub(crate) words: Vec<String>,
}

impl Verb {
    /// The container, which is the first word; of `most` words.
    pub(crate) fn container(&self, most: usize) -> Result<&str> {
        let usage = |why: &str| format!("\"{}\" {why}", self.name);
        // runc's words.
        let Some(id) = self.words.first() else { bail!(usage("requires exactly 1 argument(s)")) };
        ensure!(self.words.len() <= most, usage("has too many arguments"));
        ensure!(!id.is_empty(), "container id cannot be empty");
        Ok(id)
    }
}

/// What is wanted.
pub(crate) enum Call {
    /// A verb.
    Verb { flags: Flags, verb: Verb },
    /// A text.
    Say(String),
}

/// Takes a command line apart.
pub(crate) fn split(words: &[String]) -> Result<Call> {
    let (flags, rest) = flags(GLOBAL, words, false, "")?;
    if flags.has("version") {
        return Ok(Call::Say(version()));
    }
    let Some((name, rest)) = rest.split_first().filter(|_| !flags.has("help")) else {
        return Ok(Call::Say(usage()));
    };
    let command = COMMANDS.iter().find(|command| command.name == name);
    let Some(command) = command else {
        match name.as_str() {
            "help" | "h" => return Ok(Call::Say(usage())),
            "checkpoint" => return refused("checkpoint", rest),
            "restore" => return refused("restore", rest),
            _ => bail!("No help topic for '{name}'"),
        }
    };
    if rest.first().is_some_and(|word| matches!(word.as_str(), "--help" | "-h" | "-help")) {
        return Ok(Call::Say(usage_of(command)));
    }
    let (own, words) = self::flags(command.flags, rest, !command.foreign, name)?;
    Ok(Call::Verb { flags, verb: Verb { name: command.name, flags: own, words } })
}

/// A verb of runc's that is not ours, whatever its flags; its help says so.
fn refused(name: &'static str, words: &[String]) -> Result<Call> {
    let asks = words.iter().any(|word| matches!(&**word, "--help" | "-h" | "-help"));
    ensure!(asks, "{name}: checkpoints are not supported");
    let about = "refused: checkpoints are not supported";
    let command = Command { name, words: "<container-id>", about, flags: &[], foreign: false };
    Ok(Call::Say(usage_of(&command)))
}

fn flags(
    known: &[Flag],
    words: &[String],
    mixed: bool,
    verb: &str,
) -> Result<(Flags, Vec<String>)> {
    let mut flags = Flags::default();
    let mut rest = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            rest.push(word.clone());
            if mixed {
                continue;
            }
            break;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(flag) = known.iter().find(|flag| flag.names.contains(&name)) else {
            // A negative number is a word: `kill <id> -9` never was one for runc either.
            let what = if verb.is_empty() { String::new() } else { format!(" ({verb})") };
            bail!("flag provided but not defined: -{name}{what}");
        };
        let value = match (flag.value, given) {
            (_, Some(value)) => value,
            (false, None) => String::new(),
            (true, None) => match words.next() {
                Some(value) => value.clone(),
                None => bail!("flag needs an argument: -{name}"),
            },
        };
        flags.0.push((flag.names[0], value));
    }
    rest.extend(words.cloned());
    Ok((flags, rest))
}

fn version() -> String {
    format!("knarr-oci version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), crate::spec::VERSION)
}

fn lines(flags: &[Flag]) -> String {
    let line = |flag: &Flag| {
        let names: Vec<String> = flag
            .names
            .iter()
            .map(|name| if name.len() == 1 { format!("-{name}") } else { format!("--{name}") })
            .collect();
        let value = if flag.value { " value" } else { "" };
        format!("   {:30} {}\n", names.join(", ") + value, flag.about)
    };
    flags.iter().map(line).collect()
}

fn usage() -> String {
    let verbs: String = COMMANDS
        .iter()
        .map(|command| format!("   {:10} {}\n", command.name, command.about))
        .collect();
    format!(
        "NAME:\n   knarr-oci - Open Container Initiative runtime\n\n\
         USAGE:\n   knarr-oci [global options] command [command options] [arguments...]\n\n\
         COMMANDS:\n{verbs}\nGLOBAL OPTIONS:\n{}",
        lines(GLOBAL)
    )
}

fn usage_of(command: &Command) -> String {
    let options = match command.flags {
        [] => String::new(),
        flags => format!("\nOPTIONS:\n{}", lines(flags)),
    };
    format!(
        "NAME:\n   knarr-oci {0} - {1}\n\nUSAGE:\n   knarr-oci {0} [command options] {2}\n{options}",
        command.name, command.about, command.words
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(line: &str) -> (Flags, Verb) {
        let words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
        match split(&words).expect(line) {
            Call::Verb { flags, verb } => (flags, verb),
            Call::Say(text) => panic!("{text}"),
        }
    }

    #[test]
    fn lines_as_containerd_and_conmon_write_them() {
        let (global, create) = verb(
            "--root /r --log /l --log-format=json create --bundle /b --pid-file /p --no-pivot x",
        );
        assert_eq!(global.get("root"), Some("/r"));
        assert_eq!(global.get("log-format"), Some("json"));
        assert_eq!(create.flags.get("bundle"), Some("/b"));
        assert!(create.flags.has("no-pivot"));
        assert_eq!(create.container(1).expect("id"), "x");
        let (_, delete) = verb("delete x --force");
        assert!(delete.flags.has("force"));
        let (_, exec) = verb("exec -e A=b -e C=d -t x ls --color -l");
        assert_eq!(exec.flags.all("env").collect::<Vec<_>>(), ["A=b", "C=d"]);
        assert_eq!(exec.words, ["x", "ls", "--color", "-l"]);
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for line in ["--nope list", "create --nope x", "create --bundle", "frobnicate"] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert!(split(&words).is_err(), "{line}");
        }
    }
}
