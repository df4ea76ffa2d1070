//! The one decision: what does an image ask us to run?
//!
//! ```text
//!   1  the configuration is a Wasm artifact's        exactly one Wasm layer is the program
//!   2  a layer is raw Wasm                           it is the program, words of the configuration
//!   3  os or architecture says Wasm                  the entry must be Wasm
//!   4  an annotation says Wasm                       likewise (…-smart: where it is)
//!   5  else                                          the entry's first bytes
//! ```
//!
//! Bytes have the last word over labels: where they contradict each other the
//! image is refused with both readings (CATALOGUE I19). Code compiled ahead
//! by wasmtime is native code without a sandbox; it is never taken from an
//! image (I20).

use std::path::{Path, PathBuf};

use knarr_guest::{Magic, Program};
use knarr_model::{Digest, Platform, WasmAbi, Workload};
use knarr_store::Store;

use crate::{
    Error, Result,
    config::Config,
    document::{LayerKind, Manifest, is_image_config, layer_kind},
    rootfs::{self, Found},
};

const ARTIFACT_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const OLD_WASM_CONFIG: &str = "application/vnd.wasm.config.v1+json";
const PROXY_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HANDLER: &str = "run.oci.handler";
const VARIANT: &str = "module.wasm.image/variant";

/// What is looked at.
pub(crate) struct Subject<'a> {
    pub(crate) store: &'a Store,
    pub(crate) manifest: &'a Manifest,
    pub(crate) config: &'a Config,
    /// What the index said of this manifest.
    pub(crate) described: Option<&'a Platform>,
    /// Diff ids of the unpacked layers, lowest first.
    pub(crate) layers: &'a [Digest],
    /// The platform of native programs here.
    pub(crate) host: &'a Platform,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) workload: Workload,
    pub(crate) reason: String,
    pub(crate) platform: Platform,
}

/// Whether a manifest's configuration is no image configuration, so that the
/// image is named by its manifest's digest: such configurations are often equal.
pub(crate) fn is_artifact(manifest: &Manifest) -> bool {
    !is_image_config(&manifest.config.media_type)
}

/// Refuses what is known to be something else, before its layers are fetched,
/// and answers each layer's kind.
pub(crate) fn layer_kinds(manifest: &Manifest) -> Result<Vec<LayerKind>> {
    let refuse = |what: &str| Err(Error::Unsupported(what.to_owned()));
    let types = || manifest.layers.iter().map(|layer| layer.media_type.as_str());
    if types().any(|t| t.starts_with("application/vnd.fermyon.spin.")) {
        return refuse(
            "this is a Spin application, which needs Spin's own triggers to run; \
             build it as a wasi:http or wasi:cli component instead",
        );
    }
    if manifest.config.media_type == PROXY_CONFIG {
        return refuse("this is a proxy-wasm extension, which only a proxy such as Envoy runs");
    }
    let kubewarden = |key: &String| key.starts_with("io.kubewarden.");
    if manifest.annotations.keys().any(kubewarden) {
        return refuse("this is a Kubewarden policy, which only its own policy server runs");
    }
    let kinds = types().map(layer_kind).collect::<Result<Vec<_>>>()?;
    let config = manifest.config.media_type.as_str();
    let wasm = kinds.iter().filter(|kind| **kind == LayerKind::Wasm).count();
    match config {
        ARTIFACT_CONFIG | OLD_WASM_CONFIG => {
            if wasm != 1 || kinds.len() != 1 {
                return Err(Error::invalid(
                    "Wasm artifact",
                    format!("it has {} layers, want exactly one of application/wasm", kinds.len()),
                ));
            }
        }
        _ if is_image_config(config) => {
            if wasm > 1 {
                return Err(Error::invalid(
                    "Wasm image",
                    format!("{wasm} of its layers are Wasm programs, want one"),
                ));
            }
        }
        other => {
            return refuse(&format!(
                "images with a configuration of type {other} are not supported"
            ));
        }
    }
    Ok(kinds)
}

/// Decides.
pub(crate) fn detect(subject: &Subject<'_>) -> Result<Decision> {
    let kinds = layer_kinds(subject.manifest)?;
    let raw = kinds.iter().position(|kind| *kind == LayerKind::Wasm);
    match (subject.manifest.config.media_type.as_str(), raw) {
        (ARTIFACT_CONFIG, Some(layer)) => artifact(subject, layer),
        (_, Some(layer)) => raw_layer(subject, layer),
        (_, None) => rootfs_image(subject),
    }
}

