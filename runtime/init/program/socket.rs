//! The conversation with the parent.

use crate::{
    kernel::*,
    signal::{self, SIGHUP, SIGINT, SIGTERM},
    wire::{FDS_PER_MESSAGE, Frame, MAGIC, MAX_BYTES, SOCKET_FD},
};

#[repr(C)]
struct IoVec {
    base: *const u8,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: usize,
    name_len: usize,
    iov: *const IoVec,
    iov_len: usize,
    control: *const u8,
    control_len: usize,
    flags: usize,
}

/// `struct cmsghdr` and the descriptors behind it.
#[repr(C)]
struct Control<const N: usize> {
    len: usize,
    level: i32,
    kind: i32,
    fds: [i32; N],
}

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SO_PEERCRED: i32 = 17;

fn read_exactly(buffer: &mut [u8]) -> Answer<()> {
    let mut done = 0;
    while done < buffer.len() {
        match sys!(READ, SOCKET_FD, buffer[done..].as_mut_ptr(), buffer.len() - done) {
            // The parent is gone: so are we.
            Ok(0) => exit(255),
            Ok(count) => done += count,
            Err(EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads some bytes and the descriptors that come with them; how many those are.
pub fn receive(buffer: &mut [u8], fds: &mut [i32]) -> Answer<usize> {
    let mut control =
        Control::<FDS_PER_MESSAGE> { len: 0, level: 0, kind: 0, fds: [0; FDS_PER_MESSAGE] };
    let iov = IoVec { base: buffer.as_mut_ptr(), len: buffer.len() };
    let mut header = MsgHdr {
        name: 0,
        name_len: 0,
        iov: &iov,
        iov_len: 1,
        control: (&raw mut control).cast(),
        control_len: size_of_val(&control),
        flags: 0,
    };
    let got = loop {
        match sys!(RECVMSG, SOCKET_FD, &raw mut header, 0x4000_0000u32 /* MSG_CMSG_CLOEXEC */) {
            Err(EINTR) => {}
            other => break other?,
        }
    };
    if got == 0 {
        exit(255);
    }
    if got < buffer.len() {
        read_exactly(&mut buffer[got..])?;
    }
    if header.control_len < 16 || control.level != SOL_SOCKET || control.kind != SCM_RIGHTS {
        return Ok(0);
    }
    let count = control.len.saturating_sub(16) / 4;
    fds.get_mut(..count).ok_or(EPROTO)?.copy_from_slice(control.fds.get(..count).ok_or(EPROTO)?);
    Ok(count)
}

/// The launch: its operations, and its descriptors in order.
pub fn launch() -> Answer<(&'static [u8], &'static [[u8; 4]])> {
    let mut batch = [0; FDS_PER_MESSAGE];
    let mut header = [0u8; 16];
    let mut got = receive(&mut header, &mut batch)?;
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    };
    let (bytes, count) = (word(4), word(8));
    if word(0) != MAGIC as usize || bytes > MAX_BYTES || count > 1 << 16 {
        return Err(EPROTO);
    }
    let (fds, _) = memory(4 * count)?.as_chunks_mut::<4>();
    let mut have = 0;
    loop {
        for fd in &batch[..got] {
            *fds.get_mut(have).ok_or(EPROTO)? = fd.to_ne_bytes();
            have += 1;
        }
        if have >= count {
            break;
        }
        got = receive(&mut [0u8], &mut batch)?;
    }
    let ops = memory(bytes)?;
    read_exactly(ops)?;
    Ok((ops, fds))
}

/// Says something to the parent.
pub fn say(frame: Frame) -> Answer<()> {
    let bytes = frame.to_bytes();
    sys!(WRITE, SOCKET_FD, bytes.as_ptr(), bytes.len())?;
    Ok(())
}

/// Hands the parent a descriptor: the master of a terminal, a mount.
pub fn give(kind: u32, op: u32, fd: i32) -> Answer<()> {
    let bytes = Frame { kind, op, errno: 0 }.to_bytes();
    let control = Control::<2> { len: 20, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [fd, 0] };
    let iov = IoVec { base: bytes.as_ptr(), len: bytes.len() };
    let header = MsgHdr {
        name: 0,
        name_len: 0,
        iov: &iov,
        iov_len: 1,
        control: (&raw const control).cast(),
        control_len: size_of_val(&control),
        flags: 0,
    };
    sys!(SENDMSG, SOCKET_FD, &raw const header, 0x4000 /* MSG_NOSIGNAL */)?;
    Ok(())
}

/// The user on the other side of a socket, as this user namespace knows him; of one
/// that listens, whoever made it listen.
fn user_of(socket: i32) -> Answer<u32> {
    // `struct ucred`: a process, its user and its group.
    let mut who = [0u32; 3];
    let mut length = size_of_val(&who) as u32;
    sys!(GETSOCKOPT, socket, SOL_SOCKET, SO_PEERCRED, who.as_mut_ptr(), &raw mut length)?;
    Ok(who[1])
}

/// Lets go of the parent and waits for somebody who connects and says go: root, or who
/// made the container. Anybody else is not listened to, whatever the socket's mode has
/// become; who connects and says nothing changes nothing. Who asks it politely to end meanwhile
/// is not refused, as the kernel would for the first process of a namespace.
pub fn await_caller(listener: i32) -> Answer<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal::exit_at(signal)?;
    }
    // The parent is not waited for by anybody who waits for our end of it.
    close(SOCKET_FD);
    let owner = user_of(listener)?;
    loop {
        let caller = match sys!(ACCEPT4, listener, 0, 0, O_CLOEXEC) {
            Ok(fd) => fd as i32,
            Err(EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        let user = user_of(caller);
        if user != Ok(0) && user != Ok(owner) {
            close(caller);
            continue;
        }
        let mut go = [0u8];
        let got = loop {
            match sys!(READ, caller, go.as_mut_ptr(), 1) {
                Err(EINTR) => {}
                other => break other,
            }
        };
        if got == Ok(1) {
            sys!(DUP3, caller, SOCKET_FD, O_CLOEXEC)?;
            close(caller);
            close(listener);
            return Ok(());
        }
        close(caller);
    }
}

/// Waits to be told to go on.
pub fn await_go() -> Answer<()> {
    read_exactly(&mut [0u8])
}
