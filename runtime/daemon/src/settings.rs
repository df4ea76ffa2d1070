//! Settings to the engine's own configuration.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use knarr_engine::EngineConfig;
use knarr_model::Subnet4;

use crate::options::Settings;

/// What this program is called with to unpack a layer (`knarr_store::work`).
pub(crate) const UNPACK: &str = "unpack-layer";

/// The engine's configuration, with every path absolute.
pub(crate) fn engine(settings: &Settings, libexec: Option<&Path>) -> Result<EngineConfig> {
    let defaults = EngineConfig::default();
    let absolute = |path: &Option<PathBuf>, default: &Path| -> Result<PathBuf> {
        let path = path.clone().unwrap_or_else(|| default.to_owned());
        std::path::absolute(&path).with_context(|| format!("invalid path {}", path.display()))
    };
    let data_root = absolute(&settings.data_root, &defaults.data_root)?;
    let exec_root = absolute(&settings.exec_root, &defaults.exec_root)?;
    ensure!(data_root != exec_root, "data-root and exec-root must differ");
    // What the engine makes outside its roots carries its name: two engines on
    // one host never touch each other's.
    let instance = instance(&data_root, &defaults.data_root);
    let mut network = knarr_network::Options::new(
        instance.clone().unwrap_or_else(|| knarr_network::Options::MAIN.into()),
    );
    if let Some(name) = &instance {
        network.bridge = format!("knarr-{name}");
    }
    if let Some(bridge) = &settings.bridge {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            (1..16).contains(&bridge.len()) && bridge.chars().all(plain) && bridge != "none",
            "invalid bridge name {bridge:?}"
        );
        network.bridge.clone_from(bridge);
    }
    network.bridge_address = settings.bip.as_deref().map(address).transpose()?;
    if !settings.default_address_pools.is_empty() {
        network.pools = settings
            .default_address_pools
            .iter()
            .map(|pool| {
                let base: Subnet4 = pool.base.parse().map_err(|error| {
                    anyhow::anyhow!("invalid address pool {}: {error}", pool.base)
                })?;
                Ok(knarr_network::Pool { base, size: pool.size })
            })
            .collect::<Result<_>>()?;
    }
    network.dns.clone_from(&settings.dns);
    network.host_gateway = settings.host_gateway_ip;
    if let Some(policy) = &settings.bridge_input {
        network.bridge_input = policy.parse()?;
    }
    if let Some(mtu) = settings.mtu {
        network.mtu = mtu;
    }
    let cgroup_parent = match (&settings.cgroup_parent, &instance) {
        (Some(parent), _) => format!("/{}", parent.trim_matches('/')),
        (None, Some(name)) => format!("/knarr-{name}"),
        (None, None) => defaults.cgroup_parent.clone(),
    };
    ensure!(!cgroup_parent.split('/').any(|part| part == ".."), "invalid cgroup-parent");
    let libexec = libexec.map(Path::to_owned).or_else(beside);
    let program = |name: &str, default: &Path| match &libexec {
        Some(dir) if dir.join(name).exists() => dir.join(name),
        _ => default.to_owned(),
    };
    Ok(EngineConfig {
        shim: program("containerd-shim-knarr-v1", &defaults.shim),
        wasm_host: program("knarr-wasm", &defaults.wasm_host),
        // This very program, also when its file was replaced meanwhile.
        unpacker: Some(knarr_store::Worker {
            program: "/proc/self/exe".into(),
            arguments: vec![UNPACK.into()],
        }),
        data_root,
        exec_root,
        own_cgroup_parent: settings.cgroup_parent.is_none(),
        cgroup_parent,
        network,
        registry: registry(settings)?,
        ..defaults
    })
}

fn registry(settings: &Settings) -> Result<knarr_registry::Config> {
    Ok(knarr_registry::Config {
        mirrors: settings.registry_mirrors.clone(),
        insecure: settings.insecure_registries.clone(),
        ..knarr_registry::Config::default()
    })
}

/// The directory of this very program.
fn beside() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}

/// None for the default data root, else eight digits that stand for it.
fn instance(data_root: &Path, default: &Path) -> Option<String> {
    if data_root == default {
        return None;
    }
    // FNV-1a: the same in every version of every compiler.
    let hash =
        data_root.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    Some(format!("{hash:08x}"))
}

/// `172.20.0.1/16`: an address and the subnet around it.
fn address(text: &str) -> Result<(Ipv4Addr, Subnet4)> {
    let bad = || format!("invalid bip {text:?}: want an address with a prefix, like 172.20.0.1/16");
    let (address, prefix) = text.split_once('/').with_context(bad)?;
    let address: Ipv4Addr = address.parse().with_context(bad)?;
    let prefix: u8 = prefix.parse().with_context(bad)?;
    let subnet = Subnet4::containing(address, prefix).with_context(bad)?;
    Ok((address, subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_beside_each_other_have_names_of_their_own() {
        let of = |root: &str| {
            let settings = Settings { data_root: Some(root.into()), ..Settings::default() };
            engine(&settings, None).unwrap()
        };
        let (one, other, default) = (of("/a"), of("/b"), of("/var/lib/knarr"));
        assert_ne!(one.network.instance, other.network.instance);
        assert_ne!(one.network.bridge, other.network.bridge);
        assert_ne!(one.cgroup_parent, other.cgroup_parent);
        assert!(one.network.bridge.len() < 16);
        assert_eq!(
            (default.network.bridge.as_str(), default.cgroup_parent.as_str()),
            ("knarr0", "/knarr")
        );
    }

    #[test]
    fn bip_is_an_address_in_its_subnet() {
        let (ip, _) = address("172.20.0.1/16").unwrap();
        assert_eq!(ip.to_string(), "172.20.0.1");
        for bad in ["", "172.20.0.1", "x/16", "172.20.0.1/99"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
