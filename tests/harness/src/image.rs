//! Images from literal files.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::repository;

/// Builds an image and writes it as an archive that `load` takes.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    name: String,
    layers: Vec<Vec<u8>>,
    tar: BTreeMap<String, Entry>,
    platform: (String, String),
    config: Value,
}

#[derive(Debug, Clone)]
enum Entry {
    File { content: Vec<u8>, mode: u32 },
    Directory { mode: u32 },
    Symlink(String),
}

impl ImageBuilder {
    /// An empty linux image of this machine's architecture.
    pub fn new(name: &str) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        Self {
            name: name.to_owned(),
            layers: Vec::new(),
            tar: BTreeMap::new(),
            platform: ("linux".into(), architecture.into()),
            config: json!({}),
        }
    }

    /// Debian's static busybox with its applets as links: the smallest userland.
    ///
    /// # Errors
    /// Where the package busybox-static is not installed.
    pub fn busybox() -> Result<Self> {
        let program = fs::read("/bin/busybox").context("busybox-static is not installed")?;
        let mut image = Self::new("busybox:latest")
            .file("/bin/busybox", program, 0o755)
            .directory("/tmp", 0o1777)
            .directory("/root", 0o700)
            .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
            .file("/etc/group", "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n", 0o644)
            .env(&["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
            .cmd(&["sh"]);
        for applet in [
            "sh",
            "true",
            "false",
            "echo",
            "cat",
            "ls",
            "sleep",
            "id",
            "env",
            "pwd",
            "mount",
            "umount",
            "ps",
            "kill",
            "wget",
            "nc",
            "httpd",
            "ping",
            "ip",
            "nslookup",
            "stat",
            "touch",
            "mkdir",
            "rm",
            "ln",
            "chmod",
            "chown",
            "hostname",
            "seq",
            "dd",
            "head",
            "tail",
            "wc",
            "grep",
            "sed",
            "awk",
            "tr",
            "sort",
            "date",
            "printf",
            "test",
            "expr",
            "yes",
            "df",
            "free",
            "stty",
            "tty",
            "setsid",
            "readlink",
            "mknod",
            "od",
            "sha256sum",
            "find",
            "xargs",
            "cut",
            "uname",
            "nproc",
            "trap",
            "timeout",
            "usleep",
            "unshare",
            "mkfifo",
            "su",
            "cp",
            "mv",
            "du",
            "netstat",
            "traceroute",
            "arping",
            "ulimit",
        ] {
            image = image.symlink(&format!("/bin/{applet}"), "busybox");
        }
        Ok(image)
    }

    /// One of the guests that the project ships, as an ordinary image with the
    /// program in its root filesystem (WASM.md layout a).
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn wasm(name: &str, guest: &str) -> Result<Self> {
        let code = prebuilt(guest)?;
        let file = format!("/{guest}.wasm");
        Ok(Self::new(name).platform("wasi", "wasm").file(&file, code, 0o755).entrypoint(&[&file]))
    }

    /// Another platform.
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = (os.into(), architecture.into());
        self
    }

    /// Another name.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// A regular file in the current layer.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.tar.insert(relative(path), Entry::File { content: content.into(), mode });
        self
    }

    /// A file of the host in the current layer.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn host_file(self, path: &str, source: &Path, mode: u32) -> Result<Self> {
        let content = fs::read(source).with_context(|| source.display().to_string())?;
        Ok(self.file(path, content, mode))
    }

    /// A directory in the current layer.
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.tar.insert(relative(path), Entry::Directory { mode });
        self
    }

    /// A symbolic link in the current layer.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.tar.insert(relative(path), Entry::Symlink(target.to_owned()));
        self
    }

    /// Ends the current layer.
    pub fn next_layer(mut self) -> Self {
        let layer = tarball(&std::mem::take(&mut self.tar));
        self.layers.push(layer);
        self
    }

    /// A finished layer: an uncompressed tar, perhaps an illegal one.
    pub fn raw_layer(mut self, tar: Vec<u8>) -> Self {
        if !self.tar.is_empty() {
            self = self.next_layer();
        }
        self.layers.push(tar);
        self
    }

    /// Sets a field of the image configuration's `config` object.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// `ENTRYPOINT` in exec form.
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.config("Entrypoint", json!(words))
    }

    /// `CMD` in exec form.
    pub fn cmd(self, words: &[&str]) -> Self {
        self.config("Cmd", json!(words))
    }

    /// `ENV`.
    pub fn env(self, pairs: &[&str]) -> Self {
        self.config("Env", json!(pairs))
    }

    /// `EXPOSE`.
    pub fn expose(self, port: &str) -> Self {
        self.config("ExposedPorts", json!({ port: {} }))
    }

    /// The image as a registry serves it, its layers uncompressed.
    pub fn for_registry(mut self) -> RegistryImage {
        self = self.finished();
        self.served_as("application/vnd.oci.image.layer.v1.tar")
    }

    /// An image whose one layer is a Wasm guest of the tree as it is.
    ///
    /// # Errors
    /// Where there is no such guest.
    pub fn artifact(name: &str, guest: &str) -> Result<RegistryImage> {
        let program = prebuilt(guest)?;
        let image = Self::new(name).platform("wasip1", "wasm").raw_layer(program);
        Ok(image.served_as("application/wasm"))
    }

    fn served_as(self, layer_type: &str) -> RegistryImage {
        let config = self.config_file();
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| descriptor(layer_type, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": RegistryImage::MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        });
        let blobs = self.layers.into_iter().chain([config]).map(|blob| (digest(&blob), blob));
        RegistryImage {
            manifest: serde_json::to_vec(&manifest).expect("JSON from JSON"),
            blobs: blobs.collect(),
        }
    }

    fn finished(self) -> Self {
        if !self.tar.is_empty() || self.layers.is_empty() { self.next_layer() } else { self }
    }

    fn config_file(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": self.platform.1,
            "os": self.platform.0,
            "created": "2026-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|_| json!({"created": "2026-01-01T00:00:00Z", "created_by": "harness"})).collect::<Vec<_>>(),
        });
        serde_json::to_vec(&config).expect("JSON from JSON")
    }

    /// The archive as `docker save` writes it.
    pub fn docker_archive(mut self) -> Vec<u8> {
        self = self.finished();
        let config = self.config_file();
        let config_name = format!("{}.json", hex(&config));
        let mut members: Vec<(String, Vec<u8>)> = Vec::new();
        let mut names = Vec::new();
        for layer in self.layers {
            let name = format!("{}/layer.tar", hex(&layer));
            names.push(name.clone());
            if !members.iter().any(|(known, _)| *known == name) {
                members.push((name, layer));
            }
        }
        members.push((config_name.clone(), config));
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": names }]);
        members
            .push(("manifest.json".into(), serde_json::to_vec(&manifest).expect("JSON from JSON")));
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in members {
            append(&mut archive, &name, tar::EntryType::Regular, 0o644, &content);
        }
        archive.into_inner().expect("memory takes everything")
    }
}

