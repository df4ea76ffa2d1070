//! From a launch to what a guest holds: arguments, directories, sockets.
//!
//! A guest begins with nothing. Each grant below is named by the launch, which
//! the engine derives from the user's own words; what is absent is denied.

use std::{
    fs::File,
    future::Future,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use knarr_model::task::{WasmLaunch, WasmNetwork};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::Deserialize;
use wasmtime::{Result, component::ResourceTable, error::Context as _};
use wasmtime_wasi::{
    FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
    filesystem::{WasiFilesystemCtx, WasiFilesystemView as _},
    p1::WasiP1Ctx,
    sockets::SocketAddrUse,
};

use crate::{body::Fate, names::Names, outgoing::Outgoing};

/// What descriptor 3 says.
#[derive(Debug, Deserialize)]
pub(crate) struct Launch {
    /// The grants.
    pub(crate) launch: WasmLaunch,
    /// Arguments, the program's name first.
    args: Vec<String>,
    /// `NAME=value`.
    env: Vec<String>,
    /// Working directory.
    #[serde(default = "slash")]
    cwd: PathBuf,
    /// The socket on which the guest's start is awaited, where it is.
    #[serde(default)]
    pub(crate) gate: Option<i32>,
    /// The most descriptors, where nobody has chosen a limit.
    #[serde(default)]
    pub(crate) descriptors: Option<u64>,
    /// Where guest paths are found. Tests have theirs elsewhere.
    #[serde(default = "rootfs")]
    root: PathBuf,
}

fn slash() -> PathBuf {
    "/".into()
}

fn rootfs() -> PathBuf {
    "/rootfs".into()
}

/// How a guest's file calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// On the calling thread: quickest, for a guest that has the process alone.
    Here,
    /// On a pool of threads, so that one slow file holds up no other guest.
    Elsewhere,
}

/// Whether standard input is the container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// The container's.
    Inherited,
    /// At its end from the start.
    Closed,
}

/// What every instance of the program is given.
pub(crate) struct Grants {
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    /// Opened once: what is at their names by the time of a later request is not looked at.
    directories: WasiFilesystemCtx,
    trees: Vec<(OwnedFd, bool)>,
    network: Option<WasmNetwork>,
    names: Arc<Names>,
    files: Files,
    stdin: Stdin,
}

#[derive(Debug)]
struct Directory {
    handle: OwnedFd,
    guest: String,
    access: FsPerms,
}

impl Launch {
    /// Parses descriptor 3.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let launch: Self =
            serde_json::from_slice(text).context("the launch on descriptor 3 is damaged")?;
        // Preview 1 ends its strings with NUL: the guest would see another than was given.
        for (what, all) in [("argument", &launch.args), ("variable", &launch.env)] {
            if let Some(one) = all.iter().find(|one| one.contains('\0')) {
                wasmtime::bail!("the {what} {one:?} holds a NUL character");
            }
        }
        Ok(launch)
    }

    /// Opens the directories; the rest is moved.
    pub(crate) fn grants(self, files: Files, stdin: Stdin) -> Result<Grants> {
        let root = rustix::fs::open(
            &self.root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("the root filesystem {} is not there", self.root.display()))?;
        let mut directories: Vec<Directory> = Vec::with_capacity(self.launch.preopens.len());
        for preopen in &self.launch.preopens {
            let mut guest = normal(&preopen.path)?;
            let mut found = locate(&root, &guest)?;
            if matches!(found, Located::File) && !preopen.read_only {
                // A single file is written through the directory above it. What else
                // is there stays as the kernel has it: the root filesystem is mounted
                // read-only, the file is a mount of its own.
                guest = above(&guest);
                found = locate(&root, &guest)?;
            }
            // A file to read is reached through a directory that is granted already.
            let Located::Directory(handle) = found else { continue };
            let access = if preopen.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            match directories.iter_mut().find(|known| known.guest == guest) {
                Some(known) if access == FsPerms::ReadWrite => known.access = access,
                Some(_) => {}
                None => directories.push(Directory { handle, guest, access }),
            }
        }
        let env = self
            .env
            .into_iter()
            .map(|variable| match variable.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (variable, String::new()),
            })
            .collect();
        let names = match &self.launch.network {
            Some(network) => {
                Names::new(data(&root, "etc/hosts"), data(&root, "etc/resolv.conf"), network.dns)
            }
            None => Names::new(None, None, false),
        };
        Ok(Grants {
            args: self.args,
            env,
            cwd: normal(&self.cwd)?,
            directories: preopened(&directories, files)?,
            trees: directories
                .into_iter()
                .map(|directory| (directory.handle, directory.access == FsPerms::ReadWrite))
                .collect(),
            network: self.launch.network,
            names,
            files,
            stdin,
        })
    }
}

