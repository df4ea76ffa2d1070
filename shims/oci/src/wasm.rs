//! Wasm bundles: what they are told by, and what becomes of them.
//!
//! ```text
//!  annotation run.oci.handler=wasm, module.wasm.image/variant=compat ─▶ must be Wasm
//!  …=wasm-smart, …=compat-smart, or none at all ─▶ what the entrypoint's bytes say
//!     \0asm ─▶ knarr-wasm compile ─▶ cache ─▶ the sandbox's Wasm jail
//! ```
//!
//! Bytes win over words: a handler cannot make a module of a shell script. The
//! program is granted what crun grants one, its root filesystem and its mounts,
//! and, where the network namespace is the container's own, the sockets in it.
//!
//! Code is compiled once for a module's digest and a host's fingerprint and kept
//! in `/var/cache/knarr-oci` (`KNARR_OCI_CACHE` names another directory), which
//! only root may write; it never comes from a bundle.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use knarr_model::{
    WasmAbi,
    task::{Preopen, WASM_ANNOTATION, WasmLaunch, WasmNetwork},
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sha2::{Digest, Sha256};
use wasmparser::{Parser, Payload};

/// The largest module; as the compiler's.
const LARGEST: u64 = 256 << 20;

/// Turns the specification of a Wasm program into one of the sandbox's jail;
/// another one stays as it is.
pub(crate) fn adapt(spec: &mut Spec, bundle: &Path) -> Result<()> {
    let annotation =
        |name: &str| spec.annotations().as_ref().and_then(|all| all.get(name)).map(String::as_str);
    // What grants comes from here, never from a bundle.
    ensure!(
        annotation(WASM_ANNOTATION).is_none(),
        "annotation {WASM_ANNOTATION} is not for bundles"
    );
    let demanded = annotation("run.oci.handler") == Some("wasm")
        || matches!(annotation("module.wasm.image/variant"), Some("compat"));
    let Some((name, file)) = entrypoint(spec, bundle) else {
        ensure!(!demanded, "the wasm handler was asked for, and the entrypoint is not there");
        return Ok(());
    };
    let mut magic = [0; 8];
    let known = file.read_exact_at(&mut magic, 0).is_ok() && magic.starts_with(b"\0asm");
    if !known {
        ensure!(!demanded, "the wasm handler was asked for, and {name:?} is not WebAssembly");
        return Ok(());
    }
    let host = host()?;
    let (code, abi) = code(&host, file).with_context(|| name.clone())?;
    let launch = launch(spec, host, code, abi);
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(WASM_ANNOTATION.to_owned(), serde_json::to_string(&launch)?);
    spec.set_annotations(Some(annotations));
    Ok(())
}

/// The file that the first argument names, opened beneath the root filesystem.
fn entrypoint(spec: &Spec, bundle: &Path) -> Option<(String, File)> {
    let process = spec.process().as_ref()?;
    let name = process.args().as_ref()?.first()?.clone();
    let root = bundle.join(spec.root().as_ref()?.path());
    let root =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .ok()?;
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(&root, path, flags, Mode::empty(), resolve).ok()?);
        file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
    };
    if name.contains('/') {
        return open(&process.cwd().join(&name)).map(|file| (name, file));
    }
    let env = process.env().clone().unwrap_or_default();
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="))?;
    let found = path.split(':').find_map(|dir| open(&Path::new(dir).join(&name)));
    found.map(|file| (name, file))
}

/// `knarr-wasm`, which is installed beside us.
fn host() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let host = own.with_file_name("knarr-wasm");
    ensure!(
        host.exists(),
        "a Wasm program needs {}, which is not there\n\nhint: install it beside knarr-oci",
        host.display()
    );
    Ok(host)
}

fn launch(spec: &Spec, host: PathBuf, code: PathBuf, abi: WasmAbi) -> WasmLaunch {
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let mut preopens = vec![Preopen { path: "/".into(), read_only }];
    for mount in spec.mounts().iter().flatten() {
        let path = mount.destination();
        let system = ["/proc", "/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        if system.iter().any(|dir| path.starts_with(dir)) {
            continue;
        }
        let read_only = mount.options().iter().flatten().any(|one| one == "ro" || one == "rro");
        preopens.push(Preopen { path: path.clone(), read_only });
    }
    // In a network of its own it may do as it likes; the host's is not for it.
    let own = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone());
    let own = own.unwrap_or_default().iter().any(|one| one.typ() == LinuxNamespaceType::Network);
    let network = own.then(|| WasmNetwork {
        listen_tcp: if abi == WasmAbi::HttpProxy { vec![8080] } else { Vec::new() },
        listen_udp: Vec::new(),
        dns: true,
    });
    let limit = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.memory().as_ref())
        .and_then(|memory| memory.limit())
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0);
    WasmLaunch { host, code, abi, preopens, network, memory: limit }
}

