//! W21: an entry that is not what was compiled is not run.

use std::os::unix::fs::{FileExt as _, symlink};

use super::*;

struct Cache {
    _scratch: tempfile::TempDir,
    entry: Entry,
}

fn cache() -> Cache {
    let scratch = tempfile::TempDir::new().unwrap();
    let entry = Entry {
        cache: scratch.path().to_owned(),
        host: "aa".into(),
        module: Digest::from_bytes([7; 32]),
        boot: "boot".into(),
    };
    std::fs::create_dir(entry.directory()).unwrap();
    Cache { _scratch: scratch, entry }
}

impl Cache {
    /// Puts code as the compiler does.
    fn put(&self, code: &[u8]) -> Code {
        self.put_as(&self.entry, code)
    }

    fn put_as(&self, entry: &Entry, code: &[u8]) -> Code {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::open(entry.directory(), flags, mode).unwrap());
        (&file).write_all(code).unwrap();
        entry.put(file).unwrap()
    }

    /// Seals what is there as if it had been looked at long after its last change.
    fn settle(&self) {
        let mut file = open(&self.entry.path()).unwrap();
        let identity = identity_of(&file.metadata().unwrap());
        let digest = digest_of(&mut file).unwrap();
        let key = Key::read(&self.entry.cache).unwrap().unwrap();
        let seal = Seal::of(&key, &self.entry, digest, identity).0;
        // The same seal, an hour later.
        let text = seal.rsplit_once(' ').unwrap().0;
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words[9] = (now() + 3_600_000_000_000).to_string();
        let text = words.join(" ");
        let mac = hex(&key.mac(text.as_bytes()));
        Seal(format!("{text} {mac}\n")).write(&self.entry.seal_path(), false).unwrap();
    }

    fn sound(&self) -> Code {
        match self.entry.standing().unwrap() {
            Standing::Sound(code) => code,
            other => panic!("{other:?}"),
        }
    }

    fn doubt(&self, word: &str) {
        match self.entry.standing().unwrap() {
            Standing::Doubtful(why) => assert!(why.contains(word), "{why}"),
            other => panic!("{word}: {other:?}"),
        }
    }
}

#[test]
fn w21_what_was_compiled_is_believed() {
    let cache = cache();
    assert!(matches!(cache.entry.standing().unwrap(), Standing::Missing));
    let put = cache.put(b"code");
    assert_eq!(cache.sound(), put);
    assert!(matches!(cache.entry.glance().unwrap(), Standing::Unread), "too young");
    cache.settle();
    assert_eq!(cache.sound(), put);
    assert!(matches!(cache.entry.glance().unwrap(), Standing::Sound(_)), "and not read again");
    // After a boot, or as a copy from elsewhere, it is read once more and believed again.
    let booted = Entry { boot: "next".into(), ..cache.entry.clone() };
    assert!(matches!(booted.glance().unwrap(), Standing::Unread), "of another boot");
    assert!(matches!(booted.standing().unwrap(), Standing::Sound(_)));
    std::fs::copy(put.path.as_path(), put.path.with_extension("copy")).unwrap();
    std::fs::rename(put.path.with_extension("copy"), &put.path).unwrap();
    assert_ne!(cache.sound().identity, put.identity);
}

#[test]
fn w21_changed_bytes_are_seen_whatever_their_times_say() {
    let code = vec![b'c'; 300_000];
    for settled in [false, true] {
        let cache = cache();
        let put = cache.put(&code);
        if settled {
            cache.settle();
        }
        let before = std::fs::metadata(&put.path).unwrap();
        let file = File::options().write(true).open(&put.path).unwrap();
        // One bit in the middle; the time of the last content is put back.
        file.write_all_at(b"b", 200_000).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        cache.doubt("bytes have changed");
        // Put back as well, it is what it was.
        file.write_all_at(b"c", 200_000).unwrap();
        cache.sound();
    }
}

#[test]
fn w21_truncated_empty_and_foreign_files_are_in_doubt() {
    let cache = cache();
    let put = cache.put(b"some code");
    let damage = |change: &dyn Fn(&Path), word: &str| {
        cache.put(b"some code");
        cache.settle();
        change(&put.path);
        cache.doubt(word);
    };
    damage(&|path| File::options().write(true).open(path).unwrap().set_len(4).unwrap(), "size");
    damage(&|path| File::options().write(true).open(path).unwrap().set_len(0).unwrap(), "empty");
    damage(&|path| std::fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap(), "write");
    damage(
        &|path| {
            let elsewhere = path.with_extension("elsewhere");
            std::fs::rename(path, &elsewhere).unwrap();
            symlink(&elsewhere, path).unwrap();
        },
        "symbolic link",
    );
    std::fs::remove_file(&put.path).unwrap();
    damage(
        &|path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        },
        "regular file",
    );
    std::fs::remove_dir(&put.path).unwrap();
    damage(
        &|path| {
            std::fs::remove_file(path).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                Mode::RUSR | Mode::WUSR,
                0,
            )
            .unwrap();
        },
        "regular file",
    );
}

