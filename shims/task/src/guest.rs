//! Whether a container of containerd's is a Wasm program, and what it is granted.
//!
//! | says so | when |
//! |---|---|
//! | `run.oci.handler=wasm`, `module.wasm.image/variant=compat` | always; another program is an error |
//! | `…=wasm-smart`, `…=compat-smart` | where the entry is named `*.wasm` |
//! | the entry's own first bytes | else |
//!
//! Annotations come from pods and images there: they may choose the executor and
//! grant nothing but the ports of `dev.knarr.listen`; those that are knarrd's own
//! words are left out, whoever wrote them (RELIABILITY R18).
//!
//! Fails like a program that cannot be executed: `Create` is refused with the
//! reason. The code lies in the cache that knarrd uses, too.

use std::path::{Path, PathBuf};

use knarr_guest::{Compiler, Magic, WasmCompiler};
use knarr_model::{
    WasmAbi,
    task::{Preopen, WASM_ANNOTATION, WasmLaunch, WasmNetwork},
};
use knarr_sandbox::RootfsMount;
use oci_spec::runtime as oci;

use crate::error::{Error, Result};

/// knarrd's own annotations.
const OWN: [&str; 3] =
    [WASM_ANNOTATION, knarr_sandbox::SECCOMP_ANNOTATION, knarr_sandbox::INIT_ANNOTATION];
const HANDLER: &str = "run.oci.handler";
const VARIANT: &str = "module.wasm.image/variant";
/// Ports that a Wasm program may listen on: `8080 9000/udp`.
const LISTEN: &str = "dev.knarr.listen";
/// Where a `wasi:http` program listens that names no port.
const HTTP_PORT: u16 = 8080;
/// Where knarrd keeps its data, and compiled code with it.
const DATA_ROOT: (&str, &str) = ("KNARR_DATA_ROOT", "/var/lib/knarr");
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What runs and compiles Wasm programs.
#[derive(Debug)]
pub(crate) struct Host {
    program: PathBuf,
    compiler: Compiler,
}

impl Host {
    /// `knarr-wasm` beside this very program, and the shared cache.
    pub(crate) fn new() -> Self {
        let program = std::env::current_exe().unwrap_or_default().with_file_name("knarr-wasm");
        let root = std::env::var_os(DATA_ROOT.0).map_or(DATA_ROOT.1.into(), PathBuf::from);
        let compiler = Compiler::new(WasmCompiler { program: program.clone() }, &root);
        Self { program, compiler }
    }

    /// The launch of a container's program; none where it is native.
    pub(crate) async fn launch(
        &self,
        bundle: &Path,
        rootfs: &[RootfsMount],
    ) -> Result<Option<WasmLaunch>> {
        let spec = load(bundle)?;
        let Some((mut file, shown)) = entry(&spec, bundle, rootfs)? else { return Ok(None) };
        let magic = knarr_guest::magic(&file)
            .map_err(|error| Error::internal(format_args!("read {shown}"), error))?;
        let wasm = matches!(magic, Magic::Module | Magic::Component | Magic::UnknownWasm);
        if let Some(word) = forced(&spec, &shown)
            && !wasm
        {
            return Err(Error::invalid(format!(
                "the annotation {word} says Wasm, but the entry {shown} is {}",
                magic.shown()
            )));
        }
        if magic == Magic::Precompiled {
            return Err(Error::invalid(format!(
                "{shown} is code compiled ahead by wasmtime, which is never taken from an image"
            )));
        }
        if !wasm {
            return Ok(None);
        }
        let program = knarr_guest::inspect(&mut file, &shown)
            .map_err(|error| Error::invalid(error.to_string()))?;
        let code = self
            .compiler
            .compile(&program.module, file)
            .await
            .map_err(|error| Error::invalid(error.to_string()))?;
        Ok(Some(WasmLaunch {
            host: self.program.clone(),
            code,
            abi: program.abi,
            preopens: preopens(&spec),
            network: Some(network(&spec, program.abi)?),
            memory: memory(&spec),
        }))
    }
}

