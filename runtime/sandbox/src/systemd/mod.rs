//! Containers whose control group is a scope of systemd's (`--systemd-cgroup`).
//!
//! ```text
//!  cgroupsPath slice:prefix:name ─▶ Unit ── start(pid) ─▶ prefix-name.scope, with the process in it
//!                                        ── set ────────▶ other limits
//!                                        ── stop ───────▶ gone
//! ```
//!
//! systemd makes the group, moves the process there and delegates it; what the
//! specification says of limits is told to systemd, which may write it again at
//! any reload, and then written to the group's files like everybody's. Only a
//! specification with [`SYSTEMD_ANNOTATION`] comes here, and nothing of this
//! costs the others anything. It fails where no systemd answers, naming the
//! sockets that were tried, and where a job does not end as `done`.
//!
//! For a user without privileges it is his own manager (`systemd --user`), which makes
//! groups below its own: `/user.slice/user-1000.slice/user@1000.service/user.slice/…`.

mod bus;
mod properties;

use std::path::PathBuf;

use bus::{Bus, Refused, Trouble, Value, Whose, Writer};
use oci_spec::runtime::{LinuxResources, Spec};

use crate::{Error, Failure, SYSTEMD_ANNOTATION, cgroup::Layout, plan::annotation, rootless};

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// What [`SYSTEMD_ANNOTATION`] is to say here: `true` where the system's manager is to make
/// the group, or the control group of the user's manager.
pub fn systemd_manager() -> Result<String, Error> {
    // A service in a container of somebody's has no user's environment: there, the
    // system's manager is its own.
    let named = rootless::joined() || Whose::User.is_named();
    if !rootless::is_a_users() || !named {
        return Ok("true".to_owned());
    }
    if !matches!(Layout::get()?, Layout::V2(_)) {
        let text = "control groups that a user's systemd makes need cgroup v2";
        return Err(Error::new(Failure::NotSupported, text));
    }
    Bus::connect(Whose::User)?.property("ControlGroup")
}

/// A transient scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// `prefix-name.scope`.
    name: String,
    /// The group of the manager that makes it, where that is a user's.
    manager: Option<PathBuf>,
    /// The slice it lies in.
    slice: String,
    /// Properties that annotations ask for.
    asked: Vec<(String, Value)>,
}

impl Unit {
    /// That of a container, where systemd is to make its group.
    pub(crate) fn of(spec: &Spec, id: &str) -> Result<Option<Box<Self>>, Error> {
        let manager = match annotation(spec, SYSTEMD_ANNOTATION) {
            None => return Ok(None),
            Some("true") => None,
            Some(group) => Some(PathBuf::from(group)),
        };
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let path = path.map(|path| path.to_string_lossy()).unwrap_or_default();
        let (slice, prefix, name) = match path.split(':').collect::<Vec<_>>()[..] {
            [""] => ("", "knarr", id),
            [slice, prefix, name] if !name.is_empty() => (slice, prefix, name),
            _ => {
                // runc's words.
                let text = format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                );
                return Err(Error::new(Failure::InvalidSpec, text));
            }
        };
        let slice = match (slice, &manager) {
            ("", None) => "system.slice",
            ("", Some(_)) => "user.slice",
            (slice, _) => slice,
        };
        expanded(slice)?;
        if name.ends_with(".slice") {
            let text = format!("a container in the slice {name:?} itself is not supported");
            return Err(Error::new(Failure::NotSupported, text));
        }
        let name = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if name.len() > 255 || !name.bytes().all(valid) {
            let text = format!("{name:?} is no name of a systemd unit");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        let asked = properties::asked(spec)?;
        Ok(Some(Box::new(Self { name, manager, slice: slice.to_owned(), asked })))
    }

    /// Where its group is.
    pub(crate) fn path(&self) -> Result<PathBuf, Error> {
        let below = expanded(&self.slice)?.join(&self.name);
        Ok(match &self.manager {
            None => below,
            Some(group) => group.join(below.strip_prefix("/").unwrap_or(&below)),
        })
    }

    fn connect(&self) -> Result<Bus, Error> {
        Bus::connect(if self.is_a_users() { Whose::User } else { Whose::System })
    }

