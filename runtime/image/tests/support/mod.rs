//! A registry in memory that lies on request, and images made by hand.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use knarr_image::{Error, Image, Images, Loaded, Options, Prefer, Progress, WasmCompiler};
use knarr_model::{Digest, Platform, Reference};
use knarr_registry::{Auth, Chunk, Descriptor, Manifest, Registry};
use knarr_state::Db;
use knarr_store::Store;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::evil_tar::EvilTar;

pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const HTTP: &str = "wasi:http/incoming-handler@0.2.0";
pub(crate) const RUN: &str = "wasi:cli/run@0.2.10";

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// A gzip member of stored blocks: no compressor needed to make one.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut chunks = bytes.chunks(65_535).peekable();
    if bytes.is_empty() {
        out.extend([1, 0, 0, 255, 255]);
    }
    while let Some(chunk) = chunks.next() {
        let length = chunk.len() as u16;
        out.push(u8::from(chunks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(chunk);
    }
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

pub(crate) fn module() -> Vec<u8> {
    wat::parse_str(
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32)))
         (func (export \"_start\")))",
    )
    .unwrap()
}

pub(crate) fn component(exports: &[&str]) -> Vec<u8> {
    let exports: String = exports
        .iter()
        .map(|name| format!("(instance ${0} ) (export \"{name}\" (instance ${0}))", name.len()))
        .collect();
    wat::parse_str(format!("(component {exports})")).unwrap()
}

/// A configuration of these uncompressed layers.
pub(crate) fn config(layers: &[Vec<u8>], os: &str, architecture: &str, run: Value) -> Vec<u8> {
    let ids: Vec<Digest> = layers.iter().map(|layer| digest(layer)).collect();
    json!({"os": os, "architecture": architecture, "config": run,
        "rootfs": {"type": "layers", "diff_ids": ids}})
    .to_string()
    .into_bytes()
}

/// An image made by hand.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    os: String,
    architecture: String,
    run: Value,
    history: Value,
    annotations: Value,
    /// Media type and bytes as they travel.
    pub(crate) layers: Vec<(String, Vec<u8>)>,
    ids: Vec<Digest>,
    pub(crate) diff_ids: Option<Vec<Digest>>,
    artifact: Option<(String, Value)>,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self {
            os: "linux".into(),
            architecture: "amd64".into(),
            run: json!({}),
            history: json!([]),
            annotations: json!({}),
            layers: vec![],
            ids: vec![],
            diff_ids: None,
            artifact: None,
        }
    }

    pub(crate) fn artifact(config_type: &str, config: Value, programs: &[&[u8]]) -> Self {
        let made = Self { artifact: Some((config_type.to_owned(), config)), ..Self::new() };
        programs.iter().fold(made, |made, program| made.raw("application/wasm", program))
    }

    pub(crate) fn layer(mut self, archive: Vec<u8>) -> Self {
        self.ids.push(digest(&archive));
        self.layers.push((OCI_LAYER.into(), gzip(&archive)));
        self
    }

    pub(crate) fn raw(mut self, media_type: &str, bytes: &[u8]) -> Self {
        self.ids.push(digest(bytes));
        self.layers.push((media_type.into(), bytes.to_vec()));
        self
    }

    pub(crate) fn platform(self, os: &str, architecture: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into(), ..self }
    }

    pub(crate) fn config(self, run: Value) -> Self {
        Self { run, ..self }
    }

    pub(crate) fn history(self, history: Value) -> Self {
        Self { history, ..self }
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        let ids = self.diff_ids.as_ref().unwrap_or(&self.ids);
        match &self.artifact {
            Some((_, config)) => config.to_string().into_bytes(),
            None => json!({"os": self.os, "architecture": self.architecture, "config": self.run,
                "history": self.history, "rootfs": {"type": "layers", "diff_ids": ids}})
            .to_string()
            .into_bytes(),
        }
    }

    fn manifest(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let config_type = self.artifact.as_ref().map_or(OCI_CONFIG, |(name, _)| name);
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(name, bytes)| json!({"mediaType": name, "digest": digest(bytes), "size": bytes.len()}))
            .collect();
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "annotations": self.annotations,
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
            "layers": layers})
        .to_string()
        .into_bytes()
    }

    /// The image as an OCI layout.
    pub(crate) fn layout(&self, name: Option<&str>) -> EvilTar {
        let manifest = self.manifest();
        let annotations = match name {
            Some(name) => json!({"org.opencontainers.image.ref.name": name}),
            None => json!({}),
        };
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST,
            "digest": digest(&manifest), "size": manifest.len(), "annotations": annotations}]});
        let blob = |tar: EvilTar, bytes: &[u8]| {
            tar.file(&format!("./blobs/sha256/{}", digest(bytes).hex()), bytes)
        };
        let mut tar = EvilTar::new().file("./oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
        tar = tar.file("./index.json", index.to_string().as_bytes());
        for (_, layer) in &self.layers {
            tar = blob(tar, layer);
        }
        blob(blob(tar, &self.config_bytes()), &manifest)
    }
}

