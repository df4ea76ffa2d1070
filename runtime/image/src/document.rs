//! Manifests and indexes, read strictly.
//!
//! A document has one reading or none (CATALOGUE I11, I12): keys are not
//! repeated, nesting and size are bounded, the body agrees with the media type
//! under which it came, and what has the shape of both an index and a manifest
//! is refused.

use std::{collections::BTreeMap, fmt};

use knarr_model::{Digest, Platform};
use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{Error, Result};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A manifest or index (CATALOGUE I11).
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
/// An image configuration.
pub(crate) const CONFIG_MAX: u64 = 8 << 20;
/// Values in one document.
const NODES_MAX: usize = 200_000;
/// Entries of one index.
const ENTRIES_MAX: usize = 1000;
/// overlayfs stacks no more lower directories than this.
pub(crate) const LAYERS_MAX: usize = 500;

/// A content descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<DescribedPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// A platform as an index writes it: anything may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DescribedPlatform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl DescribedPlatform {
    pub(crate) fn parsed(&self) -> Option<Platform> {
        let mut text = format!("{}/{}", self.os, self.architecture);
        if let Some(variant) = self.variant.as_ref().filter(|v| !v.is_empty()) {
            text = format!("{text}/{variant}");
        }
        text.parse().ok()
    }
}

/// What a document turned out to be.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and moved once")]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image manifest.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads a manifest or index that came under a media type (`Content-Type` or
/// descriptor; empty where nothing was said).
pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Document> {
    let invalid = |why: String| Error::invalid("manifest", why);
    if bytes.len() as u64 > MANIFEST_MAX {
        return Err(invalid(format!("it is larger than {MANIFEST_MAX} bytes")));
    }
    let value = strict(bytes).map_err(|e| invalid(e.to_string()))?;
    let has = |key: &str| value.get(key).is_some();
    let version = value.get("schemaVersion").and_then(Value::as_u64);
    if has("fsLayers") || has("signatures") || version == Some(1) {
        return Err(Error::Unsupported(
            "Docker image manifest version 2, schema 1 is not supported: \
             rebuild the image or push it again with a current tool"
                .into(),
        ));
    }
    let index_shape = has("manifests");
    let manifest_shape = has("config") || has("layers");
    if index_shape && manifest_shape {
        return Err(invalid("it can be read both as an index and as an image manifest".into()));
    }
    let body: Body = serde_json::from_value(value).map_err(|e| invalid(e.to_string()))?;
    if body.schema_version != 2 {
        return Err(invalid(format!("schemaVersion is {}, want 2", body.schema_version)));
    }
    // The type says what the body must be; where nothing says a type, the shape does.
    let outer = media_type.split(';').next().unwrap_or_default().trim();
    let outer = Some(outer).filter(|t| known(t).is_some());
    let inner = body.media_type.as_deref();
    if let (Some(outer), Some(inner)) = (outer, inner)
        && outer != inner
    {
        return Err(invalid(format!("it came as {outer} but calls itself {inner}")));
    }
    let is_index = match (inner.or(outer), inner) {
        (Some(name), _) => match known(name) {
            Some(is_index) => is_index,
            None => {
                return Err(Error::Unsupported(format!(
                    "manifests of type {name} are not supported"
                )));
            }
        },
        (None, _) => index_shape,
    };
    if is_index {
        let entries = body
            .manifests
            .ok_or_else(|| invalid("it is an index by its type, but has no manifests".into()))?;
        if entries.len() > ENTRIES_MAX {
            return Err(invalid(format!("index with more than {ENTRIES_MAX} entries")));
        }
        return Ok(Document::Index(entries));
    }
    match (body.config, body.layers) {
        (Some(config), Some(layers)) => {
            if layers.len() > LAYERS_MAX {
                return Err(invalid(format!("more than {LAYERS_MAX} layers")));
            }
            Ok(Document::Manifest(Manifest {
                config,
                layers,
                annotations: body.annotations.unwrap_or_default(),
            }))
        }
        _ => Err(invalid("it is an image manifest by its type, but lacks config or layers".into())),
    }
}

/// Whether a media type is an index (true), an image manifest (false), or neither.
pub(crate) fn known(media_type: &str) -> Option<bool> {
    match media_type {
        OCI_INDEX | DOCKER_INDEX => Some(true),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        _ => None,
    }
}

/// Whether a configuration's media type is an ordinary image's.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// What a layer's media type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKind {
    /// A tar archive, compressed or not.
    Tar,
    /// Wasm bytes as they are.
    Wasm,
}

