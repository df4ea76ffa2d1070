//! The calls that containerd makes of a shim's program, and what it may say there.
//!
//! ```text
//!  containerd ── start ──▶ 1. which group: the pod's sandbox, else the container (or the
//!                             sandbox itself, which has no config.json)
//!                          2. whoever listens for the group already is the answer;
//!                             else bind the socket and start ourselves to serve it
//!                          3. the address to `address` in the bundle and to stdout
//!             ── delete ─▶ the shim is gone: kill what is left in the cgroup, say
//!                          how the first process ended
//! ```
//!
//! Three generations of the protocol are told apart by what comes on standard
//! input and in the environment:
//!
//! | containerd | standard input | answer |
//! |---|---|---|
//! | up to 1.7 | the runtime's options, as an `Any`, or nothing | the address |
//! | 2.0 to 2.2 (`MAX_SHIM_VERSION` 3) | the same | JSON: version 3, address, protocol |
//! | from 2.3 | `BootstrapParams` of this very container | `BootstrapResult` |
//!
//! Fails with a sentence on standard error and exit code 1; a shim that was
//! started for nothing ends by itself when nobody makes a task in it.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use containerd_shim_protos::{
    api::DeleteResponse,
    bootstrap_api::{BootstrapParams, BootstrapResult},
    protobuf::{
        Message as _, MessageField,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    types::introspection::{RuntimeInfo, RuntimeVersion},
};
use knarr_model::task::{ExitRecord, InitRecord};
use knarr_sandbox::Left;
use knarr_sys::read;
use sha2::{Digest as _, Sha256};

use crate::{args::Caller, attach, options::Options, pod, records};

/// Where containerd serves the events that shims forward.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// The newest protocol that containerd understands.
const MAX_SHIM_VERSION: &str = "MAX_SHIM_VERSION";
/// Of the Task API that we serve beside version 2.
const VERSION: i32 = containerd_shim_protos::TASK_API_VERSION;
/// The file in the bundle that says where its shim listens.
const ADDRESS: &str = "address";
/// Standard input is a few hundred bytes.
const INPUT_MAX: u64 = 1 << 20;
/// Containers with one value of this share a shim, a pod's.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// `-info`: what this runtime is.
pub(crate) fn info() -> Result<()> {
    let info = RuntimeInfo {
        name: "io.containerd.knarr.v1".to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    std::io::stdout().write_all(&info.write_to_bytes()?).context("answer")
}

/// `start`: finds or makes the shim for the container whose bundle is the working directory.
pub(crate) fn start(caller: &Caller) -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin().take(INPUT_MAX).read_to_end(&mut input).context("read standard input")?;
    let bootstrap = bootstrap(&input, caller);
    let options: Vec<Any> = match &bootstrap {
        Some(params) => {
            params.extensions.iter().filter_map(|e| e.value.clone().0).map(|any| *any).collect()
        }
        None if input.is_empty() => Vec::new(),
        None => vec![Any::parse_from_bytes(&input).context("the runtime's options are damaged")?],
    };
    // They come again with each container, but not with a pod's sandbox; what is wrong is
    // said once, and early.
    let mut systemd = false;
    for any in &options {
        systemd |= Options::of(any)?.systemd_cgroup;
    }
    let group = group(Path::new("config.json"))?.unwrap_or_else(|| caller.id.clone());
    let directory = match bootstrap.as_ref().and_then(|params| params.socket_dir.as_deref()) {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory),
        _ => sockets_of(&caller.address),
    };
    let socket = directory.join(socket_name(caller, &group));
    find_or_start(caller, &group, &socket, systemd, bootstrap.as_ref())?;
    let address = format!("unix://{}", socket.display());
    // containerd finds us by this after its own restart.
    write_whole(Path::new(ADDRESS), address.as_bytes())?;
    let mut out = std::io::stdout();
    out.write_all(&answer(bootstrap.is_some(), &address)?)?;
    out.flush().context("answer")
}

/// containerd 2.3's parameters, where standard input is those of this container:
/// the options of its predecessors might parse as such, too.
fn bootstrap(input: &[u8], caller: &Caller) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(input).ok()?;
    (params.instance_id == caller.id && params.namespace == caller.namespace).then_some(params)
}

fn answer(bootstrapped: bool, address: &str) -> Result<Vec<u8>> {
    if bootstrapped {
        let result = BootstrapResult {
            version: VERSION,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        return result.write_to_bytes().context("encode the answer");
    }
    let newest = std::env::var(MAX_SHIM_VERSION).ok().and_then(|text| text.parse::<i32>().ok());
    if newest.is_some_and(|newest| newest >= VERSION) {
        let json =
            serde_json::json!({ "version": VERSION, "address": address, "protocol": "ttrpc" });
        return Ok(json.to_string().into_bytes());
    }
    Ok(address.as_bytes().to_vec())
}

/// The annotation that says with whom a container shares its shim.
fn group(config: &Path) -> Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: std::collections::HashMap<String, String>,
    }
    let shown = config.display();
    let text = match fs::read(config) {
        // A pod's sandbox has none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("read {shown}"))?,
    };
    let config: Config = serde_json::from_slice(&text).with_context(|| format!("parse {shown}"))?;
    Ok(GROUPS.iter().find_map(|name| config.annotations.get(*name).cloned()))
}

/// `/run/containerd/s` for `/run/containerd/containerd.sock`.
fn sockets_of(address: &str) -> PathBuf {
    let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
    let beside = path.parent().filter(|parent| parent.is_absolute());
    let place = beside.unwrap_or(Path::new("/run/containerd")).join("s");
    // 64 characters must fit behind it in a socket's address.
    if place.as_os_str().len() > 40 { PathBuf::from("/run/containerd/s") } else { place }
}