/// Prepares a specification that did not come from knarrd.
pub(crate) fn adopt(spec: &mut oci::Spec, launch: Option<&WasmLaunch>) -> Result<()> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.retain(|name, _| !OWN.contains(&name.as_str()));
    if let Some(launch) = launch {
        let text = serde_json::to_string(launch)
            .map_err(|error| Error::internal("encode the launch", error))?;
        annotations.insert(WASM_ANNOTATION.to_owned(), text);
    }
    spec.set_annotations(Some(annotations));
    Ok(())
}

fn load(bundle: &Path) -> Result<oci::Spec> {
    let config = bundle.join("config.json");
    oci::Spec::load(&config)
        .map_err(|error| Error::invalid(format!("load {}: {error}", config.display())))
}

/// The first program of the specification that is there, and its path.
fn entry(
    spec: &oci::Spec,
    bundle: &Path,
    rootfs: &[RootfsMount],
) -> Result<Option<(std::fs::File, String)>> {
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
fn candidates(name: &str, process: &oci::Process) -> Vec<PathBuf> {
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
fn forced(spec: &oci::Spec, entry: &str) -> Option<String> {
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

/// The root to be read, and what was mounted: as it was mounted.
fn preopens(spec: &oci::Spec) -> Vec<Preopen> {
    let mut all = vec![Preopen { path: "/".into(), read_only: true }];
    for mount in spec.mounts().iter().flatten() {
        let path = mount.destination();
        let kernel = ["/proc", "/dev", "/sys"].iter().any(|dir| path.starts_with(dir));
        let etc = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        if kernel || etc.iter().any(|file| path == Path::new(file)) {
            continue;
        }
        let options = mount.options().as_deref().unwrap_or_default();
        let read_only = options.iter().any(|option| option == "ro");
        all.push(Preopen { path: path.clone(), read_only });
    }
    all
}

fn network(spec: &oci::Spec, abi: WasmAbi) -> Result<WasmNetwork> {
    let mut network = WasmNetwork { dns: true, ..WasmNetwork::default() };
    let ports = spec.annotations().as_ref().and_then(|all| all.get(LISTEN));
    for word in ports.iter().flat_map(|text| text.split([' ', ','])).filter(|w| !w.is_empty()) {
        let (port, transport) = word.split_once('/').unwrap_or((word, "tcp"));
        let list = match transport {
            "tcp" => &mut network.listen_tcp,
            "udp" => &mut network.listen_udp,
            _ => return Err(Error::invalid(format!("annotation {LISTEN}: {word:?} is no port"))),
        };
        match port.parse::<u16>() {
            Ok(port) if port > 0 => list.push(port),
            _ => return Err(Error::invalid(format!("annotation {LISTEN}: {word:?} is no port"))),
        }
    }
    if abi == WasmAbi::HttpProxy && network.listen_tcp.is_empty() {
        network.listen_tcp.push(HTTP_PORT);
    }
    Ok(network)
}

fn memory(spec: &oci::Spec) -> Option<u64> {
    let resources = spec.linux().as_ref()?.resources().as_ref()?;
    resources.memory().as_ref()?.limit().and_then(|limit| u64::try_from(limit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> oci::Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn r18_annotations_of_ours_are_left_out() {
        let mut spec = spec(
            r#"{"ociVersion":"1.0.2","annotations":{"dev.knarr.wasm":"{}","dev.knarr.init":"true","dev.knarr.seccomp":"default","other":"kept"}}"#,
        );
        adopt(&mut spec, None).unwrap();
        let left: Vec<_> = spec.annotations().clone().unwrap().into_keys().collect();
        assert_eq!(left, ["other"]);
    }

    #[test]
    fn annotations_choose_as_with_crun() {
        let with = |key: &str, value: &str| {
            spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{key}":"{value}"}}}}"#))
        };
        assert!(forced(&with(HANDLER, "wasm"), "/bin/sh").is_some());
        assert!(forced(&with(VARIANT, "compat"), "/bin/sh").is_some());
        assert!(forced(&with(HANDLER, "wasm-smart"), "/bin/sh").is_none());
        assert!(forced(&with(VARIANT, "compat-smart"), "/x.wasm").is_some());
        assert!(forced(&with(HANDLER, "krun"), "/x.wasm").is_none());
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
}
