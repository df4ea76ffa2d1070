//! Wasm artifacts: programs that are a layer of an image as they are. containerd keeps
//! them and does not unpack them; the shim fetches them itself.
//!
//! ```text
//!  Containers.Get ─▶ Images.Get ─▶ manifest (of an index, the one for Wasm) ─▶ its one
//!  Wasm layer ─▶ a nameless file ─ its digest is checked ─▶ as any other program
//! ```
//!
//! Asked for only where the entry is not in the root filesystem, so that a native
//! container pays nothing. gRPC, since containerd's ttrpc socket has none of these.
//!
//! **How it fails.** No image, no containerd, no Wasm in it: there is no program, and the
//! container fails for the entry that is missing. An image with Wasm that breaks a rule
//! is refused.

use std::{fs::File, io::Write as _, path::PathBuf};

use knarr_bundle::{Guest, PROGRAM_MAX, is_program};
use knarr_model::Digest;
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    grpc::{Grpc, Refusal},
    proto::containerd as wire,
};

/// As for images that Knarr pulls itself, in bytes.
const MANIFEST_MAX: usize = 4 << 20;
/// Entries of an index that are looked at.
const ENTRIES_MAX: usize = 1000;

/// containerd's images, of one namespace.
#[derive(Debug)]
pub(crate) struct Artifacts {
    socket: PathBuf,
    namespace: String,
}

/// A program of containerd's content store.
#[derive(Debug)]
pub(crate) struct Artifact {
    containerd: Grpc,
    layer: Descriptor,
}

/// Why there is no answer to whether an image is a Wasm program.
enum Unclear {
    /// It is one, and it cannot be run.
    Refused(Error),
    /// containerd did not say.
    Unanswered(Refusal),
}

impl From<Refusal> for Unclear {
    fn from(refusal: Refusal) -> Self {
        Self::Unanswered(refusal)
    }
}

impl Artifacts {
    /// Of the namespace, at the socket where containerd speaks gRPC.
    pub(crate) fn new(socket: &str, namespace: &str) -> Self {
        let socket = socket.strip_prefix("unix://").unwrap_or(socket).into();
        Self { socket, namespace: namespace.to_owned() }
    }

    /// The Wasm program that a container's image is; none where it is something else.
    pub(crate) async fn find(&self, container: &str) -> Result<Option<Artifact>> {
        match self.look(container).await {
            Ok(found) => Ok(found),
            Err(Unclear::Refused(why)) => Err(why),
            Err(Unclear::Unanswered(why)) => {
                tracing::warn!("look for a Wasm artifact of {container}: {why}");
                Ok(None)
            }
        }
    }

    async fn look(&self, container: &str) -> std::result::Result<Option<Artifact>, Unclear> {
        let containerd = Grpc::connect(&self.socket, &self.namespace).await?;
        let question = wire::GetContainerRequest { id: container.to_owned(), ..Default::default() };
        let method = "containerd.services.containers.v1.Containers/Get";
        let answer: wire::GetContainerResponse = containerd.ask(method, &question).await?;
        let name = &answer.container.image;
        if name.is_empty() {
            return Ok(None);
        }
        let question = wire::GetImageRequest { name: name.clone(), ..Default::default() };
        let method = "containerd.services.images.v1.Images/Get";
        let answer: wire::GetImageResponse = containerd.ask(method, &question).await?;
        let digest = &answer.image.target.digest;
        let Some(manifest) = manifest(&containerd, digest, name).await? else { return Ok(None) };
        let wasm = |layer: &&Descriptor| is_program(layer.media_type().as_ref());
        let layers: Vec<_> = manifest.layers().iter().filter(wasm).collect();
        match layers[..] {
            [] => Ok(None),
            [layer] => Ok(Some(Artifact { containerd, layer: layer.clone() })),
            _ => Err(refused(format!(
                "image {name} has {} Wasm layers, and one program can be run",
                layers.len()
            ))),
        }
    }
}

impl Artifact {
    /// Fetches it into an empty file.
    pub(crate) async fn fetch(self, mut into: File) -> Result<Guest> {
        let digest = self.layer.digest().to_string();
        let shown = format!("Wasm layer {digest}");
        let size = self.layer.size();
        if size > PROGRAM_MAX {
            return Err(Error::invalid(format!("{shown} is larger than {PROGRAM_MAX} bytes")));
        }
        let mut content =
            content(&self.containerd, &digest).await.map_err(|e| Error::internal(&shown, e))?;
        let mut hash = Sha256::new();
        let mut have = 0;
        while let Some(part) = content
            .next::<wire::ReadContentResponse>()
            .await
            .map_err(|error| Error::internal(&shown, error))?
        {
            have += part.data.len() as u64;
            if have > size {
                break;
            }
            hash.update(&part.data);
            into.write_all(&part.data).map_err(|error| Error::internal(&shown, error))?;
        }
        let found = Digest::from_bytes(hash.finalize().into());
        if have != size || digest != found.to_string() {
            return Err(Error::invalid(format!("{shown}: containerd has other bytes for it")));
        }
        Ok(Guest::new(into, shown))
    }
}

/// The manifest of an image; where it has several, the one for Wasm that is here.
async fn manifest(
    containerd: &Grpc,
    digest: &str,
    image: &str,
) -> std::result::Result<Option<ImageManifest>, Unclear> {
    let parse = |bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .map(Some)
            .map_err(|error| refused(format!("the manifest of image {image}: {error}")))
    };
    let Some(bytes) = document(containerd, digest).await? else { return Ok(None) };
    let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) else { return parse(&bytes) };
    for entry in index.manifests().iter().take(ENTRIES_MAX) {
        let wasm = entry.platform().as_ref().is_none_or(|platform| {
            *platform.architecture() == Arch::Wasm || platform.os().to_string().starts_with("wasi")
        });
        if wasm && let Some(bytes) = document(containerd, entry.digest().as_ref()).await? {
            return parse(&bytes);
        }
    }
    Ok(None)
}

/// A manifest's or an index's bytes; none where containerd has not fetched it.
async fn document(
    containerd: &Grpc,
    digest: &str,
) -> std::result::Result<Option<Vec<u8>>, Unclear> {
    let read = async {
        let mut content = content(containerd, digest).await?;
        let mut bytes = Vec::new();
        while let Some(part) = content.next::<wire::ReadContentResponse>().await? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > MANIFEST_MAX {
                break;
            }
        }
        Ok::<_, Refusal>(bytes)
    };
    match read.await {
        Ok(bytes) if bytes.len() > MANIFEST_MAX => {
            Err(refused(format!("manifest {digest} is larger than {MANIFEST_MAX} bytes")))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(refusal) if refusal.is_not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

async fn content(
    containerd: &Grpc,
    digest: &str,
) -> std::result::Result<crate::grpc::Answers, Refusal> {
    let question = wire::ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
    containerd.stream("containerd.services.content.v1.Content/Read", &question).await
}

fn refused(why: String) -> Unclear {
    Unclear::Refused(Error::invalid(why))
}
