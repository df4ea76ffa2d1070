//! Containers: what should be.
//!
//! A row is written before anything of the container exists on the host and is
//! deleted after the last of it is gone, so that recovery finds what a crash
//! left behind. Facts of a running container (pid, start time, cgroup) are not
//! here but on tmpfs, with the shim that knows them.
//!
//! Changes survive the death of the engine; a power cut may take back the last
//! ones ([`Db::write`]), to an earlier state that was also true once: no fsync
//! on the way of a container's start.

use std::collections::HashMap;

use knarr_model::{ContainerId, ContainerSpec, Digest, Name, Workload};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::{Db, Error, Result, Unreadable};

pub(crate) const SCHEMA: &str = "
CREATE TABLE containers (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    created          TEXT NOT NULL,             -- RFC 3339
    image            TEXT NOT NULL REFERENCES images (id), -- a used image stays
    workload         TEXT NOT NULL,             -- JSON, knarr_model::Workload
    spec             TEXT NOT NULL,             -- JSON, knarr_model::ContainerSpec, merged with the image
    resolved         TEXT NOT NULL,             -- JSON of the engine: argv, layers, mounts
    status           TEXT NOT NULL,             -- creating, created, running, paused, restarting, removing, removing-volumes, exited, dead
    pid              INTEGER NOT NULL DEFAULT 0,
    exit_code        INTEGER NOT NULL DEFAULT 0,
    oom_killed       INTEGER NOT NULL DEFAULT 0,
    error            TEXT NOT NULL DEFAULT '',
    started_at       TEXT,
    finished_at      TEXT,
    restart_count    INTEGER NOT NULL DEFAULT 0,
    manually_stopped INTEGER NOT NULL DEFAULT 0 -- a user stopped it: no restart by policy
) STRICT, WITHOUT ROWID;

CREATE TABLE facts (                            -- of this data root: its id, the last boot
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Its id.
    pub id: ContainerId,
    /// Its name, unique among containers.
    pub name: Name,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// Digest of the image's configuration.
    pub image: Digest,
    /// What kind of program it is.
    pub workload: Workload,
    /// What was asked, merged with the image's configuration.
    pub spec: ContainerSpec,
    /// What the engine made of it; the engine's own JSON.
    pub resolved: serde_json::Value,
    /// Where it is in its life.
    pub state: ContainerState,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerState {
    /// Docker's word.
    pub status: String,
    /// First process in the host's namespace.
    pub pid: u32,
    /// Of the last run.
    pub exit_code: u32,
    /// The last run was ended by the OOM killer.
    pub oom_killed: bool,
    /// Why the last start failed.
    pub error: String,
    /// RFC 3339; none before the first start.
    pub started_at: Option<String>,
    /// RFC 3339; none before the first exit.
    pub finished_at: Option<String>,
    /// Restarts by policy.
    pub restart_count: u32,
    /// A user stopped it.
    pub manually_stopped: bool,
}

/// A container whose record is newer than its row, or that has no row.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedContainer {
    /// What its record says.
    pub row: ContainerRow,
    /// How often its row had changed by then.
    pub revision: u64,
    /// The volumes that it uses; those that there are none of are left out.
    pub volumes: Vec<String>,
}

/// Whether an insert or a renaming took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameClaim {
    /// The name is this container's.
    Ours,
    /// It belongs to another one.
    Taken(ContainerId),
    /// An insert only: the image was deleted meanwhile.
    NoImage,
}