type Lie = fn(&mut Vec<u8>);

/// A registry in memory.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    lies: Mutex<HashMap<Digest, Lie>>,
    cuts: Mutex<HashMap<Digest, usize>>,
    restarts: Mutex<HashMap<Digest, ()>>,
    /// Bytes of blobs that were sent.
    pub(crate) bytes: AtomicU64,
}

impl Fake {
    pub(crate) fn image(&self, name: &str, made: Made) -> (Digest, usize) {
        for (_, bytes) in &made.layers {
            self.blob(bytes);
        }
        self.blob(&made.config_bytes());
        self.put(name, OCI_MANIFEST, made.manifest())
    }

    pub(crate) fn document(&self, name: &str, media_type: &str, body: &Value) -> (Digest, usize) {
        self.put(name, media_type, body.to_string().into_bytes())
    }

    fn put(&self, name: &str, media_type: &str, bytes: Vec<u8>) -> (Digest, usize) {
        let reference: Reference = name.parse().unwrap();
        let (name, size) = (digest(&bytes), bytes.len());
        let entry = (media_type.to_owned(), bytes);
        let mut manifests = self.manifests.lock().unwrap();
        manifests.insert(name.to_string(), entry.clone());
        manifests.insert(reference.to_string(), entry);
        (name, size)
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        self.blobs.lock().unwrap().insert(digest(bytes), bytes.to_vec());
        (digest(bytes), bytes.len())
    }

    pub(crate) fn forget(&self, blob: Digest) {
        self.blobs.lock().unwrap().remove(&blob);
    }

    /// Sends other bytes than the blob's.
    pub(crate) fn lie(&self, blob: Digest, lie: Lie) {
        self.lies.lock().unwrap().insert(blob, lie);
    }

    pub(crate) fn honest(&self, blob: Digest) {
        self.lies.lock().unwrap().remove(&blob);
    }

    /// Breaks off once, after so many bytes.
    pub(crate) fn cut(&self, blob: Digest, at: usize) {
        self.cuts.lock().unwrap().insert(blob, at);
    }

    /// Sends half of something else, then says that it changed.
    pub(crate) fn restart(&self, blob: Digest) {
        self.restarts.lock().unwrap().insert(blob, ());
    }

    fn broken() -> knarr_registry::Error {
        knarr_registry::Error::Mismatch {
            what: "stream",
            reference: "test".into(),
            want: "more".into(),
            got: "less".into(),
        }
    }
}

impl Registry for Fake {
    fn resolve<'a>(
        &'a self,
        reference: &'a Reference,
        _: &'a Auth,
    ) -> BoxFuture<'a, knarr_registry::Result<Manifest>> {
        let found = self.manifests.lock().unwrap().get(&reference.to_string()).cloned();
        async move {
            let (media_type, bytes) = found.ok_or_else(|| {
                knarr_registry::Error::ManifestUnknown { reference: reference.familiar() }
            })?;
            let descriptor =
                Descriptor { media_type, digest: digest(&bytes), size: bytes.len() as u64 };
            Ok(Manifest { descriptor, bytes: bytes.into() })
        }
        .boxed()
    }

    fn manifest<'a>(
        &'a self,
        _: &'a Reference,
        descriptor: &'a Descriptor,
        _: &'a Auth,
    ) -> BoxFuture<'a, knarr_registry::Result<Bytes>> {
        let found = self.manifests.lock().unwrap().get(&descriptor.digest.to_string()).cloned();
        async move { found.map(|(_, bytes)| bytes.into()).ok_or_else(Self::broken) }.boxed()
    }

    fn blob(
        &self,
        _: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        _: &Auth,
    ) -> BoxStream<'static, knarr_registry::Result<Chunk>> {
        let Some(mut bytes) = self.blobs.lock().unwrap().get(&descriptor.digest).cloned() else {
            return stream::iter([Err(Self::broken())]).boxed();
        };
        if let Some(lie) = self.lies.lock().unwrap().get(&descriptor.digest) {
            lie(&mut bytes);
        }
        let mut chunks: Vec<knarr_registry::Result<Chunk>> = Vec::new();
        if self.restarts.lock().unwrap().remove(&descriptor.digest).is_some() {
            let mut other = bytes[..bytes.len() / 2].to_vec();
            other.reverse();
            chunks.push(Ok(Chunk::Data(other.into())));
            chunks.push(Ok(Chunk::Restart));
        }
        let cut = self.cuts.lock().unwrap().remove(&descriptor.digest);
        let end = cut.unwrap_or(bytes.len());
        let rest = bytes.get(offset as usize..end).unwrap_or_default();
        self.bytes.fetch_add(rest.len() as u64, Ordering::SeqCst);
        chunks.extend(rest.chunks(16 * 1024).map(|c| Ok(Chunk::Data(Bytes::copy_from_slice(c)))));
        if cut.is_some() {
            chunks.push(Err(Self::broken()));
        }
        stream::iter(chunks).boxed()
    }
}

