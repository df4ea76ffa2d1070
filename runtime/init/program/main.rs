//! `knarr-init`: the first process of a container.
//!
//! Reads a launch from its socket, carries the operations out in order, and
//! becomes the container's program. Makes no choices: what is not in the launch
//! is not done, and the first failure ends it.

#![no_std]
#![no_main]

#[path = "../src/wire.rs"]
mod wire;

mod identity;
mod kernel;
mod reaper;
mod root;
mod run;
mod signal;
mod socket;
mod terminal;

use core::{fmt, panic::PanicInfo};

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

/// `arguments` is what the kernel leaves on the stack; their count lies first.
extern "C" fn main(arguments: *const usize) -> ! {
    // SAFETY: the System V ABI says that the count lies first and the arguments behind it,
    // each ended by a zero byte; nothing has moved them.
    let argument = match unsafe { *arguments } {
        // SAFETY: as above; the second of two is there, and its first letter is enough.
        2.. => unsafe { *(*arguments.add(2) as *const u8) },
        _ => 0,
    };
    if argument != wire::VISIBLE.to_bytes()[0] {
        identity::hide();
    }
    let _ = kernel::sys!(kernel::PRCTL, 15 /* PR_SET_NAME */, c"knarr-init".as_ptr());
    let _ = kernel::sys!(kernel::UMASK, 0);
    let early = if argument == wire::NETWORK.to_bytes()[0] {
        kernel::sys!(kernel::UNSHARE, 0x4000_0000 /* CLONE_NEWNET */).map(drop)
    } else {
        Ok(())
    };
    run::run(early)
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    kernel::exit(254)
}

/// Unwind tables of the core library name it; nothing here ever unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// The library prints operations; the program never does.
impl fmt::Debug for wire::List<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl fmt::Debug for wire::Bytes<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// What the compiler expects of a C library.
mod intrinsics {
    use core::arch::asm;

    // JUSTIFICATION: the compiler emits calls to these four by name.
    // SAFETY (all): the caller promises, as in C, that the ranges are valid; the string
    // instructions touch exactly them, with the direction flag clear as the ABI says.

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= count {
            // SAFETY: see above; the ranges do not overlap in the wrong way.
            return unsafe { memcpy(to, from, count) };
        }
        // SAFETY: see above; copied from the end, and the flag is cleared again.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") count => _,
                inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
        // SAFETY: see above.
        unsafe {
            asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        for at in 0..count {
            // SAFETY: see above; volatile so that this loop is not turned into a call of itself.
            let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        // SAFETY: see above.
        unsafe { memcmp(a, b, count) }
    }
}
