//! The user's own terminal: raw while a container's is attached, restored on every way out.

use std::{io::IsTerminal as _, os::fd::AsFd};

use rustix::termios::{self, OptionalActions, Termios};

/// Restores the terminal when it goes.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts standard input's terminal into raw mode; none where it is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Rows and columns of the user's terminal.
pub fn size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(std::io::stdout().as_fd()).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
