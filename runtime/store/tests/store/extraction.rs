//! Archives that lie: I01 to I08.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use knarr_store::{Error, Limits};

use crate::{
    Fixture, digest,
    evil_tar::{EvilTar, Header},
    gzip,
    trees::tree,
};

/// A file `f` with holes as GNU's old format writes it.
fn sparse(pieces: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new(b'S', b"f");
    header.put(257, b"ustar  \0").size(data.len() as u64);
    for (at, (offset, length)) in pieces.iter().enumerate() {
        header.octal(386 + at * 24, 12, *offset).octal(398 + at * 24, 12, *length);
    }
    header.octal(483, 12, size);
    EvilTar::new().entry(&header, data).finish()
}

/// The same as PAX records.
fn pax_sparse(records: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
    let records: Vec<(String, &[u8])> = records
        .iter()
        .map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()))
        .collect();
    let records: Vec<(&str, &[u8])> =
        records.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    EvilTar::new().pax(&records).file("f", data).finish()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 4];
    let read = rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]);
    matches!(read, Ok(1)) && value[0] == b'y'
}

#[test]
fn i01_names_never_leave_the_layer() {
    let fixture = Fixture::new();
    let canary = fixture.scratch.path().join("canary");
    fs::write(&canary, "kept").unwrap();
    let absolute = canary.display().to_string();
    for bad in ["../x", "a/../../x", "..", "a/..", "/../canary", "", "./..", "a/./../b"] {
        let archive = EvilTar::new().file("ok", b"").file(bad, b"evil").finish();
        fixture.refused(&archive, "its name");
        let archive = EvilTar::new().pax(&[("path", bad.as_bytes())]).file("x", b"evil").finish();
        fixture.refused(&archive, "its name");
    }
    let up = "../".repeat(60) + "etc/knarr-evil";
    for kind in *b"LK" {
        let archive = EvilTar::new().long(kind, up.as_bytes()).hard_link("x", "y").finish();
        fixture.refused(&archive, "");
    }
    let layer = fixture.layer(
        &EvilTar::new()
            .directory("./")
            .directory("/")
            .file(&absolute, b"inside")
            .file("//b//c/./d", b"deep")
            .finish(),
    );
    assert_eq!(fs::read_to_string(&canary).unwrap(), "kept");
    assert_eq!(fs::read_to_string(layer.join(&absolute[1..])).unwrap(), "inside");
    assert_eq!(fs::read_to_string(layer.join("b/c/d")).unwrap(), "deep");
    assert!(!Path::new("/etc/knarr-evil").exists());
}