/// An image room on a directory of its own.
pub(crate) struct Fixture {
    scratch: tempfile::TempDir,
    pub(crate) fake: Arc<Fake>,
    pub(crate) images: Images,
    pub(crate) prefer: Prefer,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let scratch = tempfile::Builder::new().prefix("knarr-image-").tempdir_in(place).unwrap();
        write_compiler(&scratch.path().join("knarr-wasm"), "feed", "printf compiled:; exec cat");
        let fake = Arc::new(Fake::default());
        let images = open(&scratch, &fake, Prefer::Native);
        Self { scratch, fake, images, prefer: Prefer::Native }
    }

    /// As a new process would.
    pub(crate) fn reopen(&mut self) {
        // The database has one owner: the old room goes before the new one comes.
        let elsewhere = tempfile::tempdir().unwrap();
        self.images = open(&elsewhere, &self.fake, self.prefer);
        self.images = open(&self.scratch, &self.fake, self.prefer);
    }

    /// As a new process would whose database is gone; answers what people are told.
    pub(crate) fn reopen_without_database(&mut self) -> Vec<String> {
        let elsewhere = tempfile::tempdir().unwrap();
        self.images = open(&elsewhere, &self.fake, self.prefer);
        fs::remove_file(self.scratch.path().join("state.db")).unwrap();
        self.reopen();
        self.images.adopt().unwrap()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.scratch.path().join("knarr-wasm")
    }

    /// Replaces the compiler; the script gets the module on standard input.
    pub(crate) fn compiler(&self, script: &str) {
        self.compiler_as("feed", script);
    }

    pub(crate) fn compiler_as(&self, fingerprint: &str, script: &str) {
        write_compiler(&self.program(), fingerprint, script);
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Image, Error> {
        self.pull_for(name, None).await
    }

    pub(crate) async fn pull_for(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Image, Error> {
        let reference = name.parse().unwrap();
        self.images.pull(&reference, platform, &Auth::Anonymous, None).await
    }

    pub(crate) async fn pull_told(&self, name: &str) -> Result<(Image, Vec<Progress>), Error> {
        let (sender, mut lines) = tokio::sync::mpsc::channel(10_000);
        let reference = name.parse().unwrap();
        let image = self.images.pull(&reference, None, &Auth::Anonymous, Some(sender)).await?;
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(line);
        }
        Ok((image, all))
    }

    pub(crate) async fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, Error> {
        self.images.load(std::io::Cursor::new(archive.to_vec()), None, None).await
    }

    /// No blob, no layer, nothing under way.
    pub(crate) fn assert_empty(&self) {
        for directory in ["blobs/sha256", "layers", "ingest"] {
            let left: Vec<_> = fs::read_dir(self.data().join(directory))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(left.is_empty(), "{directory}: {left:?}");
        }
    }
}

fn open(scratch: &tempfile::TempDir, fake: &Arc<Fake>, prefer: Prefer) -> Images {
    let data = scratch.path().join("data");
    let store = Arc::new(Store::open(&data).unwrap());
    let db = Arc::new(Db::open(&scratch.path().join("state.db")).unwrap());
    let options = Options {
        platform: "linux/amd64".parse().unwrap(),
        prefer,
        compiler: WasmCompiler { program: scratch.path().join("knarr-wasm") },
    };
    Images::open(store, db, Arc::clone(fake) as Arc<dyn Registry>, options).unwrap()
}

/// Written beside and renamed, so that it is another file and never busy.
fn write_compiler(path: &std::path::Path, fingerprint: &str, script: &str) {
    let text = format!(
        "#!/bin/sh\ncase $1 in fingerprint) echo {fingerprint} ;; compile) {script} ;; esac\n"
    );
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// The error's text, which must hold a word.
pub(crate) fn refused<T>(outcome: Result<T, Error>, word: &str) -> String {
    let error = outcome.map(|_| ()).expect_err(word).to_string();
    assert!(error.contains(word), "want {word:?} in {error:?}");
    error
}