/// An absolute path without `.`, `..` or doubled slashes.
fn normal(path: &Path) -> Result<String> {
    let mut text = String::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                text.push('/');
                text.push_str(name.to_str().context("a path that is not UTF-8")?);
            }
            _ => wasmtime::bail!("{} is not a path inside the container", path.display()),
        }
    }
    wasmtime::ensure!(path.is_absolute(), "{} is not absolute", path.display());
    Ok(if text.is_empty() { "/".to_owned() } else { text })
}

/// The directory that something lies in.
fn above(guest: &str) -> String {
    match guest.rsplit_once('/') {
        None | Some(("", _)) => "/".to_owned(),
        Some((directory, _)) => directory.to_owned(),
    }
}

/// What lies at a path of the container.
#[derive(Debug)]
enum Located {
    /// The directory.
    Directory(OwnedFd),
    /// No directory.
    File,
    /// Its permissions shut the container's user out.
    Closed,
}

/// A native program finds out when it looks, so this one starts too.
fn not_theirs(guest: &str) -> Located {
    eprintln!("knarr-wasm: {guest} is not open to the container's user");
    Located::Closed
}

/// A directory of the container.
///
/// Links of the image are followed inside its root only: resolved by the kernel, beneath `root`.
fn locate(root: &OwnedFd, guest: &str) -> Result<Located> {
    let found = knarr_sys::open_in_root(root, guest, OFlags::PATH | OFlags::DIRECTORY);
    let directory = match found {
        Ok(directory) => directory,
        Err(Errno::NOTDIR) => return Ok(Located::File),
        Err(Errno::ACCESS) => return Ok(not_theirs(guest)),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("the directory {guest} of the container is not there"));
        }
    };
    match rustix::process::fchdir(&directory) {
        Err(Errno::ACCESS) => Ok(not_theirs(guest)),
        entered => {
            entered.with_context(|| format!("the directory {guest} cannot be entered"))?;
            Ok(Located::Directory(directory))
        }
    }
}

/// The directories as WASI has them. It opens them by name only, and without /proc the working
/// directory is the one name that nobody else can give to something else.
fn preopened(directories: &[Directory], files: Files) -> Result<WasiFilesystemCtx> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.allow_blocking_current_thread(files == Files::Here);
    for Directory { handle, guest, access } in directories {
        rustix::process::fchdir(handle)
            .map_err(wasmtime::Error::from)
            .and_then(|()| wasi.preopened_dir(".", guest, *access).map(drop))
            .with_context(|| format!("the directory {guest} of the container cannot be opened"))?;
    }
    rustix::process::chdir("/").context("the root directory")?;
    Ok(std::mem::take(Whole::new(wasi.build()).filesystem().ctx))
}

/// Gives access to the parts of a context.
struct Whole {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl Whole {
    fn new(wasi: WasiCtx) -> Self {
        Self { wasi, table: ResourceTable::new() }
    }
}

impl WasiView for Whole {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// A file of the container that the host reads for the guest, where it is there: what a
/// native program of the container would find under its name.
fn data(root: &OwnedFd, path: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    knarr_sys::open_in_root(root, path, flags).ok().map(File::from)
}

impl Grants {
    /// The way to other services, where there is one.
    pub(crate) fn outgoing(&self, fate: &Fate) -> Outgoing {
        Outgoing::new(self.network.is_some(), fate, self.names())
    }

    /// The TCP ports that may be bound, where there is a network.
    pub(crate) fn ports(&self) -> Option<&[u16]> {
        self.network.as_ref().map(|network| network.listen_tcp.as_slice())
    }

    /// Each directory that was granted, and whether it may be written; once.
    pub(crate) fn take_trees(&mut self) -> Vec<(OwnedFd, bool)> {
        std::mem::take(&mut self.trees)
    }

    /// Who knows the addresses of names.
    pub(crate) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// What one component's instance begins with. `call` is what one call may copy, in bytes.
    pub(crate) fn context(&self, call: usize) -> WasiCtx {
        let mut whole = Whole::new(self.builder(call).build());
        *whole.filesystem().ctx = self.directories.clone();
        whole.wasi
    }

    /// The same for preview 1, which has no word for a working directory: Go's
    /// runtime takes it from `PWD`, wasi-libc's programs always begin in `/`.
    pub(crate) fn preview1(&self, call: usize) -> WasiP1Ctx {
        let mut wasi = self.builder(call);
        if self.cwd != "/" && self.env.iter().all(|(name, _)| name != "PWD") {
            wasi.env("PWD", &self.cwd);
        }
        let mut whole = wasi.build_p1();
        *whole.filesystem().ctx = self.directories.clone();
        whole
    }

