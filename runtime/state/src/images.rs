//! Images: what they are, what they are called, which content they need.
//!
//! ```text
//!   image_names ──▶ images ──▶ image_layers   (diff ids, in order)
//!                     ▲   └──▶ image_blobs    (manifest, configuration, layers)
//!                     │
//!               containers.image   a foreign key without ON DELETE: a used image stays
//!
//!   leases          content that a pull or load under way has, or will name soon
//! ```
//!
//! Content that neither an image nor a lease names is garbage. A container
//! names its image, and so all content below it.
//!
//! **How it fails.** Removing an image that a container's row names is a
//! foreign-key violation, reported as `Ok(false)` by [`Db::image_remove`].

use std::collections::{BTreeMap, BTreeSet};

use knarr_model::{Digest, Platform, Reference, Workload};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::{Db, Result, Unreadable};

pub(crate) const SCHEMA: &str = "
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    config TEXT NOT NULL,
    workload TEXT NOT NULL,
    module TEXT,
    reason TEXT NOT NULL,
    platform TEXT NOT NULL,
    size INTEGER NOT NULL,
    created INTEGER NOT NULL,
    stored INTEGER NOT NULL
) STRICT;
CREATE INDEX images_by_manifest ON images (manifest);
CREATE TABLE image_layers (
    image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (image, position)
) STRICT;
CREATE TABLE image_blobs (
    image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    PRIMARY KEY (image, digest)
) STRICT;
CREATE TABLE image_names (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX image_names_by_image ON image_names (image);
CREATE TABLE leases (
    lease TEXT NOT NULL,
    kind TEXT NOT NULL,
    digest TEXT NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (lease, kind, digest)
) STRICT;
";

/// An image with all that its rows say: what is written beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image, its names included.
    pub image: ImageRow,
    /// The blobs that it needs.
    pub blobs: Vec<Digest>,
    /// The number of the last change to it: changes to all images are counted
    /// together, so that the last word about a name is known.
    pub revision: u64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// The digest of its configuration; for a Wasm artifact, of its manifest.
    pub id: Digest,
    /// The manifest that it came with, or that was made for it when it was loaded.
    pub manifest: Digest,
    /// The blob with its configuration.
    pub config: Digest,
    /// What it asks us to run.
    pub workload: Workload,
    /// Why it was taken for that, for people.
    pub reason: String,
    /// What its configuration says it was built for.
    pub platform: Platform,
    /// Bytes of its layers, unpacked.
    pub size: u64,
    /// When it was built, in seconds since 1970; 0 where it does not say.
    pub created: i64,
    /// When it was stored here, in seconds since 1970.
    pub stored: i64,
    /// Its layers' diff ids, lowest first.
    pub layers: Vec<Digest>,
    /// References with a tag.
    pub tags: Vec<Reference>,
    /// References with a digest: where it was pulled from.
    pub digests: Vec<Reference>,
}

/// What a lease or an image keeps from the garbage collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// A blob by its digest.
    Blob(Digest),
    /// An unpacked layer by its diff id.
    Layer(Digest),
}

impl Content {
    fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Blob(digest) => ("blob", digest.to_string()),
            Self::Layer(digest) => ("layer", digest.to_string()),
        }
    }
}

/// All content that something names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Blobs.
    pub blobs: BTreeSet<Digest>,
    /// Layers by diff id.
    pub layers: BTreeSet<Digest>,
    /// Wasm modules, whose compiled code is kept.
    pub modules: BTreeSet<Digest>,
}

