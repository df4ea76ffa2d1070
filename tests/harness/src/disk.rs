//! A disk of a world's own, whose power can be cut.
//!
//! The disk is an ext4 file system in a file, mounted by a loop device in the world's mount
//! namespace. A cut is ext4's own shutdown without a flush of its log (`EXT4_IOC_SHUTDOWN`,
//! `FS_IOC_GOINGDOWN` with `NOLOGFLUSH`): what was not written out by then never was.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// The ioctl, by the one interpreter that every Debian has: `_IOR('X', 125, u32)`, and 2 for NOLOGFLUSH.
const CUT: &str = r#"open(D, "<", $ARGV[0]) or die $!; my $how = pack("L", 2);
ioctl(D, 0x8004587d, $how) or die $!;"#;

/// An ext4 file system in a file.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Makes a disk of so many MiB and mounts it.
    pub(crate) fn new(image: PathBuf, place: PathBuf, mebibytes: u64) -> Result<Self> {
        let file = std::fs::File::create(&image)?;
        file.set_len(mebibytes << 20)?;
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        std::fs::create_dir(&place)?;
        let disk = Self { image, place };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.place.to_string_lossy()])
    }

    /// Nothing more reaches the disk.
    pub(crate) fn cut(&self) -> Result<()> {
        run("perl", &["-e", CUT, &self.place.to_string_lossy()])
    }

    /// Mounts the disk as a machine finds it after the cut. Everything that used it must have died.
    pub(crate) fn power_on(&self) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = run("umount", &[&self.place.to_string_lossy()]) {
            // The kernel takes namespaces of killed processes apart in its own time.
            if began.elapsed() > Duration::from_secs(20) {
                return Err(error.context("the disk stays in use"));
            }
        }
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.place.to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(())
}
