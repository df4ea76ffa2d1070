//! bpf(2), as far as the device filter of cgroup v2 needs it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::check;

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// One instruction of an eBPF program, in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfInstruction {
    /// Class, operation and source.
    pub code: u8,
    /// Destination register in the low half, source register in the high half.
    pub registers: u8,
    /// Jump distance or offset in memory.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct AttachAttr {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    /// Newer kernels have a field here and older ones want zeros: no byte of
    /// this may be left to chance, so the structure ends without padding.
    relative: u32,
}

/// A raw bpf(2).
///
/// # Safety
/// `attr` must be what `command` takes, and the addresses in it valid.
unsafe fn bpf<T>(command: i32, attr: &T) -> Result<libc::c_long, Errno> {
    // SAFETY: the caller's promise; the kernel copies `size_of::<T>()` bytes.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), std::mem::size_of::<T>())
    })
}

/// Loads a program that decides about devices.
pub fn load_device_filter(instructions: &[BpfInstruction]) -> Result<OwnedFd, Errno> {
    let attr = LoadAttr {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Default::default()
    };
    // JUSTIFICATION: no wrapper crate is among our dependencies, and this is the only use.
    // SAFETY: the instructions and the license outlive the call; the kernel verifies the program
    // and gives a new descriptor that nobody else owns.
    unsafe {
        let fd = bpf(BPF_PROG_LOAD, &attr)?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Attaches it to a cgroup, in place of an older one of ours.
pub fn attach_device_filter(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let attr = AttachAttr {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
        relative: 0,
    };
    // JUSTIFICATION: as above.
    // SAFETY: the structure has no addresses; the kernel checks the descriptors.
    unsafe { bpf(BPF_PROG_ATTACH, &attr) }.map(drop)
}
