//! OCI runtimes, called as engines call them: one bundle, with the seccomp profile that
//! Docker gives its containers where Docker was measured, too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use knarr_harness::{World, bin_dir};
use serde_json::{Value, json};

use crate::{Row, peers::installed, warm_median};

/// The seccomp profile of a container that Docker runs now, as its runtime was given it.
pub fn docker_profile(world: &World) -> Option<Value> {
    let tasks =
        world.path().join("docker/run/containerd/daemon/io.containerd.runtime.v2.task/moby");
    let bundle = fs::read_dir(tasks).ok()?.flatten().next()?.path();
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?;
    config.pointer("/linux/seccomp").cloned()
}

/// Where a host with v1 has its v2 hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Measures `run`, and `create`, `start` and `delete` apart.
pub fn measure(
    world: &World,
    runs: usize,
    profile: Option<&Value>,
    rows: &mut Vec<Row>,
    absent: &mut Vec<String>,
) -> Result<()> {
    let own = bin_dir().join("knarr-oci");
    let bundle = bundle(world, &own, profile)?;
    // crun takes an empty v2 hierarchy beside v1 for the whole. These mounts are the bench's,
    // and the engine's that is to clean up after it.
    let quietly = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).stderr(Stdio::null()).status()
    };
    let hidden = quietly("umount", &["--lazy", UNIFIED]).is_ok_and(|status| status.success());
    let peer = |name| installed(name).map(PathBuf::from);
    for (who, program) in [("knarr", Ok(own)), ("crun", peer("crun")), ("runc", peer("runc"))] {
        let times = program.and_then(|program| {
            let root = world.path().join(format!("oci-{who}"));
            Runtime { program, root, bundle: bundle.clone() }.times(runs)
        });
        match times {
            Ok(times) => rows.extend(times.into_iter().map(|(name, time)| Row {
                name,
                who: who.to_owned(),
                time,
            })),
            Err(error) => absent.push(format!("{error:#}")),
        }
    }
    if hidden {
        let status = quietly("mount", &["-t", "cgroup2", "cgroup2", UNIFIED])?;
        ensure!(status.success(), "mount {UNIFIED} again: {status}");
    }
    Ok(())
}

fn bundle(world: &World, knarr_oci: &Path, profile: Option<&Value>) -> Result<PathBuf> {
    let bundle = world.path().join("oci-bundle");
    for directory in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(bundle.join("rootfs").join(directory))?;
    }
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/true")).context("a static busybox")?;
    let status = Command::new(knarr_oci).arg("spec").current_dir(&bundle).status()?;
    ensure!(status.success(), "knarr-oci spec: {status}");
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    // The oldest of them knows no later one.
    config["ociVersion"] = json!("1.0.2");
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/true"]);
    // Not every machine allows them to be raised.
    config["process"]["rlimits"] = json!([]);
    if let Some(profile) = profile {
        config["linux"]["seccomp"] = profile.clone();
    }
    fs::write(path, config.to_string())?;
    Ok(bundle)
}

struct Runtime {
    program: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
}

impl Runtime {
    fn times(&self, runs: usize) -> Result<Vec<(&'static str, Duration)>> {
        let bundle = self.bundle.to_str().context("a bundle")?;
        let run = warm_median(runs, || self.timed(&["run", "--bundle", bundle, "bench"]))?;
        let mut apart: [Vec<Duration>; 3] = Default::default();
        for _ in 0..runs + 2 {
            apart[0].push(self.timed(&["create", "--bundle", bundle, "bench"])?);
            apart[1].push(self.timed(&["start", "bench"])?);
            while !self.stopped()? {}
            apart[2].push(self.timed(&["delete", "bench"])?);
        }
        let mut all = vec![("OCI run", run)];
        for (name, times) in ["OCI create", "OCI start", "OCI delete"].into_iter().zip(apart) {
            let mut times = times.into_iter();
            let next = || times.next().context("a time");
            all.push((name, warm_median(runs, next)?));
        }
        Ok(all)
    }

    /// The wall time of a call that succeeds. The container has these streams, too.
    fn timed(&self, arguments: &[&str]) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(arguments);
        // A file, since a pipe would not end before the container does.
        let words = self.root.with_extension("log");
        let log = fs::File::create(&words)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let before = Instant::now();
        let status = command.status()?;
        let time = before.elapsed();
        ensure!(status.success(), "{command:?}: {}", fs::read_to_string(&words)?.trim());
        Ok(time)
    }

    fn stopped(&self) -> Result<bool> {
        let mut command = Command::new(&self.program);
        let output = command.arg("--root").arg(&self.root).args(["state", "bench"]).output()?;
        let state: Value = serde_json::from_slice(&output.stdout)?;
        Ok(state["status"] == "stopped")
    }
}