/// What the image says it was built for; the host's where it says nothing.
fn platform(subject: &Subject<'_>) -> Result<Platform> {
    let own = subject.config.platform.parsed();
    match (own, subject.described) {
        // An index that promises what the configuration denies (I18).
        (Some(own), Some(described))
            if own.os != described.os || own.architecture != described.architecture =>
        {
            // WASI has several names for one thing.
            if own.is_wasm() && described.is_wasm() {
                return Ok(own);
            }
            Err(Error::Dispatch {
                one: format!("its index entry says {described}"),
                other: format!("its configuration says {own}"),
            })
        }
        (Some(own), _) => Ok(own),
        (None, Some(described)) => Ok(described.clone()),
        (None, None) => Ok(subject.host.clone()),
    }
}

fn program_of_layer(subject: &Subject<'_>, layer: usize) -> Result<Program> {
    let descriptor = &subject.manifest.layers[layer];
    let mut file = subject.store.open_blob(&descriptor.digest)?;
    let shown = format!("layer {}", descriptor.digest);
    match magic(&file, &shown)? {
        Magic::Module | Magic::Component => Ok(knarr_guest::inspect(&mut file, &shown)?),
        Magic::Precompiled => Err(precompiled(&shown)),
        other => Err(Error::Dispatch {
            one: format!("its layer has the type {}", descriptor.media_type),
            other: format!("the layer is {}", other.shown()),
        }),
    }
}

fn wasm_workload(program: &Program, path: Option<&Path>) -> Workload {
    Workload::Wasm {
        abi: program.abi,
        module: program.module,
        path: path.map(|path| path.display().to_string()),
    }
}

/// 1: a CNCF Wasm artifact.
fn artifact(subject: &Subject<'_>, layer: usize) -> Result<Decision> {
    let program = program_of_layer(subject, layer)?;
    let said = &subject.config.platform;
    if said.architecture != "wasm" {
        return Err(Error::invalid(
            "Wasm artifact",
            format!("its architecture is {:?}, want wasm", said.architecture),
        ));
    }
    let digests = &subject.config.layer_digests;
    if !digests.is_empty() && *digests != [program.module] {
        return Err(Error::Dispatch {
            one: format!("its configuration names the layer {}", digests[0]),
            other: format!("its layer is {}", program.module),
        });
    }
    let component = program.abi != WasmAbi::Preview1Command;
    let fits = match said.os.as_str() {
        "wasip1" => !component,
        "wasip2" => component,
        _ => true,
    };
    if !fits {
        return Err(Error::Dispatch {
            one: format!("its configuration says {}/wasm", said.os),
            other: format!("its layer is {}", program.description),
        });
    }
    Ok(Decision {
        workload: wasm_workload(&program, None),
        reason: format!("the image is a Wasm artifact and its layer is {}", program.description),
        platform: platform(subject)?,
    })
}

/// 2: one raw Wasm layer, perhaps beside others.
fn raw_layer(subject: &Subject<'_>, layer: usize) -> Result<Decision> {
    let program = program_of_layer(subject, layer)?;
    let media_type = &subject.manifest.layers[layer].media_type;
    let platform = match subject.manifest.config.media_type.as_str() {
        OLD_WASM_CONFIG => {
            Platform { os: "wasi".into(), architecture: "wasm".into(), variant: None }
        }
        _ => platform(subject)?,
    };
    if !platform.is_wasm() {
        return Err(Error::Dispatch {
            one: format!("its configuration says {platform}"),
            other: format!("its layer {} is {}", layer + 1, program.description),
        });
    }
    function_is_start(subject.config)?;
    Ok(Decision {
        workload: wasm_workload(&program, None),
        reason: format!("a layer has the type {media_type} and is {}", program.description),
        platform,
    })
}

/// `path#function` in an entrypoint, as runwasi writes it.
fn function_is_start(config: &Config) -> Result<()> {
    match words(config).first().and_then(|word| word.split_once('#')) {
        Some((_, function)) if function != "_start" => Err(Error::Unsupported(format!(
            "the entrypoint calls function {function:?}: only _start is supported"
        ))),
        _ => Ok(()),
    }
}