impl Db {
    /// Stores an image, the blobs it needs and its names, and ends the lease
    /// that held its content. Names that belonged to another image move.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_put(&self, image: &ImageRow, blobs: &[Digest], lease: &str) -> Result<()> {
        let workload = serde_json::to_string(&image.workload)?;
        let platform = serde_json::to_string(&image.platform)?;
        let module = match &image.workload {
            Workload::Wasm { module, .. } => Some(module.to_string()),
            Workload::Native { .. } => None,
        };
        let id = image.id.to_string();
        self.write_new_durable(|tx| {
            tx.execute(
                "INSERT INTO images (id, manifest, config, workload, module, reason, platform,
                 size, created, stored) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)
                 ON CONFLICT (id) DO UPDATE SET manifest = excluded.manifest,
                 workload = excluded.workload, module = excluded.module, reason = excluded.reason,
                 size = excluded.size, stored = excluded.stored",
                params![
                    id,
                    image.manifest.to_string(),
                    image.config.to_string(),
                    workload,
                    module,
                    image.reason,
                    platform,
                    image.size as i64,
                    image.created,
                    image.stored
                ],
            )?;
            put_content(tx, &id, &image.layers, blobs)?;
            for name in image.tags.iter().chain(&image.digests) {
                put_name(tx, name, &id)?;
            }
            touch(tx, &id)?;
            tx.execute("DELETE FROM leases WHERE lease = ?1", [lease])?;
            Ok(())
        })
    }

    /// All that the rows say of an image.
    ///
    /// # Errors
    /// When the database fails, or the row cannot be read.
    pub fn image_record(&self, id: &Digest) -> Result<Option<ImageRecord>> {
        let id = id.to_string();
        self.read(|db| {
            let Some(image) = one(db, "WHERE id = ?1", &id)? else { return Ok(None) };
            let mut blobs =
                db.prepare_cached("SELECT digest FROM image_blobs WHERE image = ?1 ORDER BY 1")?;
            let blobs =
                blobs.query_map([&id], |row| parsed(row, 0))?.collect::<rusqlite::Result<_>>()?;
            let revision =
                db.query_row("SELECT revision FROM images WHERE id = ?1", [&id], |row| row.get(0))?;
            Ok(Some(ImageRecord { image, blobs, revision }))
        })
    }

    /// The numbers of the last changes to all images, unreadable ones included.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_revisions(&self) -> Result<Vec<(Digest, u64)>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT id, revision FROM images ORDER BY id")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows = rows.collect::<rusqlite::Result<Vec<(String, u64)>>>()?;
            Ok(rows.into_iter().filter_map(|(id, n)| Some((id.parse().ok()?, n))).collect())
        })
    }

    /// The names that an image has, whether its row can be read or not.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_names_of(&self, id: &Digest) -> Result<Vec<Reference>> {
        self.read(|db| {
            let mut query = db.prepare_cached(NAMES)?;
            let rows = query.query_map([id.to_string()], |row| row.get::<_, String>(0))?;
            let names = rows.collect::<rusqlite::Result<Vec<String>>>()?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        })
    }

    /// Writes an image's rows as its record has them: its names are those of the
    /// record, whoever had them before. Records come in the order of their
    /// revisions.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_adopt(&self, record: &ImageRecord) -> Result<()> {
        let ImageRecord { image, blobs, revision } = record;
        let id = image.id.to_string();
        let module = match &image.workload {
            Workload::Wasm { module, .. } => Some(module.to_string()),
            Workload::Native { .. } => None,
        };
        self.write(|tx| {
            tx.execute(
                "INSERT INTO images (id, manifest, config, workload, module, reason, platform, size,
                 created, stored, revision) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)
                 ON CONFLICT (id) DO UPDATE SET manifest = excluded.manifest, config = excluded.config,
                 workload = excluded.workload, module = excluded.module, reason = excluded.reason,
                 platform = excluded.platform, size = excluded.size, created = excluded.created,
                 stored = excluded.stored, revision = excluded.revision",
                params![
                    id,
                    image.manifest.to_string(),
                    image.config.to_string(),
                    serde_json::to_string(&image.workload)?,
                    module,
                    image.reason,
                    serde_json::to_string(&image.platform)?,
                    image.size as i64,
                    image.created,
                    image.stored,
                    revision,
                ],
            )?;
            for table in ["image_layers", "image_blobs", "image_names"] {
                tx.execute(&format!("DELETE FROM {table} WHERE image = ?1"), [&id])?;
            }
            put_content(tx, &id, &image.layers, blobs)?;
            for name in image.tags.iter().chain(&image.digests) {
                tx.execute(
                    "INSERT OR REPLACE INTO image_names VALUES (?1, ?2)",
                    params![name.to_string(), id],
                )?;
            }
            tx.execute(
                "INSERT INTO facts VALUES ('revision', ?1) ON CONFLICT (key) DO UPDATE
                 SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))",
                [revision.to_string()],
            )?;
            Ok(())
        })
    }

    /// The image with this id.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image(&self, id: &Digest) -> Result<Option<ImageRow>> {
        self.read(|db| one(db, "WHERE id = ?1", &id.to_string()))
    }

    /// The image that a whole reference names.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_by_name(&self, name: &Reference) -> Result<Option<ImageRow>> {
        self.read(|db| {
            one(db, "WHERE id = (SELECT image FROM image_names WHERE name = ?1)", &name.to_string())
        })
    }

    /// The images whose id starts with these hexadecimal digits; at most two,
    /// which is enough to know that a prefix is ambiguous.
    ///
    /// # Errors
    /// When the database fails.
    pub fn images_by_prefix(&self, hex: &str) -> Result<Vec<ImageRow>> {
        self.read(|db| many(db, "WHERE substr(id, 8, length(?1)) = ?1 LIMIT 2", &[&hex]))
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.read(|db| many(db, "ORDER BY created DESC, id", &[]))
    }

    /// How many images there are.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_count(&self) -> Result<usize> {
        self.read(|db| Ok(db.query_row("SELECT count(*) FROM images", [], |row| row.get(0))?))
    }

    /// An image whose program is this Wasm module.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_by_module(&self, module: &Digest) -> Result<Option<ImageRow>> {
        self.read(|db| one(db, "WHERE module = ?1 LIMIT 1", &module.to_string()))
    }

    /// Names an image; the name moves where another image had it.
    /// False where there is no such image.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_name(&self, name: &Reference, id: &Digest) -> Result<bool> {
        let id = id.to_string();
        self.write_durable(|tx| {
            let known: Option<i64> = tx
                .query_row("SELECT 1 FROM images WHERE id = ?1", [&id], |row| row.get(0))
                .optional()?;
            if known.is_some() {
                put_name(tx, name, &id)?;
                touch(tx, &id)?;
            }
            Ok(known.is_some())
        })
    }

    /// Takes names from an image. It stays, without a name perhaps.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_unname(&self, names: &[Reference]) -> Result<()> {
        self.write_durable(|tx| {
            for name in names {
                let owner = owner(tx, name)?;
                tx.execute("DELETE FROM image_names WHERE name = ?1", [name.to_string()])?;
                owner.map_or(Ok(()), |owner| touch(tx, &owner))?;
            }
            Ok(())
        })
    }

    /// Removes an image with its names. False where a container uses it.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_remove(&self, id: &Digest) -> Result<bool> {
        let outcome = self.write_durable(|tx| {
            tx.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])?;
            Ok(())
        });
        match outcome {
            Err(crate::Error::Sqlite(rusqlite::Error::SqliteFailure(code, _)))
                if code.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Keeps content from the garbage collector until the lease ends or expires
    /// (seconds since 1970).
    ///
    /// # Errors
    /// When the database fails.
    pub fn lease_add(&self, lease: &str, content: &[Content], expires: i64) -> Result<()> {
        self.write_new(|tx| {
            for item in content {
                let (kind, digest) = item.parts();
                tx.execute(
                    "INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4)",
                    params![lease, kind, digest, expires],
                )?;
            }
            Ok(())
        })
    }

    /// Ends a lease.
    ///
    /// # Errors
    /// When the database fails.
    pub fn lease_end(&self, lease: &str) -> Result<()> {
        self.write(|tx| {
            tx.execute("DELETE FROM leases WHERE lease = ?1", [lease])?;
            Ok(())
        })
    }

    /// Ends all leases but those of these names: whoever made them is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub fn leases_keep(&self, names: &BTreeSet<String>) -> Result<()> {
        self.write(|tx| {
            let leases = {
                let mut statement = tx.prepare_cached("SELECT DISTINCT lease FROM leases")?;
                let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
                rows.collect::<rusqlite::Result<Vec<_>>>()?
            };
            for lease in leases.iter().filter(|lease| !names.contains(*lease)) {
                tx.execute("DELETE FROM leases WHERE lease = ?1", [lease])?;
            }
            Ok(())
        })
    }

    /// The blobs that each image needs.
    ///
    /// # Errors
    /// When the database fails.
    pub fn image_blobs(&self) -> Result<BTreeMap<Digest, BTreeSet<Digest>>> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT image, digest FROM image_blobs")?;
            let rows = statement.query_map([], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?;
            let mut images = BTreeMap::<Digest, BTreeSet<Digest>>::new();
            for row in rows {
                let (image, blob) = row?;
                images.entry(image).or_default().insert(blob);
            }
            Ok(images)
        })
    }

    /// Forgets expired leases and answers all content that images and leases name.
    ///
    /// # Errors
    /// When the database fails.
    pub fn content_named(&self, now: i64) -> Result<Named> {
        self.write(|tx| {
            tx.execute("DELETE FROM leases WHERE expires <= ?1", [now])?;
            Ok(Named {
                blobs: digests(
                    tx,
                    "SELECT digest FROM image_blobs UNION SELECT digest FROM leases WHERE kind = 'blob'",
                )?,
                layers: digests(
                    tx,
                    "SELECT diff_id FROM image_layers UNION SELECT digest FROM leases WHERE kind = 'layer'",
                )?,
                modules: digests(tx, "SELECT module FROM images WHERE module IS NOT NULL")?,
            })
        })
    }
}

