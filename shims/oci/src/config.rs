//! The bundle's config.json, read and made whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use knarr_sandbox::SYSTEMD_ANNOTATION;
use oci_spec::runtime::Spec;

use crate::args::Flags;

/// A bundle.
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) dir: PathBuf,
    /// What its config.json says, word for word.
    pub(crate) text: Vec<u8>,
    pub(crate) spec: Spec,
}

/// Lets systemd make the control group, where the flag says so. Later calls
/// find that in the container's own specification.
pub(crate) fn group(spec: &mut Spec, flags: &Flags) -> Result<()> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    ensure!(
        !annotations.contains_key(SYSTEMD_ANNOTATION),
        "annotation {SYSTEMD_ANNOTATION} is not for bundles"
    );
    if flags.has("systemd-cgroup") {
        annotations.insert(SYSTEMD_ANNOTATION.to_owned(), "true".to_owned());
        spec.set_annotations(Some(annotations));
    }
    Ok(())
}

/// Flags of all verbs that this host cannot follow.
pub(crate) fn check_global(flags: &Flags) -> Result<()> {
    if flags.has("systemd-cgroup") && !Path::new("/run/systemd/system").is_dir() {
        // runc's words.
        bail!(
            "systemd cgroup flag passed, but systemd support for managing cgroups is not available"
        );
    }
    if let Some(other) = flags.get("rootless") {
        ensure!(
            matches!(other, "true" | "false" | "auto"),
            "invalid value {other:?} for flag -rootless"
        );
    }
    Ok(())
}

/// The bundle of `--bundle`, or the current directory.
pub(crate) fn bundle(flags: &Flags) -> Result<Bundle> {
    let dir = flags.get("bundle").filter(|dir| !dir.is_empty()).unwrap_or(".");
    let dir = fs::canonicalize(dir).with_context(|| format!("bundle {dir}"))?;
    let path = dir.join("config.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        // runc's words.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("JSON specification file config.json not found")
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut spec = parse(&text)?;
    check(&spec)?;
    absolute_sources(&mut spec, &dir);
    Ok(Bundle { dir, text, spec })
}

/// A specification's text.
pub(crate) fn parse(text: &[u8]) -> Result<Spec> {
    serde_json::from_slice(text).context("config.json")
}

fn check(spec: &Spec) -> Result<()> {
    let major = spec.version().split('.').next().unwrap_or_default();
    ensure!(major == "1", "unsupported OCI version {:?}", spec.version());
    let Some(process) = spec.process() else { bail!("process property must not be empty") };
    ensure!(process.args().as_ref().is_some_and(|args| !args.is_empty()), "args must not be empty");
    ensure!(process.cwd().is_absolute(), "cwd must be an absolute path");
    ensure!(!process.cwd().as_os_str().is_empty(), "cwd property must not be empty");
    ensure!(spec.root().is_some(), "root must be specified");
    Ok(())
}

/// Sources of binds are relative to the bundle.
fn absolute_sources(spec: &mut Spec, bundle: &Path) {
    let Some(mut mounts) = spec.mounts().clone() else { return };
    let mut changed = false;
    for mount in &mut mounts {
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let source = mount.source().clone().filter(|source| bind && source.is_relative());
        if let Some(source) = source {
            mount.set_source(Some(bundle.join(source)));
            changed = true;
        }
    }
    if changed {
        spec.set_mounts(Some(mounts));
    }
}
