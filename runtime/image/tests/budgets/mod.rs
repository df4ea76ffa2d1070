//! What images may cost in memory and on the disk, and that all of it is counted.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use knarr_model::Digest;
use serde_json::json;

use crate::{
    evil_tar::{EvilTar, Header},
    support::{Fixture, Made, config, digest, gzip, refused},
};

#[tokio::test]
async fn i08_an_archive_that_unfolds_in_the_store_is_refused() {
    let fixture = Fixture::new();
    // 16 MiB of zeros as a gzip member of its own, again and again: 2 GiB of two megabytes.
    let header = Header::new(b'0', b"layer.tar").size(2 << 30).block();
    let mut zeros = GzEncoder::new(Vec::new(), Compression::best());
    zeros.write_all(&vec![0; 16 << 20]).unwrap();
    let zeros = zeros.finish().unwrap();
    let mut archive = gzip(&header);
    (0..128).for_each(|_| archive.extend_from_slice(&zeros));
    assert!(archive.len() < 4 << 20, "{}", archive.len());
    refused(fixture.load(&archive).await, "image archive inflates more than");
    fixture.assert_empty();
}

#[tokio::test]
async fn i08_names_that_an_archive_makes_us_remember_are_bounded() {
    let fixture = Fixture::new();
    let links = |count: usize, length: usize| {
        let mut archive = EvilTar::new();
        for number in 0..count {
            let name = format!("{number}/{}", "n".repeat(length));
            let target = "t".repeat(length);
            let records = [("path", name.as_bytes()), ("linkpath", target.as_bytes())];
            archive = archive.pax(&records).symlink("link", "target");
        }
        gzip(&archive.finish())
    };
    refused(fixture.load(&links(1, 5000)).await, "longer than 4095 bytes");
    refused(fixture.load(&links(3000, 4000)).await, "entries is larger than");
    // As many as a real archive has are no burden.
    refused(fixture.load(&links(1000, 100)).await, "neither a manifest.json nor");
    fixture.assert_empty();
}

#[tokio::test]
async fn i08_an_archive_with_more_images_than_anybody_has_is_refused() {
    let fixture = Fixture::new();
    let layer = EvilTar::new().file("f", b"x").finish();
    // A configuration of half a megabyte, named by 100 images: each is read and kept.
    let long = json!({"Labels": {"l": "x".repeat(500_000)}});
    let configuration = config(std::slice::from_ref(&layer), "linux", "amd64", long);
    let of = |count: usize| {
        let image = json!({"Config": "c", "RepoTags": ["e:1"], "Layers": ["layer.tar"]});
        let images = serde_json::Value::Array(vec![image; count]);
        EvilTar::new()
            .file("layer.tar", &layer)
            .file("c", &configuration)
            .file("manifest.json", images.to_string().as_bytes())
            .finish()
    };
    refused(fixture.load(&of(1001)).await, "more than 1000 images");
    refused(fixture.load(&of(100)).await, "configurations of an image archive is larger");
    fixture.assert_empty();
    fixture.load(&of(1)).await.unwrap();
}

#[tokio::test]
async fn i08_what_broken_pulls_left_is_counted_and_pruned() {
    let fixture = Fixture::new();
    let none = |_: &Digest| vec![];
    for number in 0..12u8 {
        let layer = EvilTar::new().file("large", &noise(number, 100_000)).finish();
        let made = Made::new().layer(layer);
        fixture.fake.cut(digest(&made.layers[0].1), 50_000);
        fixture.fake.image(&format!("cut{number}:1"), made);
        fixture.pull(&format!("cut{number}:1")).await.unwrap_err();
    }
    let partial = |fixture: &Fixture| {
        std::fs::read_dir(fixture.data().join("ingest")).unwrap().flatten().count()
    };
    assert_eq!(partial(&fixture), 12);
    let usage = fixture.images.disk_usage().unwrap();
    assert!(usage.staged >= 12 * 50_000 && usage.blobs > 0, "{usage:?}");
    // A sweep leaves them to the next pull, which goes on there.
    fixture.images.sweep().await.unwrap();
    assert_eq!(partial(&fixture), 12);
    fixture.pull("cut0:1").await.unwrap();
    assert_eq!(partial(&fixture), 11);
    let kept = fixture.images.disk_usage().unwrap().sizes.into_values().sum::<u64>();

    let pruned = fixture.images.prune(false, |_| true, none).unwrap();
    assert!(pruned.reclaimed >= 11 * 50_000, "{pruned:?}");
    let usage = fixture.images.disk_usage().unwrap();
    assert_eq!((usage.staged, usage.layers + usage.blobs), (0, kept));
    fixture.images.prune(true, |_| true, none).unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn i22_prune_leaves_a_pull_that_is_under_way_alone() {
    let fixture = Fixture::new();
    let store = fixture.images.store();
    let bytes = noise(7, 100_000);
    let mut ingest = store.ingest(digest(&bytes), None).unwrap();
    ingest.write(&bytes[..50_000]).unwrap();
    let none = |_: &Digest| vec![];
    let pruned = fixture.images.prune(true, |_| true, none).unwrap();
    assert_eq!(pruned.reclaimed, 0);
    ingest.write(&bytes[50_000..]).unwrap();
    ingest.commit().unwrap();
    assert!(store.has_blob(&digest(&bytes)));
}

/// Bytes that do not compress.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}