/// Tells a layer's kind, or why it is not supported.
pub(crate) fn layer_kind(media_type: &str) -> Result<LayerKind> {
    let oci = media_type.strip_prefix("application/vnd.oci.image.layer.");
    let docker = media_type.strip_prefix("application/vnd.docker.image.rootfs.");
    match (oci, docker) {
        (Some("v1.tar" | "v1.tar+gzip" | "v1.tar+zstd"), _)
        | (_, Some("diff.tar" | "diff.tar.gzip" | "diff.tar.zstd")) => return Ok(LayerKind::Tar),
        (Some(rest), _) if rest.starts_with("nondistributable") => return Err(foreign(media_type)),
        (_, Some(rest)) if rest.starts_with("foreign") => return Err(foreign(media_type)),
        _ => {}
    }
    if knarr_guest::is_program(media_type) {
        return Ok(LayerKind::Wasm);
    }
    Err(Error::Unsupported(format!("layers of type {media_type} are not supported")))
}

fn foreign(media_type: &str) -> Error {
    Error::Unsupported(format!("foreign layer unsupported: {media_type} names content elsewhere"))
}

/// Parses JSON without repeated keys, of bounded depth and number of values.
pub(crate) fn strict(bytes: &[u8]) -> serde_json::Result<Value> {
    let mut left = NODES_MAX;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(&mut left).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Strict<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(
        self,
        from: D,
    ) -> std::result::Result<Value, D::Error> {
        *self.0 = self
            .0
            .checked_sub(1)
            .ok_or_else(|| de::Error::custom("document has too many values"))?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict(self.0))?;
            if values.contains_key(&key) {
                return Err(de::Error::custom(format_args!("key {key:?} is there twice")));
            }
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":1}}"#, "a".repeat(64))
    }

    #[test]
    fn i12_ambiguous_documents_are_refused() {
        let d = descriptor();
        let manifest =
            |extra: &str| format!(r#"{{"schemaVersion":2,{extra}"config":{d},"layers":[{d}]}}"#);
        let index = |extra: &str| format!(r#"{{"schemaVersion":2,{extra}"manifests":[{d}]}}"#);
        let typed = |name: &str| format!(r#""mediaType":"{name}","#);
        for (text, outer) in [
            // Both shapes at once, under every type.
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d},"layers":[]}}"#),
                OCI_INDEX,
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d},"layers":[]}}"#),
                OCI_MANIFEST,
            ),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(), ""),
            // Content-Type against mediaType.
            (manifest(&typed(OCI_MANIFEST)), OCI_INDEX),
            (manifest(&typed(OCI_MANIFEST)), DOCKER_MANIFEST),
            (index(&typed(OCI_INDEX)), OCI_MANIFEST),
            (index(&typed(DOCKER_INDEX)), OCI_INDEX),
            // Type against shape.
            (manifest(""), OCI_INDEX),
            (index(""), OCI_MANIFEST),
            (manifest(&typed(OCI_INDEX)), ""),
            (index(&typed(OCI_MANIFEST)), ""),
            // A type that is neither.
            (manifest(&typed(OCI_CONFIG)), ""),
            (manifest(&typed("application/vnd.wasm.config.v0+json")), OCI_MANIFEST),
        ] {
            assert!(parse(text.as_bytes(), outer).is_err(), "{outer}: {text}");
        }
        for (text, outer) in [
            (manifest(&typed(OCI_MANIFEST)), OCI_MANIFEST),
            (manifest(&typed(OCI_MANIFEST)), "application/json"),
            (manifest(""), DOCKER_MANIFEST),
            (manifest(""), ""),
        ] {
            assert!(matches!(parse(text.as_bytes(), outer), Ok(Document::Manifest(_))), "{outer}");
        }
        for outer in ["", OCI_INDEX, DOCKER_INDEX] {
            assert!(matches!(parse(index("").as_bytes(), outer), Ok(Document::Index(_))));
        }
    }

    #[test]
    fn i11_documents_are_bounded() {
        let d = descriptor();
        let deep =
            format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let twice = format!(r#"{{"schemaVersion":2,"config":{d},"config":{d},"layers":[]}}"#);
        let nested = format!(
            r#"{{"schemaVersion":2,"config":{d},"layers":[],"annotations":{{"a":"1","a":"2"}}}}"#
        );
        let wide = format!(r#"{{"schemaVersion":2,"manifests":[{}0]}}"#, "0,".repeat(1_000_000));
        let many =
            format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![d.as_str(); 1001].join(","));
        let layers = format!(
            r#"{{"schemaVersion":2,"config":{d},"layers":[{}]}}"#,
            vec![d.as_str(); 501].join(",")
        );
        let huge = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "y".repeat(5 << 20));
        for bad in [deep, twice, nested, wide, many, layers, huge, String::new(), "[]".into()] {
            assert!(parse(bad.as_bytes(), "").is_err(), "{}", &bad[..bad.len().min(80)]);
        }
        let schema1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        let error = parse(schema1.as_bytes(), "").unwrap_err().to_string();
        assert!(error.contains("schema 1"), "{error}");
    }

    #[test]
    fn i13_i23_layers_that_are_not_fetched() {
        for (bad, word) in [
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign layer"),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign layer"),
            ("application/vnd.erofs.layer.v1", "not supported"),
            ("application/vnd.oci.image.layer.v1.squashfs", "not supported"),
            ("", "not supported"),
        ] {
            let error = layer_kind(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
