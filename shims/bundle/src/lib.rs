//! Bundles of other engines: whether the program is native or Wasm, and what a Wasm
//! program of theirs is granted.
//!
//! ```text
//!   config.json ─▶ entry ─▶ its bytes ─▶ Entry::Native
//!                    │          └──────▶ Entry::Wasm ─▶ compiled once, granted by the bundle's own words
//!                    └─ not there ─────▶ Entry::Missing: the caller may know of another place
//! ```
//!
//! | says so | when |
//! |---|---|
//! | `run.oci.handler=wasm`, `module.wasm.image/variant=compat` | always; another program is an error |
//! | `…=wasm-smart`, `…=compat-smart` | where the entry is named `*.wasm` |
//! | the entry's own first bytes | else |
//!
//! Bytes win over words: a handler cannot make a module of a shell script. Annotations
//! come from pods and images there: they may choose the executor and grant nothing but
//! the ports of `dev.knarr.listen`; those that are knarrd's own words are left out,
//! whoever wrote them (CATALOGUE R18).
//!
//! Both doors for other engines come through here, knarr-oci and containerd's shim, and
//! the code lies in the cache that knarrd uses, too.
//!
//! **How it fails.** Like a program that cannot be executed: [`Error`] has the reason,
//! and nothing of the bundle was touched.

#![forbid(unsafe_code)]

mod entry;
mod grants;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use knarr_guest::{Compiler, Magic, WasmCompiler};
pub use knarr_guest::{PROGRAM_MAX, is_program};
use knarr_model::task::{WASM_ANNOTATION, WasmLaunch};
use knarr_sandbox::RootfsMount;
use oci_spec::runtime::Spec;
use rustix::fs::Access;

