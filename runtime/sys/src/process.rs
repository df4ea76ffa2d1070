//! Processes: clone3, signals by pidfd.

use std::{
    ffi::CStr,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
};

use rustix::io::Errno;

/// Sends any signal, also a real-time one, to the process behind a pidfd.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // JUSTIFICATION: rustix's wrapper takes named signals only.
    // SAFETY: no memory is passed; the kernel checks both numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    check(result).map(drop)
}

/// Starts a program whose descriptors 3, 4 … are these, in order.
pub fn spawn_with(mut command: Command, descriptors: Vec<OwnedFd>) -> std::io::Result<Child> {
    const FIRST: i32 = 3;
    // Above all their places, so that none overwrites another.
    let above = FIRST + descriptors.len() as i32;
    let moved: Vec<OwnedFd> = descriptors
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, above))
        .collect::<Result<_, Errno>>()?;
    let places = move || {
        for (at, fd) in moved.iter().enumerate() {
            // SAFETY: both numbers are only looked up; what lies at the place is
            // the child's own copy, or nothing.
            if unsafe { libc::dup2(fd.as_raw_fd(), FIRST + at as i32) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // JUSTIFICATION: the standard library hands over three descriptors only.
    // SAFETY: between fork and exec the closure calls dup2 alone, which is safe
    // there, and allocates nothing.
    unsafe { command.pre_exec(places) };
    command.spawn()
}

/// Marks every descriptor from this number on to be closed by exec: what a
/// careless starter left open is not for the programs that we start.
pub fn close_on_exec(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // JUSTIFICATION: neither nix nor rustix has close_range.
    // SAFETY: with this flag nothing is closed, and no memory is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// A program to be started in new namespaces.
#[derive(Debug)]
pub struct Launch<'a> {
    /// CLONE_NEW* bits.
    pub namespaces: u64,
    /// A directory of cgroup2 that the child is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The program: a static executable.
    pub program: BorrowedFd<'a>,
    /// Its one argument, where it is to have one.
    pub argument: Option<&'static CStr>,
    /// Streams 0, 1 and 2 of the child.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Another descriptor that the child inherits, and its number there,
    /// which must be above 2.
    pub socket: (BorrowedFd<'a>, i32),
}

/// `struct clone_args` (linux/sched.h, 88 bytes since Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// What the child needs to know; it lies in the parent's memory.
struct Orders {
    program: i32,
    argument: *const libc::c_char,
    stdio: [i32; 3],
    socket: i32,
    socket_number: i32,
    /// It is born in a user namespace whose users are not mapped yet.
    unmapped: bool,
}

/// Room for the child's few calls; it shares our memory but not our stack.
const STACK: usize = 16 * 1024;

/// Starts a program as a direct child: its number and its pidfd.
///
/// As vfork: the child borrows our memory, so that nothing of it is copied, and
/// the calling thread waits until it has executed the program. It does nothing
/// but arrange descriptors and execute, so this is sound in a process with
/// threads. All its signals are blocked, and all descriptors but the four named
/// ones are closed. Where the program
/// cannot be executed the child exits with the errno.
pub fn launch(launch: &Launch<'_>) -> Result<(u32, OwnedFd), Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut stack = vec![0u128; STACK / 16];
    let shared = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut args = CloneArgs {
        flags: launch.namespaces | CLONE_CLEAR_SIGHAND | shared as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        ..Default::default()
    };
    if let Some(cgroup) = launch.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let orders = Orders {
        program: launch.program.as_raw_fd(),
        argument: launch.argument.map_or(std::ptr::null(), CStr::as_ptr),
        stdio: launch.stdio.map(|fd| fd.as_raw_fd()),
        socket: launch.socket.0.as_raw_fd(),
        socket_number: launch.socket.1,
        unmapped: launch.namespaces & libc::CLONE_NEWUSER as u64 != 0,
    };

    // JUSTIFICATION: neither libc nor rustix nor nix has clone3, and a child that may only make
    // system calls cannot be written with safe wrappers.
    // SAFETY: `args` is a valid clone_args. The child runs `obey` on a stack of its own, which
    // like `orders` outlives it: CLONE_VFORK keeps this thread here until it has executed or
    // exited. All signals are blocked, so that no handler of ours runs in it. It makes only system
    // calls on integers and constants, takes no lock and allocates nothing; all that it writes
    // is its stack and this thread's errno. `pidfd` is the kernel's gift, owned by nobody else.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = clone3(&mut args, &orders);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        drop(stack);
        match result {
            pid @ 1.. => Ok((pid as u32, OwnedFd::from_raw_fd(pidfd))),
            errno => Err(Errno::from_raw_os_error(-errno as i32)),
        }
    }
}

/// clone3 whose child calls [`obey`] on its new stack and never comes back.
///
/// # Safety
/// `args` must name a stack; the rest is the caller's promise to the kernel.
unsafe fn clone3(args: &mut CloneArgs, orders: &Orders) -> isize {
    let result: isize;
    // SAFETY: the child leaves through `obey` and touches nothing of this frame; in the parent
    // only the registers change that a system call changes.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_mut(args),
            in("rsi") std::mem::size_of::<CloneArgs>(),
            in("r8") obey as unsafe extern "C" fn(*const Orders) -> !,
            in("r9") std::ptr::from_ref(orders),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The child's short life in our memory.
///
/// # Safety
/// Only to be called in a child made by clone3, with orders that outlive it.
unsafe extern "C" fn obey(orders: *const Orders) -> ! {
    // SAFETY: raw system calls on integers, and strings that live as long as the program.
    unsafe {
        let orders = &*orders;
        let arguments = [c"knarr-init".as_ptr(), orders.argument, std::ptr::null()];
        let environment = [std::ptr::null::<libc::c_char>()];
        // Out of the way of the numbers that are about to be taken; closed by exec.
        let aside = |fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, orders.socket_number + 1);
        let program = aside(orders.program);
        let socket = aside(orders.socket);
        let mut good = program >= 0 && socket >= 0;
        // What others left open to us is not for it.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let stdio = orders.stdio.map(aside);
        for (number, fd) in stdio.into_iter().enumerate() {
            good = good && fd >= 0 && libc::dup3(fd, number as i32, 0) >= 0;
        }
        good = good && libc::dup3(socket, orders.socket_number, 0) >= 0;
        if orders.unmapped {
            keep_capabilities();
        }
        if good {
            libc::syscall(
                libc::SYS_execveat,
                program,
                c"".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        libc::_exit(*libc::__errno_location())
    }
}

/// A user whom nobody has mapped yet is no root, and would lose everything with
/// exec: ambient capabilities stay.
///
/// # Safety
/// As [`obey`].
unsafe fn keep_capabilities() {
    let header = [0x2008_0522u32 /* _LINUX_CAPABILITY_VERSION_3 */, 0];
    let mut sets = [0u32; 6]; // effective, permitted, inheritable; then their high halves
    // SAFETY: the two structures live on this stack and are as large as the kernel's.
    unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        (sets[2], sets[5]) = (sets[1], sets[4]);
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        for capability in 0..64u64 {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                capability,
                0,
                0,
            );
        }
    }
}

/// The kernel's answer to a raw system call made through libc.
pub(crate) fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[test]
    fn a_program_that_cannot_be_executed_exits_with_the_errno() {
        let null = std::fs::File::open("/dev/null").expect("null");
        let (_, pidfd) = launch(&Launch {
            namespaces: 0,
            cgroup: None,
            program: null.as_fd(),
            argument: None,
            stdio: [null.as_fd(); 3],
            socket: (null.as_fd(), 100),
        })
        .expect("clone3");
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
            .expect("wait")
            .expect("exited");
        assert_eq!(status.exit_status(), Some(libc::EACCES));
    }

    #[test]
    fn signals_reach_a_process_by_its_pidfd() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .expect("pidfd_open");
        assert_eq!(pidfd_send_signal(pidfd.as_fd(), 999), Err(Errno::INVAL));
        pidfd_send_signal(pidfd.as_fd(), 34).expect("SIGRTMIN");
        let status = child.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(34));
        assert_eq!(pidfd_send_signal(pidfd.as_fd(), 9), Err(Errno::SRCH));
    }
}