/// An image as a registry serves it.
#[derive(Debug, Clone)]
pub struct RegistryImage {
    /// The OCI manifest.
    pub manifest: Vec<u8>,
    /// Configuration and layers by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl RegistryImage {
    /// The manifest's media type.
    pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

    /// An OCI image layout with this image, as containerd imports it under a name.
    pub fn oci_archive(&self, name: &str) -> Vec<u8> {
        let mut entry = descriptor(Self::MANIFEST_TYPE, &self.manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            append(&mut archive, name, tar::EntryType::Regular, 0o644, content);
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        add("index.json", index.to_string().as_bytes());
        for content in self.blobs.values().chain([&self.manifest]) {
            add(&format!("blobs/sha256/{}", hex(content)), content);
        }
        archive.into_inner().expect("memory takes everything")
    }

    /// The largest blob.
    pub fn largest(&self) -> (&str, &[u8]) {
        let largest = self.blobs.iter().max_by_key(|(_, blob)| blob.len());
        largest.map(|(digest, blob)| (digest.as_str(), blob.as_slice())).expect("a configuration")
    }
}

/// The program of one of the guests that the project ships.
///
/// # Errors
/// When there is no such guest.
pub fn prebuilt(guest: &str) -> Result<Vec<u8>> {
    let path = repository().join("wasm-examples/prebuilt").join(format!("{guest}.wasm"));
    fs::read(&path).with_context(|| format!("guest {}", path.display()))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn tarball(entries: &BTreeMap<String, Entry>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, entry) in entries {
        match entry {
            Entry::File { content, mode } => {
                append(&mut archive, path, tar::EntryType::Regular, *mode, content);
            }
            Entry::Directory { mode } => {
                append(&mut archive, &format!("{path}/"), tar::EntryType::Directory, *mode, b"");
            }
            Entry::Symlink(target) => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                archive.append_link(&mut header, path, target).expect("memory takes everything");
            }
        }
    }
    archive.into_inner().expect("memory takes everything")
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) {
    let mut header = header(kind, mode, content.len() as u64);
    archive.append_data(&mut header, path, content).expect("memory takes everything");
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_767_225_600);
    header
}

fn hex(content: &[u8]) -> String {
    digest(content).trim_start_matches("sha256:").to_owned()
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}
