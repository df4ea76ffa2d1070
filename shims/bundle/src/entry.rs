//! The program of a bundle: which file it is, and what the annotations say of it.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use knarr_sandbox::RootfsMount;
use oci_spec::runtime::{Process, Spec};

use crate::Result;

const HANDLER: &str = "run.oci.handler";
const VARIANT: &str = "module.wasm.image/variant";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first file of the root filesystem that the first argument may mean, and its path.
pub(crate) fn open(
    spec: &Spec,
    bundle: &Path,
    rootfs: &[RootfsMount],
) -> Result<Option<(File, String)>> {
    let Some(process) = spec.process() else { return Ok(None) };
    let Some(name) = process.args().as_ref().and_then(|args| args.first()) else { return Ok(None) };
    for path in candidates(name, process) {
        if let Some(file) = knarr_sandbox::open_in_root(spec, bundle, rootfs, &path)? {
            return Ok(Some((file, path.display().to_string())));
        }
    }
    Ok(None)
}

/// Where a name may lie: where it says, on the search path, in the working directory.
fn candidates(name: &str, process: &Process) -> Vec<PathBuf> {
    let here = process.cwd().join(name);
    if name.contains('/') {
        return vec![here];
    }
    let environment = process.env().as_deref().unwrap_or_default();
    let path = environment.iter().find_map(|line| line.strip_prefix("PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH).split(':').filter(|dir| !dir.is_empty());
    let found = directories.map(|dir| Path::new(dir).join(name));
    found.filter(|path| path.is_absolute()).chain([here]).collect()
}

/// The annotation that makes a container one of Wasm, whatever its bytes are.
pub(crate) fn forced(spec: &Spec, entry: &str) -> Option<String> {
    let annotations = spec.annotations().as_ref()?;
    let named = entry.ends_with(".wasm") || entry.ends_with(".wat");
    [(HANDLER, "wasm", "wasm-smart"), (VARIANT, "compat", "compat-smart")].iter().find_map(
        |(key, always, smart)| {
            let value = annotations.get(*key)?;
            let forced = value == always || (value == smart && named);
            forced.then(|| format!("{key}={value}"))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_choose_as_with_crun() {
        let with = |key: &str, value: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{key}":"{value}"}}}}"#);
            serde_json::from_str::<Spec>(&text).unwrap()
        };
        assert!(forced(&with(HANDLER, "wasm"), "/bin/sh").is_some());
        assert!(forced(&with(VARIANT, "compat"), "/bin/sh").is_some());
        assert!(forced(&with(HANDLER, "wasm-smart"), "/bin/sh").is_none());
        assert!(forced(&with(VARIANT, "compat-smart"), "/x.wasm").is_some());
        assert!(forced(&with(HANDLER, "krun"), "/x.wasm").is_none());
    }
}
