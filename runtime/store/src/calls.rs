//! The system calls of the process that unpacks, once it is confined.
//!
//! | call | answer |
//! |---|---|
//! | reading the archive, making what a layer holds, memory, time, the end | allowed |
//! | what a library may try, and do without | EPERM, or ENOSYS where it is a newer call |
//! | everything else | the process is killed (SIGSYS) |
//!
//! So an archive that has taken the process over makes no thread or process of it, no
//! socket, no mount and no executable memory. Found by reading: what `extract.rs`, `times.rs`,
//! `resolve.rs` and the tree room call, what the standard and the C library do for memory,
//! streams and a panic. The decompressors only take memory.

use knarr_sys::seccomp::{
    ALLOW, EPERM, Filter, Instruction, KILL_PROCESS, equals, load_seccomp_filter, masked,
};
use libc::c_long;
use rustix::io::Errno;

/// Files of the layer, whose directory is the process's root.
const FILES: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// What a library may try, and do without; none of ours does today.
const REFUSED: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_getcwd,
    libc::SYS_ioctl,
    libc::SYS_readlink,
    libc::SYS_sendfile,
    libc::SYS_splice,
];

/// For this process.
fn unpacking() -> Vec<Instruction> {
    let kinds = [libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK];
    let of_kind = |kind: u32| vec![masked(2, libc::S_IFMT.into(), u64::from(kind), true)];
    let descriptors = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL];
    Filter::default()
        .common()
        .answer(FILES, ALLOW)
        .answer(REFUSED, EPERM)
        // Devices and pipes; no sockets.
        .only(libc::SYS_mknodat, kinds.map(of_kind).to_vec(), KILL_PROCESS)
        // Flags and duplicates of descriptors: nobody is to be sent signals.
        .only(
            libc::SYS_fcntl,
            descriptors.map(|command| vec![equals(1, command as u64)]).to_vec(),
            EPERM,
        )
        .program()
}

/// Confines this process, which has `no_new_privs`.
pub(crate) fn confine() -> Result<(), Errno> {
    load_seccomp_filter(&unpacking())
}

#[cfg(test)]
mod tests {
    use knarr_sys::seccomp::{ANY, ARCH_I386, ARCH_X86_64, ENOSYS, answer};

    use super::*;

    fn answered(number: c_long, args: &[u64]) -> u32 {
        let all = std::array::from_fn(|place| args.get(place).copied().unwrap_or(0));
        answer(&unpacking(), ARCH_X86_64, number as u32, all)
    }

    #[test]
    fn i08_whoever_unpacks_makes_files_and_nothing_else() {
        for (call, args) in [
            (libc::SYS_read, &[0][..]),
            (libc::SYS_write, &[1]),
            (libc::SYS_openat2, &[]),
            (libc::SYS_lsetxattr, &[]),
            (libc::SYS_utimensat, &[]),
            (libc::SYS_mmap, &[0, 4096, 3]),
            (libc::SYS_mknodat, &[3, 0, 0o010_000]),
            (libc::SYS_mknodat, &[3, 0, 0o020_644]),
            (libc::SYS_mknodat, &[3, 0, 0o060_000]),
            (libc::SYS_fcntl, &[0, libc::F_DUPFD_CLOEXEC as u64]),
            // An abort, where memory has come to its end.
            (libc::SYS_tgkill, &[u64::from(std::process::id()), 1, 6]),
            (libc::SYS_exit_group, &[]),
        ] {
            assert_eq!(answered(call, args), ALLOW, "{call} {args:?}");
        }
        for (call, args) in [
            (libc::SYS_mmap, &[0, 4096, 5][..]),
            (libc::SYS_mprotect, &[0, 4096, 7]),
            (libc::SYS_pkey_mprotect, &[0, 4096, 7]),
            (libc::SYS_memfd_create, &[]),
            (libc::SYS_execve, &[]),
            (libc::SYS_execveat, &[]),
            (libc::SYS_clone, &[17]),
            (libc::SYS_clone, &[0x003d_0f00]),
            (libc::SYS_fork, &[]),
            (libc::SYS_vfork, &[]),
            (libc::SYS_socket, &[1, 1, 0]),
            (libc::SYS_connect, &[]),
            (libc::SYS_mknodat, &[3, 0, 0o140_000]),
            (libc::SYS_mknodat, &[3, 0, 0o100_644]),
            (libc::SYS_mount, &[]),
            (libc::SYS_umount2, &[]),
            (libc::SYS_open_tree, &[]),
            (libc::SYS_move_mount, &[]),
            (libc::SYS_fsopen, &[]),
            (libc::SYS_mount_setattr, &[]),
            (libc::SYS_pivot_root, &[]),
            (libc::SYS_chroot, &[]),
            (libc::SYS_unshare, &[]),
            (libc::SYS_setns, &[]),
            (libc::SYS_ptrace, &[]),
            (libc::SYS_process_vm_writev, &[]),
            (libc::SYS_pidfd_getfd, &[]),
            (libc::SYS_open_by_handle_at, &[]),
            (libc::SYS_kill, &[1, 9]),
            (libc::SYS_tgkill, &[1, 1, 9]),
            (libc::SYS_bpf, &[]),
            (libc::SYS_perf_event_open, &[]),
            (libc::SYS_userfaultfd, &[]),
            (libc::SYS_io_uring_setup, &[]),
            (libc::SYS_keyctl, &[]),
            (libc::SYS_swapon, &[]),
            (libc::SYS_quotactl, &[]),
        ] {
            assert_eq!(answered(call, args), KILL_PROCESS, "{call} {args:?}");
        }
        assert_eq!(answered(libc::SYS_fcntl, &[0, libc::F_SETOWN as u64, 1]), EPERM);
        assert_eq!(answered(libc::SYS_prlimit64, &[0, 7, 1]), EPERM);
        assert_eq!(answered(libc::SYS_clone3, &[]), ENOSYS);
        assert_eq!(answered(9999, &[]), ENOSYS);
        assert_eq!(answer(&unpacking(), ARCH_I386, 11, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn i08_nothing_else_is_allowed_whatever_the_arguments_are() {
        let names: Vec<c_long> = FILES.iter().chain(ANY).copied().collect();
        for number in 0..1000 {
            let given = answered(number, &[u64::MAX; 6]);
            assert!(given != ALLOW || names.contains(&number), "{number}");
        }
    }
}
