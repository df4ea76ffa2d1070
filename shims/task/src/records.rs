//! `init.json` and `exit.json` in the bundle: what outlives the shim.

use std::{io, path::Path};

use jiff::Timestamp;
use serde::Serialize;

/// Name of the file that says who the first process is.
pub(crate) const INIT: &str = "init.json";
/// Name of the file that says how it ended.
pub(crate) const EXIT: &str = "exit.json";

/// Writes a record so that a reader sees all of it or nothing. The bundle is on
/// tmpfs: nothing is to be synchronised.
pub(crate) fn write(bundle: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let temporary = bundle.join(format!(".{name}.tmp"));
    std::fs::write(&temporary, serde_json::to_vec(record)?)?;
    std::fs::rename(&temporary, bundle.join(name))
}

/// RFC 3339 with nanoseconds.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let record = knarr_model::task::ExitRecord {
            code: 7,
            finished_at: rfc3339(Timestamp::new(0, 5_000).unwrap()),
            oom_killed: false,
        };
        write(dir.path(), EXIT, &record).unwrap();
        let text = std::fs::read_to_string(dir.path().join(EXIT)).unwrap();
        assert_eq!(
            text,
            r#"{"code":7,"finished_at":"1970-01-01T00:00:00.000005000Z","oom_killed":false}"#
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