#[test]
fn i02_symlink_parents_are_resolved_beneath_the_layer() {
    let fixture = Fixture::new();
    let victim = fixture.scratch.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let target = victim.display().to_string();
    let inside = &target[1..];
    let up = "../".repeat(8);
    for (archive, lands) in [
        (EvilTar::new().symlink("d", &target).file("d/passwd", b"x"), format!("{inside}/passwd")),
        (
            EvilTar::new().symlink("a", &target).symlink("b", "a").file("b/passwd", b"x"),
            format!("{inside}/passwd"),
        ),
        (EvilTar::new().symlink("d", "/").file("d/etc/passwd", b"x"), "etc/passwd".into()),
        (EvilTar::new().symlink("d", "..").directory("d/x"), "x".into()),
        (
            EvilTar::new().symlink("d", &format!("{up}{inside}")).file("d/x", b"x"),
            format!("{inside}/x"),
        ),
        (
            EvilTar::new().directory("usr/lib").symlink("lib", "usr/lib").file("lib/x", b"x"),
            "usr/lib/x".into(),
        ),
        (EvilTar::new().symlink("lib", "usr/lib").file("lib/a/x", b"x"), "usr/lib/a/x".into()),
        (EvilTar::new().symlink("a/up", "../b").file("a/up/x", b"x"), "b/x".into()),
        (EvilTar::new().symlink("d", &target).symlink("d/x", "y"), format!("{inside}/x")),
        (EvilTar::new().symlink("d", &target).node(b'6', "d/p", 0, 0), format!("{inside}/p")),
        // A directory that becomes a link after its descriptor was kept.
        (
            EvilTar::new().directory("d").file("d/one", b"").symlink("d", &target).file("d/2", b""),
            format!("{inside}/2"),
        ),
        // A link whose target becomes another directory.
        (
            EvilTar::new()
                .symlink("l", "one")
                .file("l/x", b"")
                .symlink("l", "two")
                .file("l/y", b""),
            "two/y".into(),
        ),
    ] {
        let layer = fixture.layer(&archive.finish());
        assert!(fs::symlink_metadata(layer.join(&lands)).is_ok(), "{lands}");
    }
    // Whiteouts and hard links go the same way.
    let layer = fixture.layer(
        &EvilTar::new()
            .symlink("lib", "usr/lib")
            .file("lib/.wh.gone", b"")
            .file("lib/deep/.wh..wh..opq", b"")
            .file("lib/one", b"1")
            .hard_link("two", "lib/one")
            .hard_link("lib/three", "two")
            .finish(),
    );
    assert!(is_whiteout(&layer.join("usr/lib/gone")));
    assert!(is_opaque(&layer.join("usr/lib/deep")));
    assert_eq!(fs::metadata(layer.join("usr/lib/three")).unwrap().nlink(), 3);
    for (archive, word) in [
        (EvilTar::new().file("f", b"").file("f/x", b""), "no directory"),
        (EvilTar::new().file("f", b"").symlink("l", "f").file("l/x", b""), "no directory"),
        (EvilTar::new().symlink("a", "b").symlink("b", "a").file("a/x", b""), "loop"),
        (EvilTar::new().symlink("a", "a/a").file("a/x", b""), "loop"),
        (EvilTar::new().symlink("a", ".wh.x").file("a/x", b""), "whiteout"),
        (
            EvilTar::new()
                .long(b'K', "n/".repeat(2000).as_bytes())
                .symlink("a", "")
                .file(&format!("a/{}", "m/".repeat(40)), b"")
                .long(b'L', format!("a/{}x", "m/".repeat(100)).as_bytes())
                .file("x", b""),
            "longer",
        ),
    ] {
        fixture.refused(&archive.finish(), word);
    }
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);

    // Across layers: each is its own directory, so the link of one is none in the other.
    fixture.layer(&EvilTar::new().symlink("d", &target).finish());
    let upper = fixture.layer(&EvilTar::new().file("d/passwd", b"inside").finish());
    assert_eq!(fs::read_to_string(upper.join("d/passwd")).unwrap(), "inside");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

#[test]
fn i02_final_symlinks_are_replaced_not_followed() {
    let fixture = Fixture::new();
    let canary = fixture.scratch.path().join("canary");
    fs::write(&canary, "kept").unwrap();
    let target = canary.display().to_string();
    let layer = fixture.layer(
        &EvilTar::new()
            .symlink("f", &target)
            .file("f", b"mine")
            .symlink("n", &target)
            .node(b'6', "n", 0, 0)
            .finish(),
    );
    assert_eq!(fs::read_to_string(&canary).unwrap(), "kept");
    assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "mine");
    assert!(fs::symlink_metadata(layer.join("n")).unwrap().file_type().is_fifo());
}

