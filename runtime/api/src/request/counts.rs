//! How many of everything a request may bring (CATALOGUE X09).
//!
//! What is behind a count costs the kernel or the engine something for each: a
//! mount, a rule, a row. The body's own limit alone would allow a million. Words of
//! the command and of the environment are counted by bytes, where the kernel has
//! its limit (execve(2), `E2BIG`).

use knarr_docker::{ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig};

use crate::error::{ApiError, Result};

/// Entries of any one list or map; an image has the same limit. The kernel's own for
/// the mounts of a namespace is 100,000 (`fs.mount-max`), for groups 65,536.
pub(crate) const MOST: usize = 10_000;

/// Ports that are exposed or published, ranges counted by their ports: each port of
/// both protocols once, and as many again for addresses of the host.
pub(crate) const MOST_PORTS: usize = 4 * 65_535;

/// Refuses what is too many.
pub(super) fn check(
    config: &ContainerConfig,
    host: &HostConfig,
    networking: &NetworkingConfig,
) -> Result<()> {
    fn list<T>(list: &Option<Vec<T>>) -> usize {
        list.as_ref().map_or(0, Vec::len)
    }
    fn map<K, V>(map: &Option<std::collections::BTreeMap<K, V>>) -> usize {
        map.as_ref().map_or(0, std::collections::BTreeMap::len)
    }
    let words = |words: &Option<knarr_docker::Words>| words.as_ref().map_or(0, |w| w.0.len());
    let mounts = list(&host.binds) + list(&host.mounts) + map(&host.tmpfs) + map(&config.volumes);
    let resolver = list(&host.dns) + list(&host.dns_search) + list(&host.dns_options);
    let capabilities = words(&host.cap_add) + words(&host.cap_drop);
    for (what, count) in [
        ("mounts", mounts),
        ("labels", map(&config.labels)),
        ("containers to take volumes from", list(&host.volumes_from)),
        ("capabilities", capabilities),
        ("security options", list(&host.security_opt)),
        ("devices", list(&host.devices) + list(&host.device_cgroup_rules)),
        ("ulimits", list(&host.ulimits)),
        ("groups", list(&host.group_add)),
        ("sysctls", map(&host.sysctls)),
        ("DNS servers, domains and options", resolver),
        ("extra hosts", list(&host.extra_hosts)),
        ("links", list(&host.links)),
        ("log options", map(&host.log_config.config)),
        ("networks", map(&networking.endpoints_config)),
    ] {
        few(what, count)?;
    }
    for mount in host.mounts.iter().flatten() {
        let volume = mount.volume_options.as_ref();
        let driver = volume.and_then(|options| options.driver_config.as_ref());
        few("labels of a volume", volume.map_or(0, |options| map(&options.labels)))?;
        few("options of a volume", driver.map_or(0, |driver| map(&driver.options)))?;
        few("tmpfs options", mount.tmpfs_options.as_ref().map_or(0, |o| list(&o.options)))?;
    }
    for endpoint in networking.endpoints_config.iter().flatten().filter_map(|(_, e)| e.as_ref()) {
        check_endpoint(endpoint)?;
    }
    Ok(())
}

/// The same for what is said about one endpoint.
pub(super) fn check_endpoint(settings: &EndpointSettings) -> Result<()> {
    few("network aliases", settings.aliases.as_ref().map_or(0, Vec::len))?;
    few("links", settings.links.as_ref().map_or(0, Vec::len))
}

/// Refuses more than [`MOST`].
pub(crate) fn few(what: &str, count: usize) -> Result<()> {
    match count {
        0..=MOST => Ok(()),
        _ => Err(ApiError::invalid(format!("too many {what}: {count}, and {MOST} at most"))),
    }
}
