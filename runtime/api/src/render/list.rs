//! Rows of `GET /containers/json`.

use knarr_docker::{
    ContainerSummary, KnarrSummary, MountPoint, Port, SummaryHostConfig, SummaryNetworkSettings,
};
use knarr_engine::{ContainerView, MountView, Status};
use knarr_model::{PortSpec, Transport, Workload};

use super::{endpoints, human_duration, seconds_of};

/// One row.
pub(crate) fn summary(view: &ContainerView, now: i64) -> ContainerSummary {
    let KnarrAbi { workload, abi } = abi(&view.workload);
    ContainerSummary {
        id: view.id.to_string(),
        names: vec![format!("/{}", view.name)],
        image: view.spec.image.clone(),
        image_id: view.image_id.to_string(),
        command: command_line(&view.path, &view.args),
        created: seconds_of(&view.created),
        ports: ports(view),
        size_rw: None,
        size_root_fs: None,
        labels: view.spec.labels.clone(),
        state: view.state.status.as_str().into(),
        status: status_line(view, now),
        host_config: SummaryHostConfig {
            network_mode: super::network_mode(&view.spec),
            annotations: None,
        },
        network_settings: Some(SummaryNetworkSettings { networks: endpoints(view) }),
        mounts: view.mounts.iter().map(mount_point).collect(),
        knarr: Some(KnarrSummary { workload, abi }),
    }
}

pub(super) struct KnarrAbi {
    pub(super) workload: String,
    pub(super) abi: String,
}

pub(super) fn abi(workload: &Workload) -> KnarrAbi {
    match workload {
        Workload::Native { .. } => KnarrAbi { workload: "native".into(), abi: String::new() },
        Workload::Wasm { abi, .. } => {
            // The enum's own words are its JSON.
            let abi = serde_json::to_value(abi).ok();
            let abi = abi.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned();
            KnarrAbi { workload: "wasm".into(), abi }
        }
    }
}

/// Program and arguments in one line, words with spaces in quotes.
fn command_line(path: &str, args: &[String]) -> String {
    args.iter().fold(path.to_owned(), |line, word| match word.contains(' ') {
        true => format!("{line} '{word}'"),
        false => format!("{line} {word}"),
    })
}

/// `Up 5 minutes`, `Exited (0) 2 hours ago` (moby `container/state.go`).
fn status_line(view: &ContainerView, now: i64) -> String {
    let since = |time: &Option<String>| {
        human_duration(time.as_deref().map_or(0, |time| now - seconds_of(time)))
    };
    let state = &view.state;
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => format!("Up {}", since(&state.started_at)),
        Status::Paused => format!("Up {} (Paused)", since(&state.started_at)),
        Status::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, since(&state.finished_at))
        }
        Status::Removing => "Removal In Progress".into(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(&state.finished_at)),
        Status::Dead => "Dead".into(),
    }
}

/// A mount as it is.
pub(crate) fn mount_point(mount: &MountView) -> MountPoint {
    MountPoint {
        kind: mount.kind.clone(),
        name: mount.name.clone().unwrap_or_default(),
        source: mount.source.display().to_string(),
        destination: mount.target.display().to_string(),
        driver: mount.driver.clone(),
        mode: if mount.read_only { "ro" } else { "" }.into(),
        rw: !mount.read_only,
        propagation: mount.propagation.clone(),
    }
}

/// Ports that are published, then those that are only exposed; none while it
/// does not run.
fn ports(view: &ContainerView) -> Vec<Port> {
    if !view.state.status.is_running() {
        return Vec::new();
    }
    let kind = |port: &PortSpec| match port.transport {
        Transport::Tcp => "tcp".to_owned(),
        Transport::Udp => "udp".to_owned(),
    };
    let published = view.ports.iter().map(|port| Port {
        ip: port.host_ip.to_string(),
        private_port: port.container.port,
        public_port: port.host_port,
        kind: kind(&port.container),
    });
    let quiet =
        |port: &&PortSpec| !view.ports.iter().any(|published| published.container == **port);
    let exposed = view.spec.exposed_ports.iter().filter(quiet).map(|port| Port {
        ip: String::new(),
        private_port: port.port,
        public_port: 0,
        kind: kind(port),
    });
    exposed.chain(published).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_one_line() {
        assert_eq!(command_line("sh", &["-c".into(), "echo hi".into()]), "sh -c 'echo hi'");
    }
}
