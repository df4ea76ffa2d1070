//! Images are found again without the database.
//!
//! ```text
//!   images/<digits of the id>.json   the image's record, names included
//!
//!   record newer than the rows, or no rows   rows written from it
//!   record missing, older or damaged         written from the rows
//!   neither can be read                      made again from a manifest among the blobs
//! ```
//!
//! Records come in the order of their revisions, so that the last word about a
//! name holds. A record whose content is gone is left alone; rows without a
//! record and without content are of an image that was removed.
//!
//! **How it fails.** While there is a damaged record from which nothing could be
//! made, nothing that no image names is removed: it may be that image's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::atomic::Ordering,
};

use knarr_model::{Digest, Reference};
use knarr_state::{
    images::{ImageRecord, ImageRow},
    record,
};

use crate::{
    Images, Result, config,
    content::{Contents, now},
    detect::{self, Subject},
    document::{self, CONFIG_MAX, Document, MANIFEST_MAX},
    images::Inner,
    stored,
};

const KIND: &str = "image";
const SUFFIX: &str = ".json";

impl Contents {
    fn records(&self) -> PathBuf {
        self.store.root().join("images")
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.records().join(format!("{}{SUFFIX}", id.hex()))
    }

    /// Makes the records of images be what their rows say. The rows are durable:
    /// what is not written here is written at the next start. Blocks.
    pub(crate) fn record(&self, ids: impl IntoIterator<Item = Digest>) {
        for id in ids {
            let written = self.db.image_record(&id).map_err(crate::Error::from).and_then(|found| {
                let path = self.record_path(&id);
                match found {
                    Some(found) => Ok(record::write(&path, KIND, &found)?),
                    None => Ok(record::remove(&path)?),
                }
            });
            if let Err(error) = written {
                tracing::warn!(%error, image = %id, "no record of an image");
            }
        }
    }

    /// The images that have these names now.
    pub(crate) fn owners<'a>(
        &self,
        names: impl IntoIterator<Item = &'a Reference>,
    ) -> Result<BTreeSet<Digest>> {
        let mut owners = BTreeSet::new();
        for name in names {
            owners.extend(self.db.image_by_name(name)?.map(|image| image.id));
        }
        Ok(owners)
    }

    fn is_complete(&self, record: &ImageRecord) -> bool {
        let image = &record.image;
        [image.config, image.manifest].iter().all(|blob| self.store.has_blob(blob))
            && image.layers.iter().all(|layer| self.store.has_layer(layer))
    }
}

impl Images {
    /// Makes rows and records agree. For the start; answers what people should
    /// know.
    ///
    /// # Errors
    /// When the database fails, or the directory of the records cannot be read.
    pub fn adopt(&self) -> Result<Vec<String>> {
        self.0.adopt()
    }
}

