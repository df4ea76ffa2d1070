//! What the sandbox hands over, and how it is taken: with `unsafe`.
//!
//! The host inherits two descriptors: 3, the launch as JSON, and 4, code that
//! `knarr-wasm compile` made and the engine's own cache kept. It adopts both
//! and maps the code: none of this has a safe form. Beside this file only
//! `random.rs` may be unsafe.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    os::fd::{FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, Ordering},
};

use knarr_model::task::CodeIdentity;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use wasmtime::{
    CustomCodeMemory, Engine, Module, Result, component::Component, error::Context as _,
};

/// A launch is some arguments and an environment; the kernel's own bound for
/// those of a native program is 2 MiB.
const MAX_LAUNCH: u64 = 16 << 20;

/// The descriptors of a start, taken once.
pub(crate) struct Inherited {
    launch: File,
    code: File,
}

impl Inherited {
    /// Adopts descriptors 3 and 4.
    ///
    /// # Errors
    /// Where they are not open, or somebody took them before.
    pub(crate) fn take() -> Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        wasmtime::ensure!(!TAKEN.swap(true, Ordering::Relaxed), "the launch was taken already");
        Ok(Self { launch: adopt(3, "the launch")?, code: adopt(4, "the code")? })
    }

    /// Reads the launch; the descriptor is closed after it.
    pub(crate) fn launch(mut self) -> Result<(Vec<u8>, Code)> {
        let mut text = Vec::new();
        self.launch.rewind().context("cannot read the launch on descriptor 3")?;
        (&self.launch).take(MAX_LAUNCH).read_to_end(&mut text).context("cannot read the launch")?;
        Ok((text, Code(self.code)))
    }
}

fn adopt(number: i32, what: &str) -> Result<File> {
    // SAFETY: borrowed for one call that answers EBADF where it is not open.
    let open = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(open, rustix::io::FdFlags::CLOEXEC)
        .with_context(|| format!("{what} is not on descriptor {number}"))?;
    // JUSTIFICATION: an inherited descriptor is a number; nothing safe makes an
    // owner of it.
    // SAFETY: it is open, and `Inherited::take` runs once, first thing in the
    // process, so that nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// What keeps the guest from starting before its network is there.
pub(crate) struct Gate(Option<File>);

impl Gate {
    /// Adopts the socket, where the launch names one.
    pub(crate) fn take(number: Option<i32>) -> Result<Self> {
        Ok(Self(number.map(|number| adopt(number, "the gate")).transpose()?))
    }

    /// Waits until the guest may start. The socket's end tells the engine that
    /// it has.
    pub(crate) fn wait(self) -> Result<()> {
        let Some(mut socket) = self.0 else { return Ok(()) };
        socket.read_exact(&mut [0]).context("nobody says that the program may start")
    }
}

/// Code that was compiled ahead.
pub(crate) struct Code(File);

impl Code {
    /// Makes sure that it is the very file that was checked, and that nobody has written to
    /// it since.
    pub(crate) fn is(&self, checked: Option<&CodeIdentity>) -> Result<()> {
        use std::os::linux::fs::MetadataExt as _;
        let Some(checked) = checked else { return Ok(()) };
        let is = self.0.metadata().context("the compiled code")?;
        let found = CodeIdentity {
            device: is.st_dev(),
            inode: is.st_ino(),
            size: is.st_size(),
            changed: is.st_ctime(),
            changed_nanoseconds: is.st_ctime_nsec(),
        };
        wasmtime::ensure!(
            found == *checked,
            "the compiled code is not the one that was checked: it has changed since"
        );
        Ok(())
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        Ok(self.0.metadata().context("the compiled code")?.len())
    }

    /// The same file once more.
    pub(crate) fn again(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone().context("cannot duplicate the code's descriptor")?))
    }

    /// Maps a core module.
    pub(crate) fn module(self, engine: &Engine) -> Result<Module> {
        // JUSTIFICATION: running compiled code is what this program is for.
        // SAFETY: descriptor 4 is opened by the engine from its own cache, a
        // directory only root may write, whose files are written once, by
        // `knarr-wasm compile`, and renamed into place. wasmtime refuses code of
        // another version, processor or configuration.
        unsafe { Module::deserialize_open_file(engine, self.0) }
            .context("the compiled code cannot be loaded")
    }

    /// Maps a component.
    ///
    /// Mapped by hand, because wasmtime takes an open file only for modules and
    /// the jail has no /proc to name it by. An engine whose code memory is
    /// [`MappedCode`] makes its instructions executable.
    pub(crate) fn component(self, engine: &Engine) -> Result<Component> {
        let length = usize::try_from(self.0.metadata().context("the compiled code")?.len())?;
        wasmtime::ensure!(length > 0, "the compiled code cannot be loaded: it is empty");
        // SAFETY: a new private mapping where the kernel likes; it is never
        // unmapped, so that it lives as long as any component made from it.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                &self.0,
                0,
            )
        }
        .context("the compiled code cannot be mapped")?;
        let start = NonNull::new(start.cast::<u8>()).context("a mapping at address zero")?;
        let code = NonNull::slice_from_raw_parts(start, length);
        // JUSTIFICATION, SAFETY: as for modules; the mapping is private and read-only.
        unsafe { Component::deserialize_raw(engine, code) }
            .context("the compiled code cannot be loaded")
    }
}

/// Makes the instructions in a mapping of [`Code::component`] executable, never
/// writable.
pub(crate) struct MappedCode;

impl CustomCodeMemory for MappedCode {
    fn required_alignment(&self) -> usize {
        // Not rustix's: before Linux 6.4 it would have to ask /proc.
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        size.ok().flatten().and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> Result<()> {
        // SAFETY: wasmtime calls this with the pages of a mapping that it was given
        // in `component`, which hold nothing but instructions.
        unsafe {
            rustix::mm::mprotect(
                start.cast_mut().cast(),
                length,
                MprotectFlags::READ | MprotectFlags::EXEC,
            )
        }
        .context("the compiled code cannot be made executable")
    }

    fn unpublish_executable(&self, _start: *const u8, _length: usize) -> Result<()> {
        // The mapping lives as long as the process.
        Ok(())
    }
}