/// The image that has a name.
fn owner(db: &Connection, name: &Reference) -> Result<Option<String>> {
    let mut query = db.prepare_cached("SELECT image FROM image_names WHERE name = ?1")?;
    Ok(query.query_row([name.to_string()], |row| row.get(0)).optional()?)
}

/// Gives an image the next revision.
fn touch(tx: &Transaction<'_>, image: &str) -> Result<()> {
    let revision: i64 = tx.query_row(
        "INSERT INTO facts VALUES ('revision', '1') ON CONFLICT (key) DO UPDATE
         SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) RETURNING CAST(value AS INTEGER)",
        [],
        |row| row.get(0),
    )?;
    tx.execute("UPDATE images SET revision = ?2 WHERE id = ?1", params![image, revision])?;
    Ok(())
}

/// Records the layers and blobs of an image.
fn put_content(tx: &Transaction<'_>, id: &str, layers: &[Digest], blobs: &[Digest]) -> Result<()> {
    for (position, layer) in layers.iter().enumerate() {
        tx.execute(
            "INSERT OR REPLACE INTO image_layers VALUES (?1, ?2, ?3)",
            params![id, position as i64, layer.to_string()],
        )?;
    }
    for blob in blobs {
        tx.execute(
            "INSERT OR IGNORE INTO image_blobs VALUES (?1, ?2)",
            params![id, blob.to_string()],
        )?;
    }
    Ok(())
}