/// What this room answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a bundle's program cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle contradicts itself, or asks for what is never given.
    #[error("{0}")]
    Invalid(String),
    /// The program, or its compilation.
    #[error(transparent)]
    Guest(#[from] knarr_guest::Error),
    /// The bundle's root filesystem.
    #[error(transparent)]
    Sandbox(#[from] knarr_sandbox::Error),
}

/// Annotations of this name are knarrd's own words, all but the one that pods may say.
const OWN: &str = "dev.knarr.";
/// Where knarrd keeps its data, and compiled code with it.
const DATA_ROOT: (&str, &str) = ("KNARR_DATA_ROOT", "/var/lib/knarr");

/// What a bundle's first argument turned out to be.
#[derive(Debug)]
pub enum Entry {
    /// Not Wasm; whether it can be executed, the kernel says.
    Native,
    /// Wasm by its first bytes.
    Wasm(Guest),
    /// Not in the bundle's root filesystem.
    Missing,
}

/// A Wasm program that was found.
#[derive(Debug)]
pub struct Guest {
    file: File,
    /// Its path, for messages.
    shown: String,
}

impl Guest {
    /// A program from elsewhere; `shown` names it in messages.
    pub fn new(file: File, shown: String) -> Self {
        Self { file, shown }
    }
}

/// Looks at a bundle's program.
///
/// # Errors
/// [`Error`], also where an annotation demands Wasm and the program is something else.
pub fn entry(spec: &Spec, bundle: &Path, rootfs: &[RootfsMount]) -> Result<Entry> {
    let Some((file, shown)) = entry::open(spec, bundle, rootfs)? else {
        return Ok(Entry::Missing);
    };
    let magic = knarr_guest::magic(&file)
        .map_err(|error| knarr_guest::Error::Internal(format!("read {shown}: {error}")))?;
    if matches!(magic, Magic::Module | Magic::Component | Magic::UnknownWasm) {
        return Ok(Entry::Wasm(Guest { file, shown }));
    }
    if let Some(word) = entry::forced(spec, &shown) {
        return Err(Error::Invalid(format!(
            "the annotation {word} says Wasm, but the entry {shown} is {}",
            magic.shown()
        )));
    }
    if magic == Magic::Precompiled {
        return Err(Error::Invalid(format!(
            "{shown} is code compiled ahead by wasmtime, which is never taken from an image"
        )));
    }
    Ok(Entry::Native)
}

/// What runs and compiles Wasm programs: `knarr-wasm`.
#[derive(Debug)]
pub struct Host {
    program: PathBuf,
    compiler: Compiler,
}

impl Host {
    /// `knarr-wasm` beside this very program, and the cache beneath knarrd's data root
    /// (`KNARR_DATA_ROOT`, else `/var/lib/knarr`); beneath the user's own, where that is
    /// not for this user to write.
    pub fn new() -> Self {
        let program = std::env::current_exe().unwrap_or_default().with_file_name("knarr-wasm");
        let compiler = Compiler::new(WasmCompiler { program: program.clone() }, &data_root());
        Self { program, compiler }
    }

    /// A file without a name for a program that has none yet, on the cache's disk.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn scratch(&self) -> std::io::Result<File> {
        self.compiler.scratch()
    }

    /// Compiles a program where its code is not there yet, and grants it what the
    /// bundle says.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn launch(&self, spec: &Spec, guest: Guest) -> Result<WasmLaunch> {
        let Guest { mut file, shown } = guest;
        let inspected = tokio::task::spawn_blocking(move || {
            knarr_guest::inspect(&mut file, &shown).map(|program| (program, file))
        });
        let (program, file) = inspected.await.unwrap_or_else(|panicked| {
            Err(knarr_guest::Error::Internal(format!("read a program: {panicked}")))
        })?;
        let code = self.compiler.compile(&program.module, file).await?;
        Ok(WasmLaunch {
            host: self.program.clone(),
            code: code.path,
            identity: Some(code.identity),
            abi: program.abi,
            preopens: grants::preopens(spec),
            network: Some(grants::network(spec, program.abi)?),
            memory: grants::memory(spec),
        })
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// Where compiled code is kept; never in a place that a bundle names.
fn data_root() -> PathBuf {
    if let Some(root) = std::env::var_os(DATA_ROOT.0) {
        return root.into();
    }
    let shared = PathBuf::from(DATA_ROOT.1);
    let parent = shared.parent().unwrap_or(Path::new("/"));
    let ours = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    if ours(&shared) || (!shared.exists() && ours(parent)) {
        return shared;
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    home("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| home("HOME").map(|home| Path::new(&home).join(".local/share")))
        .map_or(shared, |data| data.join("knarr"))
}

/// Prepares a specification that did not come from knarrd: only we say what is a launch.
/// Before any annotation of ours is added.
///
/// # Errors
/// Where the launch cannot be encoded: paths that are no text.
pub fn adopt(spec: &mut Spec, launch: Option<&WasmLaunch>) -> Result<()> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    let before = annotations.len();
    annotations.retain(|name, _| !name.starts_with(OWN) || name == grants::LISTEN);
    if annotations.len() == before && launch.is_none() {
        return Ok(());
    }
    if let Some(launch) = launch {
        let text = serde_json::to_string(launch)
            .map_err(|error| Error::Invalid(format!("encode the launch: {error}")))?;
        annotations.insert(WASM_ANNOTATION.to_owned(), text);
    }
    spec.set_annotations(Some(annotations));
    Ok(())
}

/// Lets systemd make the control group: the caller's word, never the bundle's.
///
/// # Errors
/// Where a user's own manager is to make it and does not answer.
pub fn by_systemd(spec: &mut Spec) -> Result<()> {
    let manager = knarr_sandbox::systemd_manager()?;
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(knarr_sandbox::SYSTEMD_ANNOTATION.to_owned(), manager);
    spec.set_annotations(Some(annotations));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r18_annotations_of_ours_are_left_out() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","annotations":{"dev.knarr.wasm":"{}","dev.knarr.init":"true","dev.knarr.seccomp":"default","dev.knarr.systemd":"true","dev.knarr.groups":"disk","dev.knarr.listen":"80","other":"kept"}}"#,
        )
        .unwrap();
        adopt(&mut spec, None).unwrap();
        let mut left: Vec<_> = spec.annotations().clone().unwrap().into_keys().collect();
        left.sort();
        assert_eq!(left, [grants::LISTEN, "other"]);
    }
}
