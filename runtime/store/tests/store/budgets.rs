//! What an archive may cost in memory, time and inodes: I07, I08.

use std::{fs, io::Read};

use knarr_store::Limits;

use crate::{Fixture, evil_tar::EvilTar, gzip};

/// A directory with a name of any length.
fn long_directory(tar: EvilTar, name: &str) -> EvilTar {
    tar.long(b'L', name.as_bytes()).directory("x")
}

#[test]
fn i07_an_entry_whose_links_cost_more_than_its_worth_is_refused() {
    let fixture = Fixture::new();
    // Links at the bottom of a deep tree, each from the root through all of it to
    // the next: an entry of one block looks at 70,000 names.
    let down = "d/".repeat(1900);
    let link = |tar: EvilTar, name: &str, target: &str| {
        tar.long(b'L', name.as_bytes()).long(b'K', target.as_bytes()).symlink("x", "y")
    };
    let mut archive = long_directory(EvilTar::new(), &down);
    archive = link(archive, "a0", &format!("/{down}a1"));
    for number in 1..38 {
        let next = format!("/{down}a{}", number + 1);
        archive = link(archive, &format!("{down}a{number}"), &next);
    }
    archive = link(archive, &format!("{down}a38"), "/");
    let archive = |files: usize| {
        let files = 0..files;
        files.fold(archive.clone(), |tar, n| tar.file(&format!("a0/f{n}"), b"")).finish()
    };
    // Once it may cost what it wants.
    assert!(fixture.layer(&archive(1)).join("f0").is_file());
    fixture.refused(&archive(100), "take too long to resolve");
}

#[test]
fn i07_a_link_to_itself_costs_a_deep_tree_nothing() {
    let fixture = Fixture::new();
    // Name by name, 1,800,000 looks: far more than such a layer's links may cost.
    let mut archive = EvilTar::new().symlink("l", ".");
    for level in 1..=1900 {
        archive = long_directory(archive, &format!("l/{}", "d/".repeat(level)));
    }
    let layer = fixture.layer(&archive.finish());
    assert_eq!(knarr_tree::usage(&layer).unwrap().inodes, 1901);
}

#[test]
fn i08_directories_that_are_only_implied_count_as_entries() {
    let fixture = Fixture::new();
    let limits = || Limits { entries: 100, ..Limits::default() };
    let deep = |levels| {
        let name = format!("{}f", "d/".repeat(levels));
        EvilTar::new().long(b'L', name.as_bytes()).file("x", b"").finish()
    };
    fixture.store.unpack(deep(99).as_slice(), &limits()).unwrap();
    let error = fixture.store.unpack(deep(101).as_slice(), &limits());
    let error = error.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("too many directories"), "{error}");
    fixture.assert_clean();
}

#[test]
fn i08_a_bomb_is_not_cut_into_layers() {
    let fixture = Fixture::new();
    let limits = Limits { ratio: 2, free_bytes: 4 << 20, ..Limits::default() };
    let layer = |name: &str| gzip(&EvilTar::new().file(name, &vec![0; 3 << 20]).finish());
    let first = fixture.store.unpack(layer("a").as_slice(), &limits).unwrap();
    // Those that share the limits share what is beyond the ratio, and the entries.
    let error =
        fixture.store.unpack(layer("b").as_slice(), &limits.clone()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("bomb"), "{error}");
    drop(first);
    fixture.assert_clean();
    let limits = Limits { entries: 10, ..Limits::default() };
    let many = |from: usize| {
        let files = from..from + 7;
        files.fold(EvilTar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish()
    };
    let first = fixture.store.unpack(many(0).as_slice(), &limits).unwrap();
    let error = fixture.store.unpack(many(7).as_slice(), &limits).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("too many entries"), "{error}");
    drop(first);
    fixture.assert_clean();
}

/// So often the same bytes, then two empty blocks.
struct Repeated {
    unit: Vec<u8>,
    left: usize,
    at: usize,
}

impl Read for Repeated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.unit.len() {
            match self.left {
                0 => return Ok(0),
                1 => self.unit = vec![0; 1024],
                _ => {}
            }
            (self.left, self.at) = (self.left - 1, 0);
        }
        let read = buffer.len().min(self.unit.len() - self.at);
        buffer[..read].copy_from_slice(&self.unit[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}

#[test]
fn i07_one_entry_95_000_times_takes_no_memory() {
    const TEST: &str = "budgets::i07_one_entry_95_000_times_takes_no_memory";
    // The peak of a process of its own; other tests have theirs.
    if std::env::var_os("KNARR_TEST_PEAK").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
            .env("KNARR_TEST_PEAK", "1")
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && words.contains("1 passed"), "{words}");
        return;
    }
    let fixture = Fixture::new();
    let name = format!("{}/", "n".repeat(255)).repeat(15);
    let unit = long_directory(EvilTar::new(), &name).truncated();
    let repeated = Repeated { at: 0, unit, left: 95_000 };
    let unpacked = fixture.store.unpack(repeated, &Limits::default()).unwrap();
    assert_eq!(unpacked.info().entries, 95_000);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 * 1024, "{peak} KiB resident");
}
