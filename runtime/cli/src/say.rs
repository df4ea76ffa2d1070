//! Everything that is printed, except what a container's program wrote.
//!
//! What an engine answers is not to be believed: names, labels, messages and
//! command lines come from images and containers. On a terminal their control
//! characters would move the cursor, change its title, or answer for the user, so
//! there they are shown as Go and Rust write them (`\x1b`). Elsewhere everything goes
//! out as it came, as with Docker's client (CATALOGUE A05, A13).
//!
//! The output of `logs`, `attach`, `exec` and `run` is the program's own and is
//! passed on as it is.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{IsTerminal as _, Write},
};

/// Prints a line on standard output.
macro_rules! outln {
    () => { $crate::say::stdout(format_args!("\n")) };
    ($($words:tt)*) => { $crate::say::stdout(format_args!("{}\n", format_args!($($words)*))) };
}

/// Prints on standard output.
macro_rules! out {
    ($($words:tt)*) => { $crate::say::stdout(format_args!($($words)*)) };
}

/// Prints a line on standard error.
macro_rules! errln {
    () => { $crate::say::stderr(format_args!("\n")) };
    ($($words:tt)*) => { $crate::say::stderr(format_args!("{}\n", format_args!($($words)*))) };
}

/// Prints on standard error.
macro_rules! err {
    ($($words:tt)*) => { $crate::say::stderr(format_args!($($words)*)) };
}

/// See [`outln!`].
pub fn stdout(words: fmt::Arguments<'_>) {
    let terminal = std::io::stdout().is_terminal();
    written(std::io::stdout().lock(), terminal, words, "stdout");
}

/// See [`errln!`].
pub fn stderr(words: fmt::Arguments<'_>) {
    let terminal = std::io::stderr().is_terminal();
    written(std::io::stderr().lock(), terminal, words, "stderr");
}

fn written(mut to: impl Write, terminal: bool, words: fmt::Arguments<'_>, name: &str) {
    let text = words.to_string();
    let text = if terminal { text_for_terminal(&text) } else { Cow::Borrowed(text.as_str()) };
    if let Err(error) = to.write_all(text.as_bytes()) {
        // As the standard library's own macros, whose panic `main` knows.
        panic!("failed printing to {name}: {error}");
    }
}

/// One name or value among others on a line of standard output.
pub fn shown(text: &str) -> Cow<'_, str> {
    match std::io::stdout().is_terminal() {
        true => cell_for_terminal(text),
        false => Cow::Borrowed(text),
    }
}

/// A text of several lines and columns for a terminal.
pub fn text_for_terminal(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// One cell of a table for a terminal: it begins no line and no column of its own.
pub fn cell_for_terminal(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

fn escaped(text: &str, fine: impl Fn(char) -> bool) -> Cow<'_, str> {
    let commands = |c: char| is_command(c) && !fine(c);
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        let _ = match c {
            c if !commands(c) => shown.write_char(c),
            '\n' => shown.write_str("\\n"),
            '\r' => shown.write_str("\\r"),
            '\t' => shown.write_str("\\t"),
            c if u32::from(c) < 0x80 => write!(shown, "\\x{:02x}", u32::from(c)),
            c => write!(shown, "\\u{:04x}", u32::from(c)),
        };
    }
    Cow::Owned(shown)
}

/// What a terminal does not show but obeys: control characters, also those of the
/// second set, and what turns the direction of writing.
fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a13_a_terminal_is_told_nothing_but_text() {
        for (text, lines, cell) in [
            ("web ü 漢\t2\n", "web ü 漢\t2\n", "web ü 漢\\t2\\n"),
            ("\x1b[2J\x07\x7f", "\\x1b[2J\\x07\\x7f", "\\x1b[2J\\x07\\x7f"),
            ("\u{9b}31m", "\\u009b31m", "\\u009b31m"),
            ("a\rb", "a\\rb", "a\\rb"),
            ("gpj.\u{202e}exe", "gpj.\\u202eexe", "gpj.\\u202eexe"),
        ] {
            assert_eq!(text_for_terminal(text), lines);
            assert_eq!(cell_for_terminal(text), cell);
        }
    }

    #[test]
    fn elsewhere_everything_goes_out_as_it_came() {
        let mut out = Vec::new();
        written(&mut out, false, format_args!("{}", "\x1b[1m"), "stdout");
        written(&mut out, true, format_args!("{}", "\x1b[1m"), "stdout");
        assert_eq!(out, b"\x1b[1m\\x1b[1m");
    }
}
