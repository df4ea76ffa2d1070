//! Volumes.

use std::collections::BTreeMap;

wire! {
    /// A volume.
    #[serde(rename_all = "PascalCase")]
    pub struct Volume {
        /// RFC 3339.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub created_at: String,
        /// `local`.
        pub driver: String,
        /// Labels.
        pub labels: Option<BTreeMap<String, String>>,
        /// Its path on the host.
        pub mountpoint: String,
        /// Name.
        pub name: String,
        /// Driver options.
        pub options: Option<BTreeMap<String, String>>,
        /// `local`.
        pub scope: String,
        /// Driver's facts.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub status: Option<BTreeMap<String, serde_json::Value>>,
        /// Only `system df` asks for it.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub usage_data: Option<VolumeUsage>,
    }

    /// What a volume takes.
    #[serde(rename_all = "PascalCase")]
    pub struct VolumeUsage {
        /// Containers that name it.
        pub ref_count: i64,
        /// Bytes.
        pub size: i64,
    }

    /// Answer of `GET /volumes`.
    #[serde(rename_all = "PascalCase")]
    pub struct VolumeList {
        /// The volumes.
        pub volumes: Vec<Volume>,
        /// What went wrong with some.
        pub warnings: Option<Vec<String>>,
    }

    /// Body of `POST /volumes/create`.
    #[serde(rename_all = "PascalCase")]
    pub struct VolumeCreateRequest {
        /// Random where empty.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub name: String,
        /// `local` where empty.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub driver: String,
        /// Driver options.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub driver_opts: Option<BTreeMap<String, String>>,
        /// Labels.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub labels: Option<BTreeMap<String, String>>,
    }
}
