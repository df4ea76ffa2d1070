//! Arguments that make no sense, in Docker's words and with its exit codes.
//!
//! | what | exit code |
//! |---|---|
//! | a flag that is unknown, lacks its value or has a bad one | 125 |
//! | too few or too many arguments, an unknown command | 1 |
//! | a group without a command: its help | 0 |

use std::process::ExitCode;

use clap::{
    ArgAction, Command,
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

/// Says what is wrong, and how the process ends.
pub fn report(root: &mut Command, error: &clap::Error, words: &[String]) -> ExitCode {
    use ErrorKind as Kind;
    let (path, command) = chosen(root, words);
    let see = format!("Run '{path} --help' for more information");
    let usage = command.render_usage();
    let flag = |message: String| {
        eprintln!("{message}\n\n{usage}\n\n{see}");
        ExitCode::from(125)
    };
    let arguments = |message: String| {
        eprintln!("knarr: {message}\n\n{usage}\n\n{see}");
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
            eprintln!("knarr: unknown command: {path} {unknown}\n\n{see}");
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
