//! Images.

use std::collections::BTreeMap;

use crate::{ContainerConfig, GraphDriver, KnarrWorkload};

wire! {
    /// One row of `GET /images/json`; the order of the fields is Docker's.
    #[serde(rename_all = "PascalCase")]
    pub struct ImageSummary {
        /// Not counted here: -1.
        pub containers: i64,
        /// Seconds since 1970.
        pub created: i64,
        /// `sha256:…`.
        pub id: String,
        /// Labels.
        pub labels: Option<BTreeMap<String, String>>,
        /// Empty here.
        pub parent_id: String,
        /// `repository@sha256:…`.
        pub repo_digests: Vec<String>,
        /// `repository:tag`.
        pub repo_tags: Vec<String>,
        /// Not counted here: -1.
        pub shared_size: i64,
        /// Bytes unpacked.
        pub size: i64,
        /// Knarr's own.
        #[serde(rename = "Knarr", skip_serializing_if = "Option::is_none")]
        pub knarr: Option<KnarrWorkload>,
    }

    /// Answer of `GET /images/{name}/json`.
    #[serde(rename_all = "PascalCase")]
    pub struct ImageInspect {
        /// `sha256:…`.
        pub id: String,
        /// `repository:tag`.
        pub repo_tags: Vec<String>,
        /// `repository@sha256:…`.
        pub repo_digests: Vec<String>,
        /// Empty here.
        pub parent: String,
        /// What was said at its making.
        pub comment: String,
        /// RFC 3339.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub created: String,
        /// Who made what made it.
        pub docker_version: String,
        /// Who made it.
        pub author: String,
        /// What it runs.
        pub config: Option<ContainerConfig>,
        /// `amd64`, `wasm`.
        pub architecture: String,
        /// Of the architecture.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub variant: String,
        /// `linux`, `wasip1`.
        pub os: String,
        /// Bytes unpacked.
        pub size: i64,
        /// Where the layers are.
        pub graph_driver: GraphDriver,
        /// Its layers.
        #[serde(rename = "RootFS")]
        pub root_fs: RootFs,
        /// When it was last tagged.
        pub metadata: ImageMetadata,
        /// The manifest that was pulled.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub descriptor: Option<Descriptor>,
        /// Knarr's own: what it is, and why.
        #[serde(rename = "Knarr", skip_serializing_if = "Option::is_none")]
        pub knarr: Option<KnarrWorkload>,
    }

    /// Layers of an image.
    #[serde(rename_all = "PascalCase")]
    pub struct RootFs {
        /// `layers`.
        #[serde(rename = "Type")]
        pub kind: String,
        /// Digests of the uncompressed layers.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub layers: Option<Vec<String>>,
    }

    /// What the engine knows of an image beside its configuration.
    #[serde(rename_all = "PascalCase")]
    pub struct ImageMetadata {
        /// RFC 3339.
        pub last_tag_time: String,
    }

    /// An OCI descriptor.
    #[serde(rename_all = "camelCase")]
    pub struct Descriptor {
        /// Media type.
        pub media_type: String,
        /// `sha256:…`.
        pub digest: String,
        /// Bytes.
        pub size: i64,
        /// For which platform.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub platform: Option<serde_json::Value>,
    }

    /// One row of `GET /images/{name}/history`.
    #[serde(rename_all = "PascalCase")]
    pub struct ImageHistory {
        /// `<missing>` where no image is kept for the step.
        pub id: String,
        /// Seconds since 1970.
        pub created: i64,
        /// The instruction.
        pub created_by: String,
        /// Tags.
        pub tags: Option<Vec<String>>,
        /// Bytes of its layer.
        pub size: i64,
        /// What was said at its making.
        pub comment: String,
    }

    /// One row of the answer of `DELETE /images/{name}`: one of the two.
    #[serde(rename_all = "PascalCase")]
    pub struct ImageDelete {
        /// A tag or digest that is gone.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub untagged: String,
        /// An id that is gone.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub deleted: String,
    }

    /// Answer of `GET /distribution/{name}/json`.
    #[serde(rename_all = "PascalCase")]
    pub struct DistributionInspect {
        /// What the reference points at.
        pub descriptor: Descriptor,
        /// Its variants.
        pub platforms: Vec<DistributionPlatform>,
    }

    /// A platform of an index.
    pub struct DistributionPlatform {
        /// `amd64`.
        pub architecture: String,
        /// `linux`.
        pub os: String,
        /// `v8`.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub variant: String,
    }
}