fn socket_name(caller: &Caller, group: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["knarr", &caller.address, &caller.namespace, group] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn find_or_start(
    caller: &Caller,
    group: &str,
    socket: &Path,
    systemd: bool,
    bootstrap: Option<&BootstrapParams>,
) -> Result<()> {
    let directory = socket.parent().context("a socket lies in a directory")?;
    let failed = || format!("make {}", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).with_context(failed)?;
    // Two containers of a pod may come at once: one starts the shim, the other finds it.
    let lock = File::open(directory).with_context(failed)?;
    lock.lock().with_context(|| format!("lock {}", directory.display()))?;
    if UnixStream::connect(socket).is_ok() {
        return Ok(());
    }
    let listener =
        attach::listen(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let mut command = Command::new(std::env::current_exe().context("our own program")?);
    command
        .args(["-namespace", &caller.namespace, "-id", group, "-address", &caller.address])
        .arg("-knarr-listen")
        .arg(socket);
    command.args(systemd.then_some("-knarr-systemd")).args(caller.debug.then_some("-debug"));
    if let Some(params) = bootstrap {
        command.env(TTRPC_ADDRESS, &params.containerd_ttrpc_address);
    }
    let started = command
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(log().map_or_else(|_| Stdio::null(), Stdio::from))
        .spawn();
    match started {
        // It is the init process's to reap, as soon as we are gone.
        Ok(child) => raise_oom_score(child.id()),
        Err(error) => {
            let _ = fs::remove_file(socket);
            return Err(error).context("start the shim");
        }
    }
    Ok(())
}

/// The FIFO that containerd reads a shim's log from. Opened for both directions:
/// a writer whose reader goes away must not die of it.
fn log() -> std::io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("log")
}

/// A shim is worth less than containerd, and more than its containers.
fn raise_oom_score(pid: u32) {
    let own = read::text("/proc/self/oom_score_adj", read::SMALL).unwrap_or_default();
    let score = own.trim().parse::<i32>().unwrap_or_default();
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(1000).to_string());
}

/// A reader sees all of it or nothing.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}

/// `delete`: the shim cannot be reached any more. Idempotent.
pub(crate) fn delete(bundle: &Path) -> Result<()> {
    let read = |name: &str| fs::read(bundle.join(name)).ok();
    let init: Option<InitRecord> =
        read(records::INIT).and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(init) = &init {
        let left = Left { pid: init.pid, start_time: init.start_time, ..Left::default() };
        knarr_sandbox::clean_up(&init.cgroup, &left).context("remove what the container left")?;
    }
    pod::remove_files(bundle);
    if let Some(address) = read(ADDRESS).and_then(|text| String::from_utf8(text).ok())
        && let Some(socket) = address.strip_prefix("unix://")
        && UnixStream::connect(socket).is_err()
    {
        let _ = fs::remove_file(socket);
    }
    let exit: Option<ExitRecord> =
        read(records::EXIT).and_then(|text| serde_json::from_slice(&text).ok());
    let at = exit.as_ref().and_then(|exit| exit.finished_at.parse().ok());
    let at: jiff::Timestamp = at.unwrap_or_else(jiff::Timestamp::now);
    let response = DeleteResponse {
        pid: init.map_or(0, |init| init.pid),
        // Its first process died with the shim.
        exit_status: exit.map_or(137, |exit| exit.code),
        exited_at: MessageField::some(Timestamp {
            seconds: at.as_second(),
            nanos: at.subsec_nanosecond(),
            ..Default::default()
        }),
        ..Default::default()
    };
    std::io::stdout().write_all(&response.write_to_bytes()?).context("answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            namespace: "n".into(),
            id: "c".into(),
            address: "/run/c/c.sock".into(),
            debug: false,
        }
    }

    #[test]
    fn parameters_are_taken_for_this_container_only() {
        let mut params = BootstrapParams {
            instance_id: "c".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "unix:///t".into(),
            ..Default::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        assert_eq!(bootstrap(&bytes, &caller()).unwrap().containerd_ttrpc_address, "unix:///t");
        params.instance_id = "other".into();
        assert!(bootstrap(&params.write_to_bytes().unwrap(), &caller()).is_none());
        assert!(bootstrap(b"", &caller()).is_none());
    }

    #[test]
    fn s06_sockets_have_short_names_of_their_own() {
        let long = Caller { id: "i".repeat(300), namespace: "n/ä".into(), ..caller() };
        let name = socket_name(&long, &long.id);
        assert_eq!(name.len(), 64);
        assert_ne!(name, socket_name(&caller(), "c"));
        assert_ne!(socket_name(&caller(), "c"), socket_name(&caller(), "d"));
        assert_eq!(sockets_of("/run/containerd/containerd.sock"), Path::new("/run/containerd/s"));
        assert_eq!(
            sockets_of(&format!("/{}/c.sock", "x".repeat(90))),
            Path::new("/run/containerd/s")
        );
        assert_eq!(sockets_of(""), Path::new("/run/containerd/s"));
    }

    #[test]
    fn a_pods_containers_have_one_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for (text, want) in [
            ("{}", None),
            (r#"{"annotations":{"other":"x"}}"#, None),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, Some("pod")),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(group(&path).unwrap().as_deref(), want);
        }
        fs::write(&path, "[").unwrap();
        group(&path).unwrap_err();
        assert_eq!(group(&dir.path().join("none")).unwrap(), None, "a pod's sandbox has none");
    }
}