impl Db {
    /// Adds a container, unless its name is taken or its image is gone.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn insert_container(&self, row: &ContainerRow) -> Result<NameClaim> {
        let workload = serde_json::to_string(&row.workload)?;
        let spec = serde_json::to_string(&row.spec)?;
        self.write_new(|db| {
            if let Some(owner) = owner_of(db, &row.name)? {
                return Ok(NameClaim::Taken(owner));
            }
            let image = row.image.to_string();
            if !db.prepare_cached("SELECT 1 FROM images WHERE id = ?1")?.exists([&image])? {
                return Ok(NameClaim::NoImage);
            }
            db.prepare_cached(
                "INSERT INTO containers (id, name, created, image, workload, spec, resolved, status)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                row.id.as_str(),
                row.name.as_str(),
                row.created,
                image,
                workload,
                spec,
                row.resolved.to_string(),
                row.state.status,
            ])?;
            Ok(NameClaim::Ours)
        })
    }

    /// All containers, the oldest first. A row that cannot be read is left out
    /// and answered as its id and the reason, so that one bad row never keeps
    /// the engine from starting.
    ///
    /// # Errors
    /// When the database cannot be read.
    #[expect(clippy::type_complexity, reason = "rows, and the ids of those that cannot be read")]
    pub fn containers(&self) -> Result<(Vec<ContainerRow>, Vec<(String, Error)>)> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM containers ORDER BY created, id")?;
            let mut rows = query.query([])?;
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            while let Some(row) = rows.next()? {
                match parse(row) {
                    Ok(container) => good.push(container),
                    Err(error) => bad.push((row.get("id").unwrap_or_default(), error)),
                }
            }
            Ok((good, bad))
        })
    }

    /// How often each row has changed, for telling whether its record is newer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn container_revisions(&self) -> Result<HashMap<String, u64>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT id, revision FROM containers")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Writes rows as the records beside the containers have them, in one
    /// transaction. Of two that claim one name, the one with fewer changes is
    /// called `<name>-<first digits of its id>`. Their images must have rows.
    /// Answers what they are called.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn adopt_containers(&self, all: &[AdoptedContainer]) -> Result<Vec<(ContainerId, Name)>> {
        let mut order: Vec<&AdoptedContainer> = all.iter().collect();
        order.sort_by(|a, b| b.revision.cmp(&a.revision).then(a.row.created.cmp(&b.row.created)));
        self.write(|db| {
            // Names change hands among them: first nobody has one.
            for one in &order {
                db.execute("UPDATE containers SET name = id WHERE id = ?1", [one.row.id.as_str()])?;
            }
            order.iter().map(|one| Ok((one.row.id.clone(), adopt(db, one)?))).collect()
        })
    }

    /// Records where a container is in its life; answers the row's revision.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_container_state(&self, id: &ContainerId, state: &ContainerState) -> Result<u64> {
        self.write(|db| {
            let mut update = db.prepare_cached(
                "UPDATE containers SET status = ?2, pid = ?3, exit_code = ?4, oom_killed = ?5, error = ?6,
                 started_at = ?7, finished_at = ?8, restart_count = ?9, manually_stopped = ?10,
                 revision = revision + 1 WHERE id = ?1 RETURNING revision",
            )?;
            let changed = update.query_row(params![
                id.as_str(),
                state.status,
                state.pid,
                state.exit_code,
                state.oom_killed,
                state.error,
                state.started_at,
                state.finished_at,
                state.restart_count,
                state.manually_stopped,
            ], revision);
            Ok(changed.optional()?.unwrap_or_default())
        })
    }

    /// Replaces what was asked (`update`, `network connect`); answers the row's
    /// revision.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_container_spec(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<u64> {
        let spec = serde_json::to_string(spec)?;
        self.write(|db| {
            let changed = db.query_row(
                "UPDATE containers SET spec = ?2, revision = revision + 1 WHERE id = ?1
                 RETURNING revision",
                params![id.as_str(), spec],
                revision,
            );
            Ok(changed.optional()?.unwrap_or_default())
        })
    }

    /// Records that everything of a new container is there.
    ///
    /// A row whose status is still `creating` when the engine opens is one whose
    /// `create` was never answered.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn finish_container(&self, id: &ContainerId, resolved: &serde_json::Value) -> Result<()> {
        self.write(|db| {
            db.prepare_cached(
                "UPDATE containers SET resolved = ?2, status = 'created', revision = 1 WHERE id = ?1",
            )?
            .execute(params![id.as_str(), resolved.to_string()])?;
            Ok(())
        })
    }

    /// Gives a container another name, unless it is taken.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn rename_container(&self, id: &ContainerId, name: &Name) -> Result<NameClaim> {
        self.write(|db| match owner_of(db, name)? {
            Some(owner) if owner != *id => Ok(NameClaim::Taken(owner)),
            _ => {
                db.execute(
                    "UPDATE containers SET name = ?2, revision = revision + 1 WHERE id = ?1",
                    params![id.as_str(), name.as_str()],
                )?;
                Ok(NameClaim::Ours)
            }
        })
    }

    /// Forgets a container; it need not exist.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_container(&self, id: &ContainerId) -> Result<()> {
        self.write(|db| {
            db.prepare_cached("DELETE FROM containers WHERE id = ?1")?.execute([id.as_str()])?;
            Ok(())
        })
    }

    /// A fact of this data root.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn fact(&self, key: &str) -> Result<Option<String>> {
        self.read(|db| {
            Ok(db
                .query_row("SELECT value FROM facts WHERE key = ?1", [key], |row| row.get(0))
                .optional()?)
        })
    }

    /// Records a fact of this data root.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_fact(&self, key: &str, value: &str) -> Result<()> {
        self.write(|db| {
            db.execute(
                "INSERT INTO facts (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [key, value],
            )?;
            Ok(())
        })
    }
}

