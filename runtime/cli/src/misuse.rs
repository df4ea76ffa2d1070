//! Arguments as Docker's flag parser (spf13/pflag) reads them, and its words and
//! exit codes for those that make no sense.
//!
//! ```text
//!   -dp8080:80 -m=64m --rm=false --name -x IMG -l  ──>  -d --publish=8080:80 --memory=64m --rm=false --name=-x IMG -l
//! ```
//!
//! | what | exit code |
//! |---|---|
//! | a flag that is unknown, lacks its value or has a bad one | 125 |
//! | too few or too many arguments, an unknown command | 1 |
//! | a group without a command: its help | 0 |

use std::{ffi::OsString, process::ExitCode};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// What Docker's flag parser allows and clap's does not: a flag given twice
/// (the last counts), and `--flag=false`.
pub fn lenient(command: Command) -> Command {
    command
        .args_override_self(true)
        .mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_parser(clap::value_parser!(bool))
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true)
                .value_name("bool"),
            _ => arg,
        })
        .mut_subcommands(lenient)
}

/// Joins each flag with its value, as pflag would, into the one form that
/// cannot be misread: a value may begin with a hyphen, a cluster of short flags
/// may end in a value. What is behind the first argument of a command that
/// takes a command line is that command line's.
pub fn normalise(root: &Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut made: Vec<OsString> = words.next().into_iter().collect();
    let mut command = root;
    while let Some(word) = words.next() {
        let Some(text) = word.to_str().map(str::to_owned) else {
            made.push(word);
            continue;
        };
        if text == "--" {
            made.push(word);
            break;
        }
        if let Some(long) = text.strip_prefix("--") {
            let takes = |arg: &&Arg| {
                arg.get_long() == Some(long)
                    || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
            };
            let flag = command.get_arguments().find(takes).filter(|arg| wants_value(arg));
            let value = flag.and_then(|_| words.next());
            made.push(word);
            if let (Some(value), Some(last)) = (value, made.last_mut()) {
                last.push("=");
                last.push(value);
            }
        } else if text.len() > 1 && text.starts_with('-') {
            cluster(command, &text[1..], &mut words, &mut made);
        } else if let Some(next) = command.find_subcommand(&text) {
            command = next;
            made.push(word);
        } else {
            made.push(word);
            if command.get_arguments().any(Arg::is_trailing_var_arg_set) {
                break;
            }
        }
    }
    made.extend(words);
    made
}

fn wants_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

/// `dp8080:80`: switches, of which the last may take what is left as its value.
fn cluster(
    command: &Command,
    letters: &str,
    words: &mut impl Iterator<Item = OsString>,
    made: &mut Vec<OsString>,
) {
    for (at, letter) in letters.char_indices() {
        let rest = &letters[at + letter.len_utf8()..];
        let flag = command.get_arguments().find(|arg| arg.get_short() == Some(letter));
        let name = flag.and_then(Arg::get_long);
        let (Some(flag), Some(name)) = (flag, name) else {
            // Help, or nothing that is known: the parser says so.
            made.push(format!("-{letter}{rest}").into());
            return;
        };
        let value = match rest.strip_prefix('=') {
            Some(value) => Some(value.into()),
            None if !wants_value(flag) => None,
            None if rest.is_empty() => words.next(),
            None => Some(rest.into()),
        };
        let mut word = OsString::from(format!("--{name}"));
        let Some(value) = value else {
            made.push(word);
            continue;
        };
        word.push("=");
        word.push(value);
        made.push(word);
        return;
    }
}

/// Says what is wrong, and how the process ends.
pub fn report(root: &mut Command, error: &clap::Error, words: &[String]) -> ExitCode {
    use ErrorKind as Kind;
    let (path, command) = chosen(root, words);
    let see = format!("Run '{path} --help' for more information");
    let usage = command.render_usage();
    let flag = |message: String| {
        errln!("{message}\n\n{usage}\n\n{see}");
        ExitCode::from(125)
    };
    let arguments = |message: String| {
        errln!("knarr: {message}\n\n{usage}\n\n{see}");
        ExitCode::FAILURE
    };
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    match error.kind() {
        Kind::DisplayHelp | Kind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        Kind::DisplayHelpOnMissingArgumentOrSubcommand | Kind::MissingSubcommand => {
            let _ = command.print_help();
            ExitCode::SUCCESS
        }
        Kind::InvalidSubcommand => {
            let unknown = match error.get(ContextKind::InvalidSubcommand) {
                Some(ContextValue::String(text)) => text.clone(),
                _ => String::new(),
            };
            errln!("knarr: unknown command: {path} {unknown}\n\n{see}");
            ExitCode::FAILURE
        }
        Kind::UnknownArgument => match named.strip_prefix('-') {
            Some(long) if long.starts_with('-') => flag(format!("unknown flag: {named}")),
            Some(short) => {
                let letter = short.chars().next().unwrap_or_default();
                flag(format!("unknown shorthand flag: '{letter}' in {named}"))
            }
            None => {
                let most = command.get_positionals().count();
                arguments(match most {
                    0 => format!("'{path}' accepts no arguments"),
                    _ => format!("'{path}' requires at most {}", count(most)),
                })
            }
        },
        Kind::MissingRequiredArgument => {
            let least = command.get_positionals().filter(|arg| arg.is_required_set()).count();
            arguments(format!("'{path}' requires at least {}", count(least)))
        }
        Kind::InvalidValue | Kind::TooFewValues if value.is_empty() => {
            flag(format!("flag needs an argument: {}", bare(&named)))
        }
        Kind::InvalidValue | Kind::ValueValidation => {
            let why = std::error::Error::source(error).map(|why| why.to_string());
            let why = why.unwrap_or_else(|| "invalid value".into());
            flag(format!("invalid argument \"{value}\" for \"{}\" flag: {why}", bare(&named)))
        }
        _ => {
            let _ = error.print();
            ExitCode::from(125)
        }
    }
}