#[test]
fn i03_hard_links_stay_inside() {
    let fixture = Fixture::new();
    let canary = fixture.scratch.path().join("canary");
    fs::write(&canary, "kept").unwrap();
    let outside = canary.display().to_string();
    fixture.layer(&EvilTar::new().file("earlier", b"other layer").finish());
    for (archive, word) in [
        (EvilTar::new().hard_link("h", &outside), "not in this layer"),
        (EvilTar::new().hard_link("h", "../../canary"), "hard link"),
        (EvilTar::new().hard_link("h", "earlier"), "not in this layer"),
        (EvilTar::new().file("h", b"").hard_link("h", "./h"), "itself"),
        (EvilTar::new().hard_link("h", ""), "hard link"),
        (EvilTar::new().hard_link("h", "/"), "root"),
        (EvilTar::new().directory("d").hard_link("h", "d"), "directory"),
        (EvilTar::new().symlink("s", &outside).hard_link("h", "s/x"), "not in this layer"),
        (EvilTar::new().symlink("s", "/etc").hard_link("h", "s/passwd"), "not in this layer"),
        (EvilTar::new().file("f", b"").hard_link("h", "f/x"), "no directory"),
        (EvilTar::new().file(".wh.w", b"").hard_link("h", "w"), "not in this layer"),
        (EvilTar::new().file("d/x", b"").hard_link("d", "d/x"), "not in this layer"),
    ] {
        fixture.refused(&archive.finish(), word);
    }
    // A link to a symbolic link is the link itself, not what it points at.
    let layer = fixture.layer(
        &EvilTar::new()
            .symlink("s", &outside)
            .hard_link("h", "s")
            .file("a", b"one")
            .hard_link("dir/b", "/a")
            .finish(),
    );
    assert_eq!(fs::read_link(layer.join("h")).unwrap(), canary);
    assert_eq!(fs::metadata(&canary).unwrap().nlink(), 1);
    let [a, b] = ["a", "dir/b"].map(|name| fs::metadata(layer.join(name)).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
}

#[test]
fn i04_metadata_never_goes_through_a_link() {
    let fixture = Fixture::new();
    let canary = fixture.scratch.path().join("canary");
    fs::create_dir(&canary).unwrap();
    let file = canary.join("file");
    fs::write(&file, "kept").unwrap();
    let before = tree(&canary);
    let (target, inner) = (canary.display().to_string(), file.display().to_string());
    let evil = |kind, name: &str| {
        let mut header = Header::new(kind, name.as_bytes());
        header.owner(0o6777, 1234, 1234);
        header
    };
    let archive = EvilTar::new()
        .symlink("d", &target)
        .entry(&evil(b'5', "d"), b"")
        .entry(evil(b'2', "s").link(inner.as_bytes()), b"")
        .pax(&[("SCHILY.xattr.security.capability", b"junk of no meaning!!")])
        .entry(evil(b'2', "t").link(inner.as_bytes()), b"")
        .finish();
    // The capability is malformed or not allowed on a link; either way the
    // canary is as it was.
    let _ = fixture.unpack(&archive);
    let archive = EvilTar::new()
        .symlink("d", &target)
        .entry(&evil(b'5', "d"), b"")
        .entry(evil(b'2', "s").link(inner.as_bytes()), b"")
        .pax(&[("SCHILY.xattr.user.evil", b"1")])
        .entry(evil(b'2', "t").link(inner.as_bytes()), b"")
        .hard_link("h", "s")
        .entry(&evil(b'0', "h"), b"")
        .finish();
    let layer = fixture.layer(&archive);
    assert_eq!(tree(&canary), before);
    assert!(fs::symlink_metadata(layer.join("d")).unwrap().is_dir());
    let link = fs::symlink_metadata(layer.join("s")).unwrap();
    assert_eq!((link.uid(), link.mtime()), (1234, 1_000_000_000));
}

#[test]
fn i05_whiteouts_mean_the_same_in_every_order() {
    let fixture = Fixture::new();
    type Step = fn(EvilTar) -> EvilTar;
    let steps: [Step; 5] = [
        |t| t.file(".wh.gone", b""),
        |t| t.file("dir/.wh..wh..opq", b""),
        |t| t.file("dir/new", b"x"),
        |t| t.file("again/x", b"y"),
        |t| t.file(".wh.again", b""),
    ];
    for turn in 0..steps.len() {
        for flip in [false, true] {
            let mut order: Vec<usize> = (0..steps.len()).collect();
            order.rotate_left(turn);
            if flip {
                order.reverse();
            }
            let archive = order.iter().fold(EvilTar::new(), |tar, at| steps[*at](tar)).finish();
            let layer = fixture.layer(&archive);
            assert!(is_whiteout(&layer.join("gone")), "{order:?}");
            assert!(is_opaque(&layer.join("dir")), "{order:?}");
            assert!(layer.join("dir/new").is_file());
            // Removed and made anew: a directory that hides what was below.
            assert!(is_opaque(&layer.join("again")), "{order:?}");
            assert!(layer.join("again/x").is_file());
            assert!(!layer.join(".wh.gone").exists());
        }
    }
    // A file of the same layer hides the lower one by itself, in both orders.
    for archive in [
        EvilTar::new().file("f", b"new").file(".wh.f", b""),
        EvilTar::new().file(".wh.f", b"").file("f", b"new"),
    ] {
        let layer = fixture.layer(&archive.finish());
        assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "new");
    }
}

