//! `spec`: a config.json to begin with.

use std::{fs::File, io::Write, path::Path};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Outcome, args::Verb};

/// The version of the specification that this runtime follows.
pub(crate) const VERSION: &str = "1.2.0";

/// linux/magic.h `CGROUP2_SUPER_MAGIC`.
const CGROUP2: rustix::fs::FsWord = 0x6367_7270;

pub(crate) fn spec(verb: &Verb) -> Outcome {
    let dir = verb.flags.get("bundle").filter(|dir| !dir.is_empty()).unwrap_or(".");
    let path = Path::new(dir).join("config.json");
    write(&path, &begin(verb.flags.has("rootless")))?;
    Ok(0)
}

fn write(path: &Path, spec: &Value) -> Result<()> {
    let file = File::options().write(true).create_new(true).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // runc's words.
            bail!("File {} exists. Remove it first", path.display())
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    spec.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format))?;
    file.write_all(&text).with_context(|| path.display().to_string())
}

/// A shell in a root filesystem beside it, with what runc's own gives it.
fn begin(rootless: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({ "destination": destination, "type": kind, "source": source });
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    let inert = ["nosuid", "noexec", "nodev"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    // A group that a user without privileges cannot map.
    let pts = if rootless { &pts[..5] } else { &pts[..] };
    let sys = if rootless {
        mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])
    };
    let mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &inert),
        sys,
        // Over those of the host, which its owner may write to (CVE-2023-25809).
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    let mut linux = json!({
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
            "/proc/scsi",
        ],
        "readonlyPaths":
            ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if rootless {
        kinds.push("user");
        let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
        linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
        linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    } else {
        kinds.insert(1, "network");
        linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    }
    // Cgroup v1 shows a container its own groups by itself (as runc).
    let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == CGROUP2);
    if unified {
        kinds.push("cgroup");
    }
    linux["namespaces"] = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "runc",
        "mounts": mounts,
        "linux": linux,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_a_specification() {
        for rootless in [false, true] {
            let text = super::begin(rootless).to_string();
            let spec = crate::config::parse(text.as_bytes()).expect("a specification");
            assert_eq!(spec.version(), super::VERSION);
        }
    }
}
