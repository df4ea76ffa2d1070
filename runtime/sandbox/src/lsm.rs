//! Security modules of the kernel: AppArmor's profiles, SELinux's labels.
//!
//! They are words of the specification, handed to the kernel as they are: it
//! knows which of them exist. What is looked up here is only whether the host
//! has the module at all, where one is asked for.

use std::{fs, path::Path};

use oci_spec::runtime::{Process, Spec};

use crate::{Error, Failure};

const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
const SELINUX: &str = "/sys/fs/selinux";

/// The AppArmor profile of a process. Nothing is confined by "unconfined" where
/// there is no AppArmor.
pub(crate) fn profile(process: &Process) -> Option<&str> {
    let profile = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty())?;
    (profile != "unconfined" || apparmor()).then_some(profile)
}

/// The SELinux label of a process.
pub(crate) fn label(process: &Process) -> Option<&str> {
    process.selinux_label().as_deref().filter(|label| !label.is_empty())
}

/// The SELinux label of a container's own filesystems, where the host knows labels: where
/// it does not, nobody asks for one of a file.
pub(crate) fn mount_label(spec: &Spec) -> Option<&str> {
    let label = spec.linux().as_ref()?.mount_label().as_deref();
    label.filter(|label| !label.is_empty() && selinux())
}

/// Refuses what this host does not have.
pub(crate) fn check(process: &Process) -> Result<(), Error> {
    if let Some(profile) = profile(process)
        && !apparmor()
    {
        let text = format!(
            "apparmor profile {profile:?} is specified in config, but apparmor is disabled or not supported"
        );
        return Err(Error::new(Failure::NotSupported, text));
    }
    if label(process).is_some() && !selinux() {
        // runc's words.
        let text = "selinux label is specified in config, but selinux is disabled or not supported";
        return Err(Error::new(Failure::NotSupported, text));
    }
    Ok(())
}

/// Whether the host confines by AppArmor profiles.
pub fn apparmor() -> bool {
    fs::read(APPARMOR).is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether the host has SELinux and a policy for it; without one everything is
/// of the label `kernel`.
pub fn selinux() -> bool {
    Path::new(SELINUX).join("enforce").exists()
        && fs::read("/proc/self/attr/current")
            .is_ok_and(|label| !label.starts_with(b"kernel") || label.contains(&b':'))
}
