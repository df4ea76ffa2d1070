//! What a Wasm program is granted: Docker's words as grants, deny by default.

use std::path::PathBuf;

use knarr_model::{
    ContainerSpec, NetworkMode, PortSpec, Transport, WasmAbi,
    task::{Preopen, WasmLaunch, WasmNetwork},
};

use crate::oci::{ResolvedMount, Source};

/// Docker's words as grants: deny by default (ARCHITECTURE §5).
pub(crate) fn grants(
    abi: WasmAbi,
    spec: &ContainerSpec,
    mounts: &[ResolvedMount],
    host: PathBuf,
    code: PathBuf,
) -> WasmLaunch {
    let mut preopens = vec![Preopen { path: "/".into(), read_only: true }];
    preopens.extend(mounts.iter().map(|mount| {
        // Where the mount alone is read-only, the kernel knows what is and what is not.
        let shallow = matches!(mount.source, Source::Path { read_only_shallow: true, .. });
        Preopen { path: mount.target.clone(), read_only: mount.read_only && !shallow }
    }));
    let network = match spec.network_mode {
        NetworkMode::None => None,
        _ => {
            let ports = |transport: Transport| -> Vec<u16> {
                let of = |port: &PortSpec| (port.transport == transport).then_some(port.port);
                let all: std::collections::BTreeSet<u16> = spec
                    .exposed_ports
                    .iter()
                    .filter_map(of)
                    .chain(spec.published.iter().filter_map(|binding| of(&binding.container)))
                    .collect();
                all.into_iter().collect()
            };
            let mut listen_tcp = ports(Transport::Tcp);
            if abi == WasmAbi::HttpProxy && listen_tcp.is_empty() {
                listen_tcp.push(8080);
            }
            Some(WasmNetwork { listen_tcp, listen_udp: ports(Transport::Udp), dns: true })
        }
    };
    // There is no more to be had than the machine has.
    let machine = rustix::system::sysinfo();
    let machine = machine.totalram.saturating_mul(u64::from(machine.mem_unit.max(1)));
    let memory = Some(spec.resources.memory.unwrap_or(u64::MAX).min(machine));
    WasmLaunch { host, code, identity: None, abi, preopens, network, memory }
}