fn count(number: usize) -> String {
    format!("{number} argument{}", if number == 1 { "" } else { "s" })
}

/// `--name` from clap's `--name <string>`.
fn bare(named: &str) -> &str {
    named.split([' ', '=', '[']).next().unwrap_or(named)
}

/// The command that the words name, and how it is called in full.
fn chosen<'a>(root: &'a mut Command, words: &[String]) -> (String, &'a mut Command) {
    let mut path = root.get_name().to_owned();
    let mut command = root;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if command.find_subcommand(word).is_some() {
            path = format!("{path} {word}");
            let next = command.find_subcommand_mut(word);
            command = next.expect("it was found just now");
            if !command.has_subcommands() {
                break;
            }
        } else if matches!(
            word.as_str(),
            "-H" | "--host" | "-c" | "--context" | "--config" | "-l" | "--log-level"
        ) {
            rest.next();
        } else if !word.starts_with('-') {
            break;
        }
    }
    (path, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar() -> Command {
        let run = Command::new("run").disable_help_flag(true).args([
            Arg::new("detach").short('d').long("detach").action(ArgAction::SetTrue),
            Arg::new("rm").long("rm").action(ArgAction::SetTrue),
            Arg::new("publish").short('p').long("publish").action(ArgAction::Append),
            Arg::new("network").long("network").alias("net").action(ArgAction::Append),
            Arg::new("memory").short('m').long("memory"),
            Arg::new("words").num_args(1..).trailing_var_arg(true).allow_hyphen_values(true),
        ]);
        let rm = Command::new("rm").args([
            Arg::new("force").short('f').long("force").action(ArgAction::SetTrue),
            Arg::new("names").num_args(1..),
        ]);
        let host = Arg::new("host").short('H').long("host");
        lenient(Command::new("knarr").arg(host).subcommands([run, rm]))
    }

    #[test]
    fn flags_are_read_as_pflag_reads_them() {
        for (line, want) in [
            ("run -dp8080:80 img", "run --detach --publish=8080:80 img"),
            ("run -d=false -m=64m img", "run --detach=false --memory=64m img"),
            ("run -m -1 --net -x img", "run --memory=-1 --net=-x img"),
            ("run --rm --rm=false img", "run --rm --rm=false img"),
            ("run img -d -p 80 --rm x", "run img -d -p 80 --rm x"),
            ("run -p80 -- -d", "run --publish=80 -- -d"),
            ("-H unix:///x rm a -f b", "--host=unix:///x rm a --force b"),
            ("run -xd img", "run -xd img"),
            ("run -m", "run --memory"),
            ("run -d - x", "run --detach - x"),
        ] {
            let words = format!("knarr {line}");
            let made = normalise(&grammar(), words.split(' ').map(OsString::from));
            let made: Vec<_> = made.iter().skip(1).map(|word| word.to_string_lossy()).collect();
            assert_eq!(made.join(" "), want, "{line}");
        }
    }

    #[test]
    fn flags_may_be_given_twice_or_denied() {
        let parse = |line: &str| {
            let words = normalise(&grammar(), line.split(' ').map(OsString::from));
            grammar().try_get_matches_from(words)
        };
        let matches = parse("knarr run -m 1 -d -d=false -m2 -p1 -p2 img").unwrap();
        let run = matches.subcommand_matches("run").unwrap();
        assert_eq!(run.get_one::<String>("memory").unwrap(), "2");
        assert!(!run.get_flag("detach"));
        assert_eq!(run.get_many::<String>("publish").unwrap().count(), 2);
        assert!(parse("knarr run --rm=perhaps img").is_err());
    }
}
