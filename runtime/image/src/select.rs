//! Choosing one manifest of an index.
//!
//! ```text
//!   --platform given   an exact match; among Wasm names (wasi, wasip1, wasip2) any
//!   not given          by policy: the host's native one, else a Wasm one; or the other way round
//! ```
//!
//! Attestations (`unknown/unknown`) are never chosen.

use knarr_model::Platform;

use crate::{Error, Prefer, Result, document::Descriptor};

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    pub(crate) platform: Option<&'a Platform>,
    pub(crate) host: &'a Platform,
    pub(crate) prefer: Prefer,
}

/// The entry to follow, and the platform that the index promises of it.
pub(crate) fn select<'e>(
    entries: &'e [Descriptor],
    want: &Want<'_>,
) -> Result<(&'e Descriptor, Option<Platform>)> {
    let best = entries
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| Some((score(entry, want)?, at, entry)))
        .min_by_key(|(score, at, _)| (*score, *at));
    match best {
        Some((_, _, entry)) => Ok((entry, platform(entry))),
        None => Err(Error::NoPlatform {
            want: want.platform.unwrap_or(want.host).to_string(),
            have: entries
                .iter()
                .map(|entry| platform(entry).map_or_else(|| "unknown".into(), |p| p.to_string()))
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn platform(entry: &Descriptor) -> Option<Platform> {
    entry.platform.as_ref()?.parsed().filter(|p| p.os != "unknown")
}

/// Whether an entry is a Wasm artifact by its own words.
fn is_artifact(entry: &Descriptor) -> bool {
    entry.artifact_type.as_deref().is_some_and(|t| t.starts_with("application/vnd.wasm."))
}

/// How good an entry is; the lowest wins, none never does.
fn score(entry: &Descriptor, want: &Want<'_>) -> Option<u8> {
    if entry.annotation("vnd.docker.reference.type") == Some("attestation-manifest") {
        return None;
    }
    let Some(platform) = platform(entry) else {
        // An unknown platform is an attestation's; none at all may be anything.
        return match (&entry.platform, is_artifact(entry)) {
            (None, true) => wasm_score(want, 40),
            (None, false) => Some(90),
            (Some(_), _) => None,
        };
    };
    if platform.is_wasm() {
        let exact = want.platform.is_none_or(|w| w.os == platform.os);
        return wasm_score(want, if exact { 30 } else { 35 });
    }
    let native = want.platform.unwrap_or(want.host);
    if platform.os != native.os || platform.architecture != native.architecture {
        return None;
    }
    let base = if want.prefer == Prefer::Wasm && want.platform.is_none() { 50 } else { 0 };
    match (&native.variant, &platform.variant) {
        (want, have) if want == have => Some(base),
        // The baseline of an architecture runs wherever a better one does.
        (None, Some(variant)) => match (platform.architecture.as_str(), variant.as_str()) {
            ("amd64", "v1") | ("arm64", "v8") => Some(base + 1),
            ("amd64" | "arm64", _) => None,
            _ => Some(base + 2),
        },
        (Some(_), None) => Some(base + 3),
        _ => None,
    }
}

/// A Wasm entry's score, unless a native one was asked for by name.
fn wasm_score(want: &Want<'_>, score: u8) -> Option<u8> {
    want.platform.is_none_or(Platform::is_wasm).then_some(score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::DescribedPlatform;

    fn entry(platform: &str) -> Descriptor {
        let mut parts = platform.split('/').map(str::to_owned);
        Descriptor {
            media_type: String::new(),
            digest: knarr_model::Digest::from_bytes([1; 32]),
            size: 1,
            platform: (!platform.is_empty()).then(|| DescribedPlatform {
                os: parts.next().unwrap_or_default(),
                architecture: parts.next().unwrap_or_default(),
                variant: parts.next(),
            }),
            artifact_type: None,
            annotations: None,
        }
    }

    #[test]
    fn the_variant_that_fits_is_chosen() {
        let host: Platform = "linux/amd64".parse().unwrap();
        for (have, want, prefer, expected) in [
            ("linux/arm64 linux/amd64 wasi/wasm", None, Prefer::Native, Some(1)),
            ("linux/arm64 linux/amd64 wasi/wasm", None, Prefer::Wasm, Some(2)),
            ("linux/arm64 wasi/wasm", None, Prefer::Native, Some(1)),
            ("linux/arm64 linux/s390x", None, Prefer::Native, None),
            ("linux/arm64 linux/s390x", Some("linux/arm64"), Prefer::Native, Some(0)),
            ("linux/amd64 wasip1/wasm wasip2/wasm", Some("wasip2/wasm"), Prefer::Native, Some(2)),
            ("linux/amd64 wasip1/wasm", Some("wasi/wasm"), Prefer::Native, Some(1)),
            ("wasi/wasm", Some("linux/amd64"), Prefer::Wasm, None),
            ("linux/amd64", Some("wasi/wasm"), Prefer::Wasm, None),
            ("linux/amd64/v3 linux/amd64", None, Prefer::Native, Some(1)),
            ("linux/amd64/v3 linux/amd64/v1", None, Prefer::Native, Some(1)),
            ("linux/arm/v7 linux/arm/v6", Some("linux/arm/v6"), Prefer::Native, Some(1)),
            ("unknown/unknown linux/amd64", None, Prefer::Native, Some(1)),
            ("unknown/unknown", None, Prefer::Native, None),
            ("linux/arm64 wasm32/wasi", None, Prefer::Native, None),
        ] {
            let entries: Vec<Descriptor> = have.split(' ').map(entry).collect();
            let platform: Option<Platform> = want.map(|text: &str| text.parse().unwrap());
            let want = Want { platform: platform.as_ref(), host: &host, prefer };
            let chosen = select(&entries, &want).ok().map(|(entry, _)| {
                entries.iter().position(|other| std::ptr::eq(other, entry)).unwrap()
            });
            assert_eq!(chosen, expected, "{have} {want:?}");
        }
    }

    #[test]
    fn an_error_names_both_sides() {
        let host: Platform = "linux/amd64".parse().unwrap();
        let want = Want { platform: None, host: &host, prefer: Prefer::Native };
        let error = select(&[entry("linux/arm64")], &want).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
    }
}