fn revision(row: &Row<'_>) -> rusqlite::Result<u64> {
    row.get("revision")
}

/// Writes one container's row and uses, and answers what it is called.
fn adopt(db: &Transaction<'_>, one: &AdoptedContainer) -> Result<Name> {
    let AdoptedContainer { row, revision, volumes } = one;
    let mut name = row.name.clone();
    if owner_of(db, &name)?.is_some_and(|owner| owner != row.id) {
        // Both parts are of the grammar of names, and so is the dash.
        name = word(format!("{name}-{}", row.id.short()).parse())?;
    }
    let id = row.id.as_str();
    let state = &row.state;
    db.execute(
        "INSERT INTO containers (id, name, created, image, workload, spec, resolved, status, pid,
         exit_code, oom_killed, error, started_at, finished_at, restart_count, manually_stopped, revision)
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, created = excluded.created,
         image = excluded.image, workload = excluded.workload, spec = excluded.spec,
         resolved = excluded.resolved, status = excluded.status, pid = excluded.pid,
         exit_code = excluded.exit_code, oom_killed = excluded.oom_killed, error = excluded.error,
         started_at = excluded.started_at, finished_at = excluded.finished_at,
         restart_count = excluded.restart_count, manually_stopped = excluded.manually_stopped,
         revision = excluded.revision",
        params![
            id,
            name.as_str(),
            row.created,
            row.image.to_string(),
            serde_json::to_string(&row.workload)?,
            serde_json::to_string(&row.spec)?,
            row.resolved.to_string(),
            state.status,
            state.pid,
            state.exit_code,
            state.oom_killed,
            state.error,
            state.started_at,
            state.finished_at,
            state.restart_count,
            state.manually_stopped,
            revision,
        ],
    )?;
    db.execute("DELETE FROM volume_uses WHERE container = ?1", [id])?;
    for volume in volumes {
        db.execute(
            "INSERT OR IGNORE INTO volume_uses (volume, container)
             SELECT name, ?2 FROM volumes WHERE name = ?1",
            params![volume, id],
        )?;
    }
    Ok(name)
}

pub(crate) fn unreadable(db: &Connection) -> Result<Vec<Unreadable>> {
    let mut query = db.prepare("SELECT * FROM containers ORDER BY id")?;
    let mut rows = query.query([])?;
    let mut bad = Vec::new();
    while let Some(row) = rows.next()? {
        if let Err(error) = parse(row) {
            let key = row.get("id").unwrap_or_default();
            bad.push(Unreadable { kind: "container", key, why: error.to_string() });
        }
    }
    Ok(bad)
}

fn owner_of(db: &Connection, name: &Name) -> Result<Option<ContainerId>> {
    let owner: Option<String> = db
        .prepare_cached("SELECT id FROM containers WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    owner.map(|id| word(id.parse())).transpose()
}

/// A column that its own type's parser refuses.
fn word<T, E: std::error::Error + Send + Sync + 'static>(
    parsed: std::result::Result<T, E>,
) -> Result<T> {
    parsed.map_err(|error| {
        Error::Sqlite(rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Text,
            Box::new(error),
        ))
    })
}

