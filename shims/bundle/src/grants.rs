//! What a bundle's own words grant its Wasm program: directories, ports, memory.

use std::path::Path;

use knarr_model::{
    WasmAbi,
    task::{Preopen, WasmNetwork},
};
use oci_spec::runtime::Spec;

use crate::{Error, Result};

/// Ports that a Wasm program may listen on: `8080 9000/udp`.
pub(crate) const LISTEN: &str = "dev.knarr.listen";
/// Where a `wasi:http` program listens that names no port.
const HTTP_PORT: u16 = 8080;

/// The root, to be read, and what is mounted, as the bundle mounts it. What the
/// kernel and the engine put there for native programs is not among them.
pub(crate) fn preopens(spec: &Spec) -> Vec<Preopen> {
    let mut all = vec![Preopen { path: "/".into(), read_only: true }];
    for mount in spec.mounts().iter().flatten() {
        let path = mount.destination();
        let kernel = ["/proc", "/dev", "/sys"].iter().any(|dir| path.starts_with(dir));
        let etc = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        if kernel || etc.iter().any(|file| path == Path::new(file)) {
            continue;
        }
        let options = mount.options().as_deref().unwrap_or_default();
        let read_only = options.iter().any(|option| option == "ro" || option == "rro");
        all.push(Preopen { path: path.clone(), read_only });
    }
    all
}

/// Sockets are those of the network that the bundle names; ports to listen on, the
/// annotation's.
pub(crate) fn network(spec: &Spec, abi: WasmAbi) -> Result<WasmNetwork> {
    let mut network = WasmNetwork { dns: true, ..WasmNetwork::default() };
    let ports = spec.annotations().as_ref().and_then(|all| all.get(LISTEN));
    for word in ports.iter().flat_map(|text| text.split([' ', ','])).filter(|w| !w.is_empty()) {
        let (port, transport) = word.split_once('/').unwrap_or((word, "tcp"));
        let no_port = || Error::Invalid(format!("annotation {LISTEN}: {word:?} is no port"));
        let list = match transport {
            "tcp" => &mut network.listen_tcp,
            "udp" => &mut network.listen_udp,
            _ => return Err(no_port()),
        };
        list.push(port.parse().ok().filter(|port| *port > 0).ok_or_else(no_port)?);
    }
    if abi == WasmAbi::HttpProxy && network.listen_tcp.is_empty() {
        network.listen_tcp.push(HTTP_PORT);
    }
    Ok(network)
}

/// The most memory that the container can have, in bytes: its limit, or the machine's.
pub(crate) fn memory(spec: &Spec) -> Option<u64> {
    let limit = || {
        let resources = spec.linux().as_ref()?.resources().as_ref()?;
        let limit = resources.memory().as_ref()?.limit()?;
        u64::try_from(limit).ok().filter(|bytes| *bytes > 0)
    };
    let machine = rustix::system::sysinfo();
    let machine = machine.totalram.saturating_mul(u64::from(machine.mem_unit.max(1)));
    Some(limit().unwrap_or(u64::MAX).min(machine))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn only_named_ports_are_granted() {
        let with = |value: &str| {
            spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{LISTEN}":"{value}"}}}}"#))
        };
        let granted = network(&with("80 53/udp,443/tcp"), WasmAbi::HttpProxy).unwrap();
        assert_eq!((granted.listen_tcp, granted.listen_udp), (vec![80, 443], vec![53]));
        let none = spec(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(network(&none, WasmAbi::HttpProxy).unwrap().listen_tcp, [HTTP_PORT]);
        assert!(network(&none, WasmAbi::ComponentCommand).unwrap().listen_tcp.is_empty());
        for bad in ["0", "x", "80/sctp", "70000"] {
            network(&with(bad), WasmAbi::HttpProxy).unwrap_err();
        }
    }

    #[test]
    fn memory_is_the_limit_or_the_machines() {
        let with = |limit: i64| {
            let memory = format!(r#"{{"memory":{{"limit":{limit}}}}}"#);
            spec(&format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{memory}}}}}"#))
        };
        assert_eq!(memory(&with(16 << 20)), Some(16 << 20));
        // What the kernel says elsewhere. A balloon may take some of it meanwhile.
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let machine = total.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        for none in [spec(r#"{"ociVersion":"1.0.2"}"#), with(0), with(-1), with(i64::MAX)] {
            let most = memory(&none).unwrap();
            assert!(most.abs_diff(machine) < machine / 8, "{most} of {machine}");
        }
    }

    #[test]
    fn directories_are_granted_as_the_bundle_mounts_them() {
        let spec = spec(
            r#"{"ociVersion":"1.0.2","mounts":[
                {"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"/etc/hosts","source":"/h","options":["rbind"]},
                {"destination":"/config","source":"/c","options":["rbind","rro"]},
                {"destination":"/data","source":"/d","options":["rbind","rw"]}]}"#,
        );
        let granted: Vec<_> = preopens(&spec)
            .into_iter()
            .map(|one| (one.path.display().to_string(), one.read_only))
            .collect();
        let expected = [("/", true), ("/config", true), ("/data", false)];
        assert_eq!(granted, expected.map(|(path, read_only)| (path.to_owned(), read_only)));
    }
}
