//! The container's terminal.

use crate::{kernel::*, root::Root, socket, wire::Frame};

const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCSPTLCK: usize = 0x4004_5431;
const TIOCGPTPEER: usize = 0x5441;

#[repr(C)]
struct WinSize {
    rows: u16,
    cols: u16,
    pixels: [u16; 2],
}

/// Opens a pair in the container's devpts: nothing here follows a name that an
/// image could have made, but `ptmx` itself, which is verified to be devpts'.
pub fn open_pair(
    root: &mut Root,
    op: u32,
    rows: u32,
    cols: u32,
    uid: u32,
    console: bool,
) -> Answer<()> {
    let master = root.open(c"/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW)?;
    if filesystem(master)? != DEVPTS_MAGIC {
        return Err(ENODEV);
    }
    let unlocked = 0i32;
    sys!(IOCTL, master, TIOCSPTLCK, &raw const unlocked)?;
    let slave = sys!(IOCTL, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)? as i32;
    if rows != 0 && cols != 0 {
        let size = WinSize { rows: rows as u16, cols: cols as u16, pixels: [0; 2] };
        sys!(IOCTL, master, TIOCSWINSZ, &raw const size)?;
    }
    if uid != 0 {
        sys!(FCHOWN, slave, uid, -1isize)?;
    }
    socket::give(Frame::CONSOLE, op, master)?;
    close(master);
    if console {
        let mount = clone_mount(slave, false)?;
        root.attach_here(mount, c"/dev/console")?;
    }
    control(slave)?;
    for fd in 0..3 {
        sys!(DUP3, slave, fd, 0)?;
    }
    close(slave);
    Ok(())
}

/// Makes a terminal the one of our session.
pub fn control(terminal: i32) -> Answer<()> {
    sys!(IOCTL, terminal, TIOCSCTTY, 0)?;
    Ok(())
}