    /// Makes it around a process.
    pub(crate) fn start(
        &self,
        pid: u32,
        id: &str,
        resources: Option<&LinuxResources>,
    ) -> Result<(), Error> {
        let mut bus = self.connect()?;
        let text = |text: &str| Value::Text(text.to_owned());
        let v2 = matches!(Layout::get()?, Layout::V2(_));
        let mut all = vec![
            ("Description", text(&format!("knarr container {id}"))),
            ("Slice", text(&self.slice)),
            ("PIDs", Value::U32s(vec![pid])),
            ("Delegate", Value::Bool(true)),
            ("DefaultDependencies", Value::Bool(false)),
            ("CollectMode", text("inactive-or-failed")),
            ("CPUAccounting", Value::Bool(true)),
            ("MemoryAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
            (if v2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Bool(true)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect::<Vec<_>>();
        if !self.is_a_users() {
            // A user's manager may not say what devices are used.
            all.extend(properties::devices(resources));
        }
        all.extend(
            resources.map(|resources| properties::limits(resources, v2)).unwrap_or_default(),
        );
        all.extend(self.asked.iter().cloned());
        let mut body = Writer::default();
        body.text(&self.name).text("replace").properties(&all).no_units();
        let mut start = || bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body);
        let job = match start() {
            Err(Trouble::Refused(Refused { name, .. })) if name == UNIT_EXISTS => {
                // One that has failed is remembered until somebody says it may be forgotten.
                let mut name = Writer::default();
                name.text(&self.name);
                let _ = bus.call("ResetFailedUnit", "s", &name);
                bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)
            }
            other => other,
        };
        let job = job.map_err(|trouble| trouble.into_error(&format!("start {}", self.name)))?;
        self.finished(&mut bus, &job, "start")
    }

    /// Whether a user's manager makes it.
    pub(crate) fn is_a_users(&self) -> bool {
        self.manager.is_some()
    }

    /// Has a process moved there, from wherever it is.
    pub(crate) fn attach(&self, pid: u32) -> Result<(), Error> {
        let mut body = Writer::default();
        body.text(&self.name).text("").numbers(&[pid]);
        match self.connect()?.call("AttachProcessesToUnit", "ssau", &body) {
            Ok(_) => Ok(()),
            Err(trouble) => Err(trouble.into_error(&format!("move {pid} to {}", self.name))),
        }
    }

    /// Tells systemd other limits.
    pub(crate) fn set(&self, resources: &LinuxResources) -> Result<(), Error> {
        let v2 = matches!(Layout::get()?, Layout::V2(_));
        let all = properties::limits(resources, v2);
        if all.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&self.name).bool(true).properties(&all);
        match self.connect()?.call("SetUnitProperties", "sba(sv)", &body) {
            Ok(_) => Ok(()),
            Err(trouble) => Err(trouble.into_error(&format!("set properties of {}", self.name))),
        }
    }

    /// Stops it, where it is. Its processes are dead already.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        let mut bus = self.connect()?;
        let mut body = Writer::default();
        body.text(&self.name).text("replace");
        match bus.call("StopUnit", "ss", &body) {
            Ok(job) => self.finished(&mut bus, &job, "stop"),
            Err(Trouble::Refused(Refused { name, .. })) if name == NO_SUCH_UNIT => Ok(()),
            Err(trouble) => Err(trouble.into_error(&format!("stop {}", self.name))),
        }
    }

    fn finished(&self, bus: &mut Bus, job: &str, what: &str) -> Result<(), Error> {
        match bus.finished(job)?.as_str() {
            "done" => Ok(()),
            other => {
                let text = format!("systemd: {what} {}: the job ended as {other:?}", self.name);
                Err(Error::new(Failure::System, text))
            }
        }
    }
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)); `-.slice` is the root.
fn expanded(slice: &str) -> Result<PathBuf, Error> {
    let bad = || {
        // runc's words.
        Error::new(Failure::InvalidSpec, format!("invalid slice name: {slice}"))
    };
    let name = slice.strip_suffix(".slice").ok_or_else(bad)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains(['/', '\0']) {
            return Err(bad());
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn unit(path: &str) -> Result<Option<Box<Unit>>, Error> {
        let spec = json!({
            "ociVersion": "1.0.2",
            "annotations": { SYSTEMD_ANNOTATION: "true" },
            "linux": { "cgroupsPath": path },
        });
        Unit::of(&serde_json::from_value(spec).expect("specification"), "id")
    }

    #[test]
    fn slices_prefixes_and_names() {
        for (given, wanted) in [
            ("", "/system.slice/knarr-id.scope"),
            (":cri:x", "/system.slice/cri-x.scope"),
            ("-.slice::x", "/x.scope"),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:abc",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope",
            ),
        ] {
            let unit = unit(given).expect(given).expect("a unit");
            assert_eq!(unit.path().expect(given), Path::new(wanted), "{given}");
        }
        for bad in [
            "/a/b",
            "a:b",
            "a.slice:b:",
            "a--b.slice:p:n",
            "../x.slice:p:n",
            "x:p:n",
            "s.slice:p:a/b",
        ] {
            assert!(unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_users_groups_are_below_his_managers() {
        let manager = "/user.slice/user-7.slice/user@7.service";
        for (given, wanted) in [
            ("", "user.slice/knarr-id.scope"),
            ("user.slice:libpod:x", "user.slice/libpod-x.scope"),
            ("app-a.slice:p:x", "app.slice/app-a.slice/p-x.scope"),
        ] {
            let spec = json!({
                "ociVersion": "1.0.2",
                "annotations": { SYSTEMD_ANNOTATION: manager },
                "linux": { "cgroupsPath": given },
            });
            let spec = serde_json::from_value(spec).expect("specification");
            let unit = Unit::of(&spec, "id").expect(given).expect("a unit");
            assert_eq!(unit.path().expect(given), Path::new(manager).join(wanted), "{given}");
        }
    }

    #[test]
    fn others_have_none() {
        let spec = json!({ "ociVersion": "1.0.2", "linux": { "cgroupsPath": "a.slice:b:c" } });
        let spec = serde_json::from_value(spec).expect("specification");
        assert_eq!(Unit::of(&spec, "id").expect("none"), None);
    }
}