#[test]
fn i05_only_exact_whiteouts_are_taken() {
    let fixture = Fixture::new();
    for (name, word) in [
        (".wh.", "whiteout"),
        (".wh..", "whiteout"),
        (".wh...", "whiteout"),
        (".wh..wh.x", "whiteout"),
        (".wh.a/b", "whiteout"),
        ("d/.wh..", "whiteout"),
        (".wh./x", "whiteout"),
    ] {
        fixture.refused(&EvilTar::new().file(name, b"").finish(), word);
    }
    fixture.refused(&EvilTar::new().symlink(".wh.x", "/etc").finish(), "regular file");
    fixture.refused(&EvilTar::new().directory(".wh.x").finish(), "regular file");
    // aufs' bookkeeping in very old images is left out.
    let old = EvilTar::new().directory(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"").file("a", b"");
    let layer = fixture.layer(&old.finish());
    assert_eq!(fs::read_dir(layer).unwrap().count(), 1);
}

#[test]
fn i06_nodes_and_attributes() {
    let fixture = Fixture::new();
    for key in ["trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque"] {
        let archive = EvilTar::new()
            .pax(&[(&format!("SCHILY.xattr.{key}"), b"/../../etc")])
            .directory("d")
            .finish();
        fixture.refused(&archive, "overlayfs");
    }
    fixture.refused(&EvilTar::new().node(b'3', "w", 0, 0).finish(), "0:0");
    // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut setuid = Header::new(b'0', b"su");
    setuid.owner(0o4755, 12, 34).size(2);
    let archive = EvilTar::new()
        .node(b'3', "null", 1, 3)
        .node(b'4', "disk", 8, 0)
        .node(b'6', "pipe", 0, 0)
        .entry(&setuid, b"su")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"\0\n="),
            ("SCHILY.xattr.trusted.other", b"left out"),
            ("SCHILY.xattr.security.selinux", b"left out"),
        ])
        .file("ping", b"ping")
        .finish();
    let layer = fixture.layer(&archive);
    let stat = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!((stat("null").rdev(), stat("disk").rdev()), (0x103, 0x800));
    assert_eq!(stat("null").mode() & 0o7777, 0o644);
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!((stat("su").mode() & 0o7777, stat("su").uid(), stat("su").gid()), (0o4755, 12, 34));
    let get = |key: &str| {
        let mut value = [0; 64];
        let read = rustix::fs::getxattr(layer.join("ping"), key, &mut value[..]);
        read.map(|length| value[..length].to_vec())
    };
    assert_eq!(get("security.capability").unwrap(), capability);
    // tmpfs of older kernels has no user attributes.
    assert!(get("user.note").map_or(true, |value| value == b"\0\n="));
    assert!(get("trusted.other").is_err() && get("security.selinux").is_err());
}

