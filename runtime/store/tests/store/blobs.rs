//! Documents and layers as they are kept: I09, I24.

use std::{fs, sync::Arc};

use knarr_store::{Error, Store};

use crate::{Fixture, digest};

#[test]
fn i09_wrong_content_goes_short_content_stays() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let content = b"twelve bytes".to_vec();
    let name = digest(&content);
    let size = Some(content.len() as u64);

    let mut short = store.ingest(name, size).unwrap();
    short.write(&content[..5]).unwrap();
    assert!(matches!(short.commit().unwrap_err(), Error::Size { found: 5, .. }));
    assert!(!store.has_blob(&name));
    // Another writer at the same time gets a file of its own.
    let first = store.ingest(name, size).unwrap();
    assert_eq!(first.offset(), 5);
    assert_eq!(store.ingest(name, size).unwrap().offset(), 0);
    drop(first);

    // A new process goes on where the old one stopped.
    let store = Arc::new(Store::open(&fixture.scratch.path().join("data")).unwrap());
    let mut rest = store.ingest(name, size).unwrap();
    assert_eq!(rest.offset(), 5);
    rest.write(&content[5..]).unwrap();
    rest.commit().unwrap();
    assert_eq!(store.read_blob(&name, 100).unwrap(), content);

    let other = digest(b"something else");
    let mut wrong = store.ingest(other, size).unwrap();
    wrong.write(&content).unwrap();
    assert!(matches!(wrong.commit().unwrap_err(), Error::Digest { .. }));
    let mut extra = store.ingest(other, size).unwrap();
    assert_eq!(extra.offset(), 0);
    assert!(matches!(extra.write(&[0; 13]).unwrap_err(), Error::Size { found: 13, .. }));
    drop(extra);
    assert!(!store.has_blob(&other));
    fixture.assert_clean();
}

#[test]
fn i24_a_rotten_document_is_not_read() {
    let fixture = Fixture::new();
    let name = fixture.store.put_blob(b"{\"a\":1}").unwrap();
    assert_eq!(fixture.store.put_blob(b"{\"a\":1}").unwrap(), name);
    assert!(fixture.store.read_blob(&name, 3).is_err());
    fs::write(fixture.store.blob_path(&name), b"{\"a\":2}").unwrap();
    let error = fixture.store.read_blob(&name, 100).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}