fn put_name(db: &Transaction<'_>, name: &Reference, image: &str) -> Result<()> {
    if let Some(owner) = owner(db, name)?.filter(|owner| owner != image) {
        touch(db, &owner)?;
    }
    db.execute(
        "INSERT INTO image_names VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        params![name.to_string(), image],
    )?;
    Ok(())
}

fn digests(db: &Connection, query: &str) -> Result<BTreeSet<Digest>> {
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map([], |row| parsed(row, 0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A column that holds a value's text form.
fn parsed<T: std::str::FromStr>(row: &Row<'_>, at: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(at)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn one(db: &Connection, condition: &str, value: &str) -> Result<Option<ImageRow>> {
    Ok(many(db, condition, &[&value])?.into_iter().next())
}

fn many(
    db: &Connection,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<ImageRow>> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM images {condition}"))?;
    let mut layers = db.prepare_cached(LAYERS)?;
    let mut names = db.prepare_cached(NAMES)?;
    let mut rows = statement.query(values)?;
    let mut images = Vec::new();
    while let Some(row) = rows.next()? {
        // One that cannot be read is nobody's answer: see `unreadable`.
        images.extend(parse(row, &mut layers, &mut names).ok());
    }
    Ok(images)
}

fn parse(
    row: &Row<'_>,
    layers: &mut rusqlite::Statement<'_>,
    names: &mut rusqlite::Statement<'_>,
) -> Result<ImageRow> {
    let id: Digest = parsed(row, 0)?;
    let key = id.to_string();
    let names: Vec<Reference> =
        names.query_map([&key], |row| parsed(row, 0))?.collect::<rusqlite::Result<_>>()?;
    let (digests, tags) = names.into_iter().partition(|name| name.digest().is_some());
    Ok(ImageRow {
        manifest: parsed(row, 1)?,
        config: parsed(row, 2)?,
        workload: serde_json::from_str(&row.get::<_, String>(3)?)?,
        reason: row.get(4)?,
        platform: serde_json::from_str(&row.get::<_, String>(5)?)?,
        size: row.get::<_, i64>(6)?.max(0) as u64,
        created: row.get(7)?,
        stored: row.get(8)?,
        layers: layers.query_map([&key], |row| parsed(row, 0))?.collect::<rusqlite::Result<_>>()?,
        tags,
        digests,
        id,
    })
}

const COLUMNS: &str = "id, manifest, config, workload, reason, platform, size, created, stored";
const LAYERS: &str = "SELECT diff_id FROM image_layers WHERE image = ?1 ORDER BY position";
const NAMES: &str = "SELECT name FROM image_names WHERE image = ?1 ORDER BY name";

pub(crate) fn unreadable(db: &Connection) -> Result<Vec<Unreadable>> {
    let mut query = db.prepare(&format!("SELECT {COLUMNS} FROM images ORDER BY id"))?;
    let (mut layers, mut names) = (db.prepare(LAYERS)?, db.prepare(NAMES)?);
    let mut rows = query.query([])?;
    let mut bad = Vec::new();
    while let Some(row) = rows.next()? {
        if let Err(error) = parse(row, &mut layers, &mut names) {
            let key = row.get("id").unwrap_or_default();
            bad.push(Unreadable { kind: "image", key, why: error.to_string() });
        }
    }
    Ok(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn image(byte: u8, tags: &[&str]) -> ImageRow {
        ImageRow {
            id: digest(byte),
            manifest: digest(byte + 100),
            config: digest(byte),
            workload: Workload::Native { platform: Platform::host() },
            reason: "test".into(),
            platform: Platform::host(),
            size: 7,
            created: i64::from(byte),
            stored: 1,
            layers: vec![digest(1), digest(2), digest(1)],
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            digests: vec![],
        }
    }

    #[test]
    fn an_image_reads_back_as_it_was_stored() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(&directory.path().join("db")).unwrap();
        let stored = image(9, &["web:1", "web:2"]);
        db.lease_add("pull", &[Content::Blob(digest(9)), Content::Layer(digest(1))], 100).unwrap();
        db.image_put(&stored, &[digest(9), digest(109)], "pull").unwrap();
        assert_eq!(db.image(&digest(9)).unwrap().unwrap(), stored);
        assert_eq!(db.image_by_name(&"web:1".parse().unwrap()).unwrap().unwrap(), stored);
        assert_eq!(db.images_by_prefix("0909").unwrap(), vec![stored.clone()]);
        assert!(db.images_by_prefix("0908").unwrap().is_empty());
        let named = db.content_named(0).unwrap();
        assert_eq!(named.blobs, BTreeSet::from([digest(9), digest(109)]));
        assert_eq!(named.layers, BTreeSet::from([digest(1), digest(2)]));

        // A name moves; an image without names stays until it is removed.
        db.image_put(&image(10, &["web:1", "web:2"]), &[digest(10)], "").unwrap();
        assert!(db.image(&digest(9)).unwrap().unwrap().tags.is_empty());
        assert!(db.image_remove(&digest(9)).unwrap());
        assert!(db.image(&digest(9)).unwrap().is_none());
        assert_eq!(db.content_named(0).unwrap().blobs, BTreeSet::from([digest(10)]));
    }

    #[test]
    fn k08_the_last_word_about_a_name_holds() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(&directory.path().join("db")).unwrap();
        let revision = |byte| db.image_record(&digest(byte)).unwrap().unwrap().revision;
        db.image_put(&image(9, &["web:1", "web:2"]), &[digest(9)], "").unwrap();
        let first = revision(9);
        db.image_put(&image(10, &["web:1"]), &[digest(10)], "").unwrap();
        let lost = revision(9);
        assert!(lost > first && revision(10) > lost, "one lost a name, another has it since");
        db.image_name(&"web:3".parse().unwrap(), &digest(9)).unwrap();
        let named = revision(9);
        assert!(named > revision(10), "it has a name more");
        db.image_unname(&["web:2".parse().unwrap()]).unwrap();
        assert!(revision(9) > named, "it has a name less");
        let mut records: Vec<ImageRecord> =
            [9, 10].iter().map(|byte| db.image_record(&digest(*byte)).unwrap().unwrap()).collect();
        assert_eq!(records[0].image.tags, ["web:3".parse().unwrap()]);
        records.sort_by_key(|record| record.revision);
        assert_eq!(records[1].image.id, digest(9), "its names changed last");

        let again = Db::open(&directory.path().join("again")).unwrap();
        // One that knew a name for another image.
        again.image_put(&image(9, &["web:1"]), &[], "").unwrap();
        for record in &records {
            again.image_adopt(record).unwrap();
        }
        for record in &records {
            assert_eq!(again.image_record(&record.image.id).unwrap().as_ref(), Some(record));
        }
        again.image_name(&"web:4".parse().unwrap(), &digest(10)).unwrap();
        let next = again.image_record(&digest(10)).unwrap().unwrap().revision;
        assert!(next > records[1].revision, "it goes on counting");
    }

    #[test]
    fn a_lease_holds_content_until_it_expires() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(&directory.path().join("db")).unwrap();
        db.lease_add("a", &[Content::Layer(digest(3))], 50).unwrap();
        assert!(db.content_named(49).unwrap().layers.contains(&digest(3)));
        assert!(db.content_named(50).unwrap().layers.is_empty());
    }
}