#[test]
fn i07_headers_that_lie_are_errors() {
    let fixture = Fixture::new();
    let file = |edit: fn(&mut Header)| {
        let mut header = Header::new(b'0', b"f");
        edit(&mut header);
        EvilTar::new().entry(&header, b"").finish()
    };
    let mut negative = vec![0xff; 12];
    negative[11] = 0xfe;
    let mut huge = vec![0x80; 1];
    huge.extend([0x7f; 11]);
    let negative_size = {
        let mut header = Header::new(b'0', b"f");
        header.put(124, &negative);
        EvilTar::new().entry(&header, b"").finish()
    };
    let huge_size = {
        let mut header = Header::new(b'0', b"f");
        header.put(124, &huge);
        EvilTar::new().entry(&header, b"").finish()
    };
    let mut checksum = EvilTar::new().file("f", b"x").finish();
    checksum[0] ^= 1;
    let long = vec![b'n'; 1 << 20];
    let deep = "d/".repeat(5000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("negative size", negative_size),
        ("huge size", huge_size),
        (
            "size beyond the end",
            file(|h| {
                h.size(1 << 30);
            }),
        ),
        (
            "not a number",
            file(|h| {
                h.put(124, b"9999z");
            }),
        ),
        (
            "owner out of range",
            file(|h| {
                h.put(108, &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            }),
        ),
        ("wrong checksum", checksum),
        ("unknown type", EvilTar::new().entry(&Header::new(b'Z', b"f"), b"").finish()),
        ("sparse without data", sparse(&[(0, 512)], 4096, b"")),
        ("sparse beyond its size", sparse(&[(4096, 3)], 4096, b"abc")),
        ("sparse out of order", sparse(&[(8, 1), (0, 1)], 4096, b"ab")),
        ("sparse over itself", sparse(&[(0, 2), (1, 1)], 4096, b"abc")),
        ("sparse that overflows", sparse(&[((1 << 33) - 1, 1)], 1, b"a")),
        ("pax sparse without size", pax_sparse(&[("map", "0,1")], b"x")),
        ("pax sparse half a piece", pax_sparse(&[("size", "9"), ("map", "0")], b"x")),
        ("pax sparse too large", pax_sparse(&[("size", "9"), ("map", "0,1")], b"xy")),
        (
            "pax sparse overflow",
            pax_sparse(&[("size", "9"), ("map", "18446744073709551615,1")], b"x"),
        ),
        ("pax sparse endless map", pax_sparse(&[("major", "1"), ("realsize", "9")], &[b'1'; 512])),
        (
            "pax sparse many pieces",
            pax_sparse(&[("major", "1"), ("realsize", "9")], b"99999999999\n"),
        ),
        ("pax size", EvilTar::new().pax(&[("size", b"99999999999")]).file("f", b"x").finish()),
        ("pax size negative", EvilTar::new().pax(&[("size", b"-1")]).file("f", b"x").finish()),
        (
            "two pax",
            EvilTar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", b"").finish(),
        ),
        ("pax at the end", EvilTar::new().pax(&[("path", b"a")]).finish()),
        ("long name of 1 MiB", EvilTar::new().long(b'L', &long).file("f", b"").finish()),
        ("long name of 2 GiB", {
            let mut header = Header::new(b'L', b"l");
            header.size(2 << 30);
            EvilTar::new().entry(&header, b"").finish()
        }),
        (
            "name beyond PATH_MAX",
            EvilTar::new().long(b'L', deep.as_bytes()).directory("x").finish(),
        ),
        ("name with a zero", EvilTar::new().pax(&[("path", b"a\0b")]).file("f", b"").finish()),
        ("empty link", EvilTar::new().symlink("s", "").finish()),
        ("truncated header", EvilTar::new().file("f", b"").raw(&[1; 100]).truncated()),
        ("truncated data", {
            let whole = EvilTar::new().file("f", &[7; 4096]).truncated();
            whole[..1024].to_vec()
        }),
    ];
    for (name, archive) in cases {
        for bytes in [archive.clone(), gzip(&archive)] {
            let error = fixture.unpack(&bytes).map(|_| ()).expect_err(name);
            assert!(!error.to_string().is_empty());
            fixture.assert_clean();
        }
    }
}

#[test]
fn i07_files_and_directories_replace_each_other() {
    let fixture = Fixture::new();
    let layer = fixture.layer(
        &EvilTar::new()
            .file("x/y/z", b"deep")
            .file("x", b"now a file")
            .file("f", b"file")
            .directory("f")
            .file("f/inside", b"in")
            .file("twice", b"first and longer")
            .file("twice", b"second")
            .directory("d")
            .directory("d")
            .finish(),
    );
    assert_eq!(fs::read_to_string(layer.join("x")).unwrap(), "now a file");
    assert_eq!(fs::read_to_string(layer.join("f/inside")).unwrap(), "in");
    assert_eq!(fs::read_to_string(layer.join("twice")).unwrap(), "second");
}

#[test]
fn i07_garbage_never_panics() {
    let fixture = Fixture::new();
    let good = EvilTar::new()
        .directory("d")
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("d/f", &[1; 700])
        .long(b'L', &[b'l'; 200])
        .hard_link("h", "d/f")
        .finish();
    // Each byte of the headers, flipped in turn by a fixed pattern.
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] = bytes[at].wrapping_mul(31).wrapping_add(at as u8 | 1);
        let _ = fixture.unpack(&bytes);
        let _ = fixture.unpack(&good[..at]);
    }
    fixture.assert_clean();
}