/// Its code, compiled now or earlier, and how it is called.
fn code(host: &Path, mut file: File) -> Result<(PathBuf, WasmAbi)> {
    ensure!(file.metadata()?.len() <= LARGEST, "larger than {} MiB", LARGEST >> 20);
    let mut module = Vec::new();
    (&file).take(LARGEST + 1).read_to_end(&mut module).context("read")?;
    let abi = abi(&module)?;
    let digest: String = Sha256::digest(&module).iter().map(|byte| format!("{byte:02x}")).collect();
    let cache = std::env::var_os("KNARR_OCI_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/knarr-oci"), PathBuf::from);
    let dir = cache.join(fingerprint(host, &cache)?);
    let code = dir.join(format!("{digest}.cwasm"));
    if code.exists() {
        return Ok((code, abi));
    }
    make_dir(&dir)?;
    let new = dir.join(format!(".{digest}.{}", std::process::id()));
    file.rewind().context("read")?;
    let output = Command::new(host)
        .arg("compile")
        .env_clear()
        .current_dir("/")
        .stdin(file)
        .stdout(File::create(&new).with_context(|| new.display().to_string())?)
        .stderr(Stdio::piped())
        .output()
        .with_context(|| host.display().to_string())?;
    if !output.status.success() {
        let _ = fs::remove_file(&new);
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // Complete when it can be seen; the same whoever made it.
    fs::rename(&new, &code).context("keep the compiled code")?;
    Ok((code, abi))
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make {}", dir.display()))
}

/// What code depends on beside the module. The host is asked once for each of
/// its versions.
fn fingerprint(host: &Path, cache: &Path) -> Result<String> {
    let is = fs::metadata(host).with_context(|| host.display().to_string())?;
    let name = format!("host-{}-{}-{}-{}", is.dev(), is.ino(), is.ctime_nsec(), is.ctime());
    let known = cache.join(name);
    let fine = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Ok(text) = fs::read_to_string(&known)
        && fine(&text)
    {
        return Ok(text);
    }
    let output = Command::new(host)
        .arg("fingerprint")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .with_context(|| host.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success() && fine(&text), "{} gives no fingerprint", host.display());
    make_dir(cache)?;
    let new = cache.join(format!(".host-{}", std::process::id()));
    fs::write(&new, &text).and_then(|()| fs::rename(&new, &known)).context("keep a fingerprint")?;
    Ok(text)
}

/// How a program is called: a module is a command, a component what it exports.
fn abi(program: &[u8]) -> Result<WasmAbi> {
    let bad =
        |error: wasmparser::BinaryReaderError| anyhow!("not WebAssembly: {}", error.message());
    if program.starts_with(b"\0asm\x01\0\0\0") {
        return Ok(WasmAbi::Preview1Command);
    }
    let (mut command, mut depth) = (false, 0);
    for payload in Parser::new(0).parse_all(program) {
        match payload.map_err(bad)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    let name = export.map_err(bad)?.name.name;
                    // A server may also export a command that only says no.
                    if name.starts_with("wasi:http/incoming-handler@0.2") {
                        return Ok(WasmAbi::HttpProxy);
                    }
                    command |= name.starts_with("wasi:cli/run@0.2");
                }
            }
            _ => {}
        }
    }
    ensure!(command, "the component exports neither wasi:cli/run nor wasi:http/incoming-handler");
    Ok(WasmAbi::ComponentCommand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_exports() {
        let prebuilt = |name: &str| {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-examples/prebuilt");
            abi(&fs::read(dir.join(name)).expect(name)).expect(name)
        };
        assert_eq!(prebuilt("hello.wasm"), WasmAbi::Preview1Command);
        assert_eq!(prebuilt("hello-component.wasm"), WasmAbi::ComponentCommand);
        assert_eq!(prebuilt("web.wasm"), WasmAbi::HttpProxy);
        assert!(abi(b"\0asm\x02\0\0\0").is_err());
    }
}