#[test]
fn w21_the_code_of_another_module_or_host_is_not_run() {
    let cache = cache();
    let mine = cache.put(b"mine");
    let other = Entry { module: Digest::from_bytes([8; 32]), ..cache.entry.clone() };
    let others = cache.put_as(&other, b"evil");
    // Its code alone, and with its seal.
    std::fs::copy(&others.path, &mine.path).unwrap();
    cache.doubt("bytes have changed");
    std::fs::copy(other.seal_path(), cache.entry.seal_path()).unwrap();
    cache.doubt("something else");
    // Of another version of the host.
    cache.put(b"mine");
    let newer = Entry { host: "bb".into(), ..cache.entry.clone() };
    std::fs::create_dir(newer.directory()).unwrap();
    std::fs::copy(cache.entry.path(), newer.path()).unwrap();
    std::fs::copy(cache.entry.seal_path(), newer.seal_path()).unwrap();
    std::fs::set_permissions(newer.path(), Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(newer.standing().unwrap(), Standing::Doubtful(why) if why.contains("else")));
}

#[test]
fn w21_a_seal_needs_the_key() {
    let cache = cache();
    cache.put(b"code");
    // Everything right but the MAC.
    let seal = std::fs::read_to_string(cache.entry.seal_path()).unwrap();
    let (text, _) = seal.trim_end().rsplit_once(' ').unwrap();
    let forged = Key([0; KEY]).mac(text.as_bytes());
    std::fs::write(cache.entry.seal_path(), format!("{text} {}\n", hex(&forged))).unwrap();
    cache.doubt("not ours");
    for damaged in ["", "x", " ", "knarr-seal-1 a b c\n", &"9".repeat(5000)] {
        std::fs::write(cache.entry.seal_path(), damaged).unwrap();
        cache.doubt("seal");
    }
    std::fs::write(cache.entry.seal_path(), [0xff; 100]).unwrap();
    cache.doubt("seal");
    std::fs::remove_file(cache.entry.seal_path()).unwrap();
    cache.doubt("no seal");
    // Without the key nothing is believed; with the next one, what is sealed with it.
    cache.put(b"code");
    std::fs::remove_file(Key::path(&cache.entry.cache)).unwrap();
    cache.doubt("key is lost");
    cache.put(b"code");
    cache.sound();
    std::fs::write(Key::path(&cache.entry.cache), "short").unwrap();
    cache.doubt("key is lost");
    cache.put(b"code");
    cache.sound();
    let open = Permissions::from_mode(0o644);
    std::fs::set_permissions(Key::path(&cache.entry.cache), open).unwrap();
    cache.doubt("key is lost");
}

#[test]
fn w21_writers_that_race_leave_one_whole_entry() {
    let cache = cache();
    std::thread::scope(|scope| {
        for number in 0..8u8 {
            let cache = &cache;
            scope.spawn(move || {
                for _ in 0..20 {
                    cache.put(&vec![number; 10_000]);
                }
            });
        }
    });
    // The last file and the last seal may be of two writers, who are kept apart by a lock
    // in life: then it is in doubt, and never somebody's half.
    match cache.entry.standing().unwrap() {
        Standing::Sound(code) => assert_eq!(std::fs::read(code.path).unwrap().len(), 10_000),
        Standing::Doubtful(_) => {}
        other => panic!("{other:?}"),
    }
    let left = std::fs::read_dir(cache.entry.directory()).unwrap().count();
    assert_eq!(left, 2, "nothing is left behind");
    assert_eq!(std::fs::read_dir(&cache.entry.cache).unwrap().count(), 2, "one key");
}

#[test]
fn the_mac_is_the_rfcs() {
    // RFC 4231, test case 2 has a key of four bytes; zeros after a key change nothing.
    let mut key = [0; KEY];
    key[..4].copy_from_slice(b"Jefe");
    let mac = hex(&Key(key).mac(b"what do ya want for nothing?"));
    assert_eq!(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}
