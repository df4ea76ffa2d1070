//! Capabilities as the kernel's bit sets.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

pub(crate) const SYS_ADMIN: u64 = 1 << 21;

/// The five sets of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) bounding: u64,
    pub(super) effective: u64,
    pub(super) permitted: u64,
    pub(super) inheritable: u64,
    pub(super) ambient: u64,
}

impl Sets {
    /// Without a word about capabilities a process has none. The inheritable
    /// set is what the ambient one needs and nothing else (CVE-2022-24769),
    /// unless an operator has written one down: then the ambient set is what
    /// both say, as the kernel has it.
    ///
    /// What we do not have ourselves cannot be given: as runc does, it is left
    /// out, so that "all of them" works on a host that keeps some back.
    pub(super) fn of(
        capabilities: Option<&LinuxCapabilities>,
        available: u64,
        foreign: bool,
    ) -> Self {
        let Some(all) = capabilities else { return Self::default() };
        let set =
            |names: &Option<HashSet<Capability>>| names.as_ref().map_or(0, mask_of) & available;
        let permitted = set(all.permitted());
        let wanted = set(all.ambient()) & permitted;
        let inheritable = if foreign { set(all.inheritable()) } else { wanted };
        Self {
            bounding: set(all.bounding()),
            effective: set(all.effective()) & permitted,
            permitted,
            inheritable,
            ambient: wanted & inheritable,
        }
    }
}

/// A set as bits.
pub(crate) fn mask_of(set: &HashSet<Capability>) -> u64 {
    set.iter().fold(0, |mask, capability| mask | 1 << number(*capability))
}

/// linux/capability.h
fn number(capability: Capability) -> u32 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}