fn words(config: &Config) -> Vec<&str> {
    let entrypoint = config.run.entrypoint.iter().flatten();
    entrypoint.chain(config.run.cmd.iter().flatten()).map(String::as_str).collect()
}

/// 3 to 5: a root filesystem with an entry.
fn rootfs_image(subject: &Subject<'_>) -> Result<Decision> {
    let platform = platform(subject)?;
    let label = |key: &str| {
        let annotations = &subject.manifest.annotations;
        annotations.get(key).or_else(|| subject.config.run.labels.get(key)).map(String::as_str)
    };
    let (says_wasm, says) = match (label(HANDLER), label(VARIANT)) {
        _ if platform.is_wasm() => (true, format!("os/arch of the configuration is {platform}")),
        (Some("wasm"), _) => (true, format!("the annotation {HANDLER} is wasm")),
        (_, Some("compat")) => (true, format!("the annotation {VARIANT} is compat")),
        _ => (false, format!("os/arch of the configuration is {platform}")),
    };
    let words = words(subject.config);
    let Some(word) = words.first() else {
        if says_wasm {
            return Err(Error::Dispatch {
                one: says,
                other: "it has neither entrypoint nor command, nor a layer that is a Wasm program"
                    .into(),
            });
        }
        return Ok(Decision {
            reason: format!("{says}, and no entrypoint says otherwise"),
            workload: Workload::Native { platform: platform.clone() },
            platform,
        });
    };
    let entry = if says_wasm { word.split('#').next().unwrap_or(word) } else { word };
    let found = resolve(subject, entry)?;
    let Some(mut found) = found else {
        if says_wasm {
            return Err(Error::Dispatch {
                one: says,
                other: format!("its entry {entry:?} is not in its layers"),
            });
        }
        return Ok(Decision {
            reason: format!("{says}, and its entry {entry:?} is not in its layers"),
            workload: Workload::Native { platform: platform.clone() },
            platform,
        });
    };
    let path = found.path.display().to_string();
    match magic(&found.file, &path)? {
        Magic::Module | Magic::Component => {
            function_is_start(subject.config)?;
            let program = knarr_guest::inspect(&mut found.file, &path)?;
            Ok(Decision {
                workload: wasm_workload(&program, Some(&found.path)),
                reason: format!("{says} and {path} is {}", program.description),
                platform,
            })
        }
        Magic::Precompiled => Err(precompiled(&path)),
        Magic::UnknownWasm => Err(Error::Unsupported(format!(
            "{path} is a WebAssembly binary of a version that Knarr does not know"
        ))),
        kind if says_wasm => Err(Error::Dispatch {
            one: says,
            other: format!("its entry {path} is {}", kind.shown()),
        }),
        kind => Ok(Decision {
            reason: format!("{says} and {path} is {}", kind.shown()),
            workload: Workload::Native { platform: platform.clone() },
            platform,
        }),
    }
}

/// Finds the file that the first word of a command means, as a runtime would.
fn resolve(subject: &Subject<'_>, word: &str) -> Result<Option<Found>> {
    let lower = subject.store.view(subject.layers)?.lower;
    let find = |path: &Path| match rootfs::find(&lower, path) {
        Ok(found) => Ok(found),
        // Too many links: there is no such file for a runtime either.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        Err(e) => Err(Error::Internal(format!("look for {}: {e}", path.display()))),
    };
    let directory = subject.config.run.working_dir.clone().unwrap_or_else(|| PathBuf::from("/"));
    if word.contains('/') {
        return find(&directory.join(word));
    }
    let path = subject.config.run.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
    for place in path.unwrap_or(DEFAULT_PATH).split(':') {
        if let Some(found) = find(&directory.join(place).join(word))?.filter(|f| f.executable) {
            return Ok(Some(found));
        }
    }
    // Wasm images name a file of the working directory without any slash.
    Ok(find(&directory.join(word))?.filter(|_| word.ends_with(".wasm")))
}

fn magic(file: &std::fs::File, shown: &str) -> Result<Magic> {
    knarr_guest::magic(file).map_err(|e| Error::Internal(format!("read {shown}: {e}")))
}

fn precompiled(shown: &str) -> Error {
    Error::Unsupported(format!(
        "{shown} is code that wasmtime compiled ahead: precompiled code is never taken from an \
         image, put the .wasm file into it instead"
    ))
}