fn parse(row: &Row<'_>) -> Result<ContainerRow> {
    let text = |column: &str| row.get::<_, String>(column);
    Ok(ContainerRow {
        id: word(text("id")?.parse())?,
        name: word(text("name")?.parse())?,
        created: text("created")?,
        image: word(text("image")?.parse())?,
        workload: serde_json::from_str(&text("workload")?)?,
        spec: serde_json::from_str(&text("spec")?)?,
        resolved: serde_json::from_str(&text("resolved")?)?,
        state: ContainerState {
            status: text("status")?,
            pid: row.get("pid")?,
            exit_code: row.get("exit_code")?,
            oom_killed: row.get("oom_killed")?,
            error: text("error")?,
            started_at: row.get("started_at")?,
            finished_at: row.get("finished_at")?,
            restart_count: row.get("restart_count")?,
            manually_stopped: row.get("manually_stopped")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use knarr_model::Platform;

    use super::*;

    fn open(path: &std::path::Path) -> Db {
        let db = Db::open(path).unwrap();
        db.write(|db| {
            db.execute(
                "INSERT OR IGNORE INTO images VALUES (?1, '', '', '', NULL, '', '', 0, 0, 0, 0)",
                [Digest::from_bytes([7; 32]).to_string()],
            )?;
            Ok(())
        })
        .unwrap();
        db
    }

    fn row(id: char, name: &str) -> ContainerRow {
        ContainerRow {
            id: id.to_string().repeat(64).parse().unwrap(),
            name: name.parse().unwrap(),
            created: "2026-01-01T00:00:00Z".into(),
            image: Digest::from_bytes([7; 32]),
            workload: Workload::Native { platform: Platform::host() },
            spec: ContainerSpec { image: "busybox".into(), ..ContainerSpec::default() },
            resolved: serde_json::json!({"argv": ["sh"]}),
            state: ContainerState { status: "created".into(), ..ContainerState::default() },
        }
    }

    #[test]
    fn k08_rows_are_written_from_records_whatever_they_were_called() {
        let scratch = tempfile::tempdir().unwrap();
        let db = open(&scratch.path().join("state.db"));
        for (id, name) in [('a', "one"), ('b', "two")] {
            db.insert_container(&row(id, name)).unwrap();
        }
        let adopted = |id, name, revision| AdoptedContainer {
            row: row(id, name),
            revision,
            volumes: vec!["hold".into(), "missing".into()],
        };
        db.adopt_volume(&crate::volumes::VolumeRow {
            name: "hold".parse().unwrap(),
            created: String::new(),
            anonymous: false,
            labels: Default::default(),
            options: Default::default(),
        })
        .unwrap();
        // Names changed hands, and a third one claims one that another has.
        let all = [adopted('a', "two", 5), adopted('b', "one", 4), adopted('c', "one", 2)];
        let names = db.adopt_containers(&all).unwrap();
        let called = |id: char| {
            let name = names.iter().find(|(other, _)| other.as_str().starts_with(id)).unwrap();
            name.1.to_string()
        };
        assert_eq!([called('a'), called('b')], ["two", "one"]);
        assert_eq!(called('c'), format!("one-{}", "c".repeat(12)));
        let (rows, bad) = db.containers().unwrap();
        assert_eq!((rows.len(), bad.len()), (3, 0));
        assert_eq!(db.container_revisions().unwrap()[&"a".repeat(64)], 5);
        assert_eq!(db.volume_users("hold").unwrap().len(), 3);
        // Each change is counted.
        let id = rows[0].id.clone();
        let before = db.container_revisions().unwrap()[id.as_str()];
        let counted = db.set_container_state(&id, &rows[0].state).unwrap();
        assert_eq!(counted, before + 1);
        assert_eq!(db.set_container_spec(&id, &rows[0].spec).unwrap(), counted + 1);
        db.rename_container(&id, &"three".parse().unwrap()).unwrap();
        assert_eq!(db.container_revisions().unwrap()[id.as_str()], counted + 2);
    }

    #[test]
    fn i22_no_container_is_made_of_an_image_that_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let db = open(&scratch.path().join("state.db"));
        let gone = ContainerRow { image: Digest::from_bytes([8; 32]), ..row('a', "one") };
        assert_eq!(db.insert_container(&gone).unwrap(), NameClaim::NoImage);
        assert_eq!(db.insert_container(&row('b', "one")).unwrap(), NameClaim::Ours);
        let owner = row('b', "one").id;
        assert_eq!(db.insert_container(&gone).unwrap(), NameClaim::Taken(owner));
    }

    #[test]
    fn k05_rows_that_cannot_be_read_are_named_and_left_out() {
        let scratch = tempfile::tempdir().unwrap();
        let db = open(&scratch.path().join("state.db"));
        for (id, name) in [('a', "one"), ('b', "two")] {
            db.insert_container(&row(id, name)).unwrap();
        }
        db.write(|db| {
            db.execute_batch(
                "UPDATE containers SET spec = '' WHERE name = 'one';
                 INSERT INTO volumes VALUES ('hold', '', 0, '[', '{}');
                 INSERT INTO networks VALUES ('n', 'net', NULL, '{}');
                 INSERT INTO endpoints VALUES ('n', 'c', 7, 0, '{}');
                 INSERT INTO ports VALUES ('c', 'tcp', 'nowhere', 80, 7, 80);",
            )?;
            Ok(())
        })
        .unwrap();
        let bad = db.unreadable(&["container", "image", "network", "volume"]).unwrap();
        let kinds: Vec<&str> = bad.iter().map(|row| row.kind).collect();
        // The image of these tests is no image of the grammar.
        assert_eq!(kinds, ["container", "image", "network", "volume"]);
        assert_eq!(db.containers().unwrap().0.len(), 1);
        assert!(db.volumes().unwrap().is_empty() && db.networks().unwrap().is_empty());
        assert!(db.images().unwrap().is_empty());
        assert!(db.endpoints().unwrap().is_empty() && db.ports().unwrap().is_empty());
        db.forget_unreadable_endpoints().unwrap();
        assert_eq!(db.network_ids().unwrap(), ["n"], "it stays");
        let left = db.write(|db| {
            Ok(db.query_row(
                "SELECT (SELECT count(*) FROM endpoints) + (SELECT count(*) FROM ports)",
                [],
                |row| row.get::<_, i64>(0),
            )?)
        });
        assert_eq!(left.unwrap(), 0, "facts of runs do not");
    }

    #[test]
    fn a_container_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let mut one = row('a', "one");
        {
            let db = open(&path);
            assert_eq!(db.insert_container(&one).unwrap(), NameClaim::Ours);
            one.state = ContainerState {
                status: "exited".into(),
                exit_code: 137,
                oom_killed: true,
                finished_at: Some("2026-01-01T00:00:01Z".into()),
                ..one.state
            };
            db.set_container_state(&one.id, &one.state).unwrap();
        }
        let db = open(&path);
        assert_eq!(db.containers().unwrap().0, [one.clone()]);
        db.delete_container(&one.id).unwrap();
        db.delete_container(&one.id).unwrap();
        assert!(db.containers().unwrap().0.is_empty());
    }

    #[test]
    fn a_name_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir.path().join("state.db"));
        let (one, two) = (row('a', "one"), row('b', "two"));
        db.insert_container(&one).unwrap();
        db.insert_container(&two).unwrap();
        assert_eq!(
            db.insert_container(&row('c', "one")).unwrap(),
            NameClaim::Taken(one.id.clone())
        );
        assert_eq!(
            db.rename_container(&two.id, &one.name).unwrap(),
            NameClaim::Taken(one.id.clone())
        );
        assert_eq!(db.rename_container(&one.id, &one.name).unwrap(), NameClaim::Ours);
    }

    #[test]
    fn k05_a_bad_row_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir.path().join("state.db"));
        let (one, two) = (row('a', "one"), row('b', "two"));
        db.insert_container(&one).unwrap();
        db.insert_container(&two).unwrap();
        db.write(|db| {
            db.execute("UPDATE containers SET spec = '{' WHERE name = 'one'", [])?;
            Ok(())
        })
        .unwrap();
        let (good, bad) = db.containers().unwrap();
        assert_eq!(good, [two]);
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].0, one.id.as_str());
    }
}