#[test]
fn i08_bombs_are_refused_and_leave_nothing() {
    let fixture = Fixture::new();
    let limits = || Limits {
        entries: 100,
        bytes: 64 << 20,
        ratio: 50,
        free_bytes: 1 << 20,
        ..Limits::default()
    };
    let zeros = vec![0; 32 << 20];
    let archive = EvilTar::new().file("zeros", &zeros).finish();
    let bombs = [
        ("gzip", gzip(&archive)),
        ("gzip members", [gzip(&archive[..1 << 20]), gzip(&archive[1 << 20..])].concat()),
        ("zstd", zstd::encode_all(archive.as_slice(), 3).unwrap()),
    ];
    for (name, bomb) in bombs {
        let error = fixture.store.unpack(bomb.as_slice(), &limits()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("bomb"), "{name}: {error}");
        fixture.assert_clean();
    }
    // An absolute limit where nothing is compressed.
    let error = fixture
        .store
        .unpack(archive.as_slice(), &Limits { bytes: 1 << 20, ..limits() })
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    let many = (0..200).fold(EvilTar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish();
    let error = fixture.store.unpack(many.as_slice(), &limits()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("too many entries"), "{error}");
    // A frame header that asks for a window of 2 GiB: magic, no single segment, exponent 21.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    fixture.refused(&window, "decompress");
    for (magic, name) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY..", "bzip2")] {
        fixture.refused(magic, name);
    }
    fixture.assert_clean();
}

#[test]
fn every_compression_gives_the_same_layer() {
    let fixture = Fixture::new();
    let archive = EvilTar::new().directory("d").file("d/f", &[42; 100_000]).finish();
    let middle = archive.len() / 2;
    let members = [gzip(&archive[..middle]), gzip(&archive[middle..])].concat();
    for bytes in
        [archive.clone(), gzip(&archive), members, zstd::encode_all(archive.as_slice(), 1).unwrap()]
    {
        assert_eq!(fixture.unpack(&bytes).unwrap().diff_id(), digest(&archive));
    }
    // Bytes behind the end of the archive belong to the digest.
    let padded = [archive.clone(), vec![0; 10_240]].concat();
    assert_eq!(fixture.unpack(&gzip(&padded)).unwrap().diff_id(), digest(&padded));
    // A stream that breaks off is not the archive's fault.
    let broken = Broken(&gzip(&archive)[..200]);
    let error = fixture.store.unpack(broken, &Limits::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    fixture.assert_clean();
}

/// Fails where its bytes end.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        self.0.read(buffer)
    }
}
