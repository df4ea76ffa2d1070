//! Attributes of mounts.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::io::Errno;

use crate::process::check;

/// What is to change about a mount (`struct mount_attr`, mount_setattr(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// MOUNT_ATTR_* bits to set.
    pub set: u64,
    /// MOUNT_ATTR_* bits to clear; all of MOUNT_ATTR__ATIME where one of its values is set.
    pub clear: u64,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED or zero for no change.
    pub propagation: u64,
    userns: u64,
}

impl MountAttr {
    /// A change of attributes and propagation.
    pub const fn new(set: u64, clear: u64, propagation: u64) -> Self {
        Self { set, clear, propagation, userns: 0 }
    }

    /// Owners as a user namespace sees them (MOUNT_ATTR_IDMAP, Linux 5.12).
    pub fn idmapped(userns: BorrowedFd<'_>) -> Self {
        let userns = userns.as_raw_fd() as u64;
        Self { set: 0x10_0000, clear: 0, propagation: 0, userns }
    }

    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits count for nothing.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes count for nothing.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The bits of the access time's policy.
    pub const ATIME: u64 = 0x70;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are kept exactly.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Changes the mount behind a descriptor, and with `recursive` all beneath it.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attr: &MountAttr,
) -> Result<(), Errno> {
    let empty: &CStr = c"";
    let deep = if recursive { libc::AT_RECURSIVE } else { 0 };
    // JUSTIFICATION: neither rustix nor nix has mount_setattr.
    // SAFETY: the string and the structure outlive the call; the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | deep,
            std::ptr::from_ref(attr),
            std::mem::size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };

    use super::*;

    #[test]
    fn a_detached_mount_becomes_read_only() {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
        fsconfig_create(context.as_fd()).expect("create");
        let mount =
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
                .expect("fsmount");
        rustix::fs::mkdirat(&mount, "before", 0o755.into()).expect("still writable");
        let attr = MountAttr { set: MountAttr::RDONLY, ..Default::default() };
        mount_setattr(mount.as_fd(), true, &attr).expect("mount_setattr");
        let refused = rustix::fs::mkdirat(&mount, "after", 0o755.into());
        assert_eq!(refused, Err(Errno::ROFS));
        let wrong = MountAttr { set: 1 << 60, ..Default::default() };
        assert_eq!(mount_setattr(mount.as_fd(), false, &wrong), Err(Errno::INVAL));
    }
}