    /// The same without directories, for either generation of WASI.
    fn builder(&self, call: usize) -> WasiCtxBuilder {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(&self.args)
            .max_random_size(call as u64)
            .envs(&self.env)
            .initial_cwd(&self.cwd)
            .inherit_stdout()
            .inherit_stderr()
            .allow_blocking_current_thread(self.files == Files::Here);
        if self.stdin == Stdin::Inherited {
            wasi.inherit_stdin();
        }
        if let Some(network) = self.network.clone() {
            wasi.allow_tcp(true).allow_udp(true).socket_addr_check(move |address, wanted| {
                let granted = may(&network, address, wanted);
                Box::pin(async move { granted })
                    as Pin<Box<dyn Future<Output = bool> + Send + Sync>>
            });
        }
        wasi
    }
}

/// Whether a socket may do this.
///
/// Connections go where the container's network goes, as a native program's do.
/// A port is bound where it was granted; port 0 is what the kernel chooses for
/// a connection, and is no port to listen on.
fn may(network: &WasmNetwork, address: SocketAddr, wanted: SocketAddrUse) -> bool {
    let port = address.port();
    match wanted {
        SocketAddrUse::TcpBind => port == 0 || network.listen_tcp.contains(&port),
        SocketAddrUse::TcpListen => network.listen_tcp.contains(&port),
        SocketAddrUse::UdpBind => port == 0 || network.listen_udp.contains(&port),
        SocketAddrUse::TcpAccept
        | SocketAddrUse::TcpConnect
        | SocketAddrUse::UdpSend
        | SocketAddrUse::UdpReceive => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w13_only_granted_ports_are_listened_on() {
        let network = WasmNetwork { listen_tcp: vec![80], listen_udp: vec![53], dns: false };
        let at = |port| SocketAddr::from(([0, 0, 0, 0], port));
        assert!(may(&network, at(80), SocketAddrUse::TcpBind));
        assert!(may(&network, at(80), SocketAddrUse::TcpListen));
        assert!(may(&network, at(0), SocketAddrUse::TcpBind));
        assert!(may(&network, at(53), SocketAddrUse::UdpBind));
        for denied in [81, 53] {
            assert!(!may(&network, at(denied), SocketAddrUse::TcpBind));
            assert!(!may(&network, at(denied), SocketAddrUse::TcpListen));
        }
        assert!(!may(&network, at(0), SocketAddrUse::TcpListen));
        assert!(!may(&network, at(80), SocketAddrUse::UdpBind));
    }

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(normal(Path::new("/")).unwrap(), "/");
        assert_eq!(normal(Path::new("//data/./x/")).unwrap(), "/data/x");
        for bad in ["data", "", "/data/../x", ".."] {
            assert!(normal(Path::new(bad)).is_err(), "{bad}");
        }
    }

    /// What the guest's directories are, as an instance is told.
    fn directories(wasi: WasiCtx) -> Vec<(u64, String)> {
        use wasmtime_wasi::{
            filesystem::Descriptor, p2::bindings::filesystem::preopens::Host as _,
        };
        let mut whole = Whole::new(wasi);
        let told = whole.filesystem().get_directories().unwrap();
        let inode = |descriptor: &Descriptor| match descriptor {
            Descriptor::Dir(dir) => rustix::fs::fstat(&*dir.dir).unwrap().st_ino,
            Descriptor::File(_) => panic!("a file"),
        };
        told.into_iter()
            .map(|(handle, name)| (inode(whole.table.get(&handle).unwrap()), name))
            .collect()
    }

    #[test]
    fn w09_a_grant_is_the_directory_that_it_was_at_the_start() {
        use std::{fs, os::unix::fs::symlink};
        let dir = tempfile::tempdir().unwrap();
        let inside = |name: &str| dir.path().join("rootfs").join(name);
        fs::create_dir_all(inside("real")).unwrap();
        fs::create_dir_all(inside("data")).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        symlink("/real", inside("link")).unwrap();
        symlink("../../../real", inside("up")).unwrap();
        let launch = serde_json::json!({
            "launch": {
                "host": "/host", "code": "/code", "abi": "http-proxy", "network": null, "memory": null,
                "preopens": [
                    { "path": "/", "read_only": true }, { "path": "/data", "read_only": false },
                    { "path": "/link", "read_only": false }, { "path": "/up", "read_only": false },
                ],
            },
            "args": [], "env": [], "root": inside(""),
        });
        let launch = Launch::parse(launch.to_string().as_bytes()).unwrap();
        let grants = launch.grants(Files::Elsewhere, Stdin::Closed).unwrap();
        let number = |name: &str| rustix::fs::stat(inside(name)).unwrap().st_ino;
        let wanted: Vec<(u64, String)> =
            [("", "/"), ("data", "/data"), ("real", "/link"), ("real", "/up")]
                .map(|(host, guest)| (number(host), guest.to_owned()))
                .to_vec();
        assert_eq!(directories(grants.context(1 << 20)), wanted);
        // A neighbour with whom a volume is shared, between two requests.
        fs::rename(inside("data"), inside("moved")).unwrap();
        symlink(dir.path().join("outside"), inside("data")).unwrap();
        fs::rename(inside("real"), inside("gone")).unwrap();
        assert_eq!(directories(grants.context(1 << 20)), wanted);
        assert_eq!(directories(grants.context(1 << 20)), wanted, "for every request");
    }
}