impl Inner {
    fn adopt(&self) -> Result<Vec<String>> {
        let contents = &self.contents;
        let directory = contents.records();
        let failed = |e: std::io::Error| {
            crate::Error::Internal(format!("open {}: {e}", directory.display()))
        };
        let rows: BTreeMap<Digest, u64> = contents.db.image_revisions()?.into_iter().collect();
        let unreadable: BTreeSet<String> =
            contents.db.unreadable(&[KIND])?.into_iter().map(|row| row.key).collect();
        let readable = |id: &Digest| rows.contains_key(id) && !unreadable.contains(&id.to_string());
        let (mut newer, mut lost, mut current) = (Vec::new(), Vec::new(), BTreeSet::new());
        for entry in fs::read_dir(&directory).map_err(failed)?.flatten() {
            let name = entry.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(id) = digits.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok())
            else {
                continue;
            };
            match record::read::<ImageRecord>(&entry.path(), KIND) {
                Ok(Some(record)) if record.image.id == id => {
                    let known = rows.get(&id).copied().filter(|_| readable(&id));
                    if known.is_none_or(|revision| revision < record.revision) {
                        newer.push(record);
                    } else if known == Some(record.revision) {
                        current.insert(id);
                    }
                }
                _ if readable(&id) => {}
                Ok(_) => lost.push((id, "it is of another image".to_owned())),
                Err(error) => lost.push((id, error.to_string())),
            }
        }
        newer.sort_by_key(|record| record.revision);
        for record in newer {
            let id = record.image.id;
            if !contents.is_complete(&record) && !rows.contains_key(&id) {
                tracing::warn!(image = %id, "not adopted: its content is gone");
                continue;
            }
            contents.db.image_adopt(&record)?;
            current.insert(id);
            tracing::warn!(image = %id, "adopted: the database did not know it");
        }
        for id in &unreadable {
            if let Ok(id) = id.parse::<Digest>()
                && !current.contains(&id)
                && lost.iter().all(|(other, _)| *other != id)
            {
                lost.push((id, "its row cannot be read, and it has no record".to_owned()));
            }
        }
        let mut notices = self.rebuild(&lost)?;
        for id in rows.keys().filter(|id| readable(id) && !current.contains(id)) {
            // Removed since the database was written: the record went, and the content.
            if !contents.record_path(id).exists()
                && contents.db.image_record(id)?.is_some_and(|it| !contents.is_complete(&it))
                && contents.db.image_remove(id)?
            {
                tracing::warn!(image = %id, "its record and its content are gone: it was removed");
                continue;
            }
            contents.record([*id]);
        }
        notices.sort();
        Ok(notices)
    }

    /// Makes images from manifests among the blobs, where nothing else says what
    /// they were.
    fn rebuild(&self, lost: &[(Digest, String)]) -> Result<Vec<String>> {
        let unrecorded = matches!(self.contents.db.found(), knarr_state::Found::Damaged { .. })
            || self.contents.db.found() == &knarr_state::Found::Nothing;
        if lost.is_empty() && !unrecorded {
            return Ok(Vec::new());
        }
        let mut made = BTreeSet::new();
        for digest in self.contents.store.blobs_up_to(MANIFEST_MAX)? {
            if let Ok(Some(id)) = self.rebuild_from(&digest) {
                made.insert(id);
            }
        }
        self.contents.record(made.iter().copied());
        let mut notices: Vec<String> = made
            .iter()
            .map(|id| format!("image {}: made again from its manifest", id.hex()))
            .collect();
        for (id, why) in lost.iter().filter(|(id, _)| !made.contains(id)) {
            self.contents.keep_all.store(true, Ordering::Relaxed);
            notices.push(format!(
                "image {}: {why}; until its record is deleted and the daemon is started again, \
                 nothing is removed that no image names",
                id.hex()
            ));
        }
        Ok(notices)
    }

    /// The image that a blob is the manifest of, if there is one whose content is
    /// here, and if nothing knows it.
    fn rebuild_from(&self, digest: &Digest) -> Result<Option<Digest>> {
        let store = &self.contents.store;
        let bytes = store.read_blob(digest, MANIFEST_MAX)?;
        let Document::Manifest(manifest) = document::parse(&bytes, "")? else { return Ok(None) };
        let id = if detect::is_artifact(&manifest) { *digest } else { manifest.config.digest };
        if self.contents.db.image(&id)?.is_some() {
            return Ok(None);
        }
        let config = config::parse(&store.read_blob(&manifest.config.digest, CONFIG_MAX)?)?;
        let layers = stored::diff_ids(&detect::layer_kinds(&manifest)?, &config)?;
        let mut blobs = vec![*digest, manifest.config.digest];
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        if !blobs.iter().all(|blob| store.has_blob(blob)) {
            return Ok(None);
        }
        let mut size = stored::raw_size(&manifest);
        for layer in &layers {
            size += store.layer_info(layer)?.size;
        }
        let decision = detect::detect(&Subject {
            store,
            manifest: &manifest,
            config: &config,
            described: None,
            layers: &layers,
            host: &self.host,
        })?;
        let names = self.contents.db.image_names_of(&id)?;
        let (digests, tags) = names.into_iter().partition(|name| name.digest().is_some());
        let created = config.created.as_deref().and_then(|text| text.parse().ok());
        self.contents.db.image_adopt(&ImageRecord {
            image: ImageRow {
                id,
                manifest: *digest,
                config: manifest.config.digest,
                workload: decision.workload,
                reason: decision.reason,
                platform: decision.platform,
                size,
                created: created.map_or(0, |time: jiff::Timestamp| time.as_second()),
                stored: now(),
                layers,
                tags,
                digests,
            },
            blobs,
            revision: 0,
        })?;
        Ok(Some(id))
    }
}
