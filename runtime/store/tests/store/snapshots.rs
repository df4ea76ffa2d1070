//! Stacks of layers.

use std::fs;

use knarr_model::{ContainerId, Digest};
use knarr_store::Error;

use crate::{Fixture, digest, evil_tar::EvilTar};

#[test]
fn i18_a_stack_of_layers_is_described_once_each() {
    let fixture = Fixture::new();
    let layers: Vec<Digest> = (0..500)
        .map(|n| {
            let archive = EvilTar::new().file(&format!("f{n}"), b"x").finish();
            let unpacked = fixture.unpack(&archive).unwrap();
            let diff_id = unpacked.diff_id();
            unpacked.publish().unwrap();
            diff_id
        })
        .collect();
    let id = "ab".repeat(32).parse().unwrap();
    let twice = [&layers[..], &layers[..1]].concat();
    let snapshot = fixture.store.prepare(&id, &twice).unwrap();
    assert_eq!(snapshot.lower.len(), 500);
    // The topmost place of the repeated layer counts.
    assert_eq!(snapshot.lower[0], fixture.store.layer_path(&layers[0]));
    assert_eq!(snapshot.lower[1], fixture.store.layer_path(&layers[499]));
    let upper = snapshot.upper.clone().unwrap();
    fs::write(upper.join("written"), [1; 5000]).unwrap();
    assert!(fixture.store.usage(&id).unwrap().bytes >= 5000);
    assert_eq!(fixture.store.snapshots().unwrap(), vec![id.clone()]);
    assert_eq!(fixture.store.prepare(&id, &twice).unwrap(), snapshot);
    fixture.store.remove_snapshot(&id).unwrap();
    fixture.store.remove_snapshot(&id).unwrap();
    assert!(!upper.exists());
    fixture.assert_clean();

    assert_eq!(fixture.store.view(&[]).unwrap().lower.len(), 1);
    // A layer whose root is opaque hides all below it.
    let opaque = EvilTar::new().file(".wh..wh..opq", b"").file("only", b"x").finish();
    fixture.layer(&opaque);
    let stack = [layers[0], digest(&opaque), layers[1]];
    let lower = fixture.store.view(&stack).unwrap().lower;
    assert_eq!(lower, [1, 0].map(|at| fixture.store.layer_path(&[digest(&opaque), layers[1]][at])));
    let nobody = digest(b"nobody");
    assert!(matches!(fixture.store.view(&[nobody]), Err(Error::NotFound { .. })));
}

#[test]
fn k09_a_removed_directory_in_its_place_is_no_containers() {
    let fixture = Fixture::new();
    let (kept, gone) = (ContainerId::from_random([1; 32]), ContainerId::from_random([2; 32]));
    for id in [&kept, &gone] {
        fixture.store.prepare(id, &[]).unwrap();
        fs::write(fixture.store.container_path(id).join("upper/file"), "").unwrap();
    }
    // As it is where the directory could not be renamed.
    let path = fixture.store.container_path(&gone);
    let mark = path.with_extension("removed");
    fs::write(&mark, "").unwrap();
    assert_eq!(fixture.store.snapshots().unwrap(), std::slice::from_ref(&kept));
    assert!(fixture.store.sweep_removed().is_empty());
    assert!(!path.exists() && !mark.exists());
    assert!(fixture.store.container_path(&kept).join("upper/file").exists());

    // What is being written is nobody's rubbish while the engine lives.
    let partial = fixture.scratch.path().join("data/ingest/layer-1");
    let trash = fixture.scratch.path().join("data/ingest/trash-1");
    for path in [&partial, &trash] {
        fs::create_dir(path).unwrap();
    }
    assert!(fixture.store.sweep_removed().is_empty());
    assert!(partial.exists() && !trash.exists());
    assert!(fixture.store.sweep_temporary().is_empty());
    assert!(!partial.exists());
}
