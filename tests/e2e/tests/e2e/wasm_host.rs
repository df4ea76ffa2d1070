//! What a stranger's Wasm image cannot do to its host, and what is said of it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    thread,
};

use knarr_harness::{ImageBuilder, World, evil_wasm::http_service};

use crate::world_of_both;

/// An image whose program is a component in text form.
fn service_image(world: &World, name: &str, handle: &str) {
    let code = wat::parse_str(http_service(handle)).expect("valid text");
    let image = ImageBuilder::new(&format!("{name}:latest"))
        .platform("wasi", "wasm")
        .file("/app.wasm", code, 0o755)
        .entrypoint(&["/app.wasm"]);
    world.load(&image.docker_archive());
}

/// The status of an answer of a container's, where it answers.
fn ask(address: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((address, 8080)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn w02_a_request_that_takes_all_memory_ends_no_container() {
    let world = world_of_both();
    // A mebibyte after the other, each page touched, until there is no more.
    let take_all = "(loop $more
        (local.set 2 (memory.grow (i32.const 16)))
        (if (i32.ne (local.get 2) (i32.const -1)) (then
            (local.set 2 (i32.mul (local.get 2) (i32.const 65536)))
            (loop $touch
                (i32.store8 (local.get 2) (i32.const 1))
                (local.set 2 (i32.add (local.get 2) (i32.const 4096)))
                (br_if $touch
                    (i32.lt_u (local.get 2) (i32.mul (memory.size) (i32.const 65536)))))
            (br $more))))
        (local.set 2 (call $begin (local.get 1)))
        (call $say (local.get 2) (i32.const 1024) (i32.const 16)) (call $end)";
    service_image(&world, "greedy", take_all);
    for limit in ["32m", "64m"] {
        world.knarr(&["run", "-d", "--name", "greedy", "-m", limit, "greedy"]).ok();
        let format = "{{.NetworkSettings.IPAddress}}";
        let address = world.knarr(&["inspect", "greedy", "--format", format]).ok();
        while TcpStream::connect((address.as_str(), 8080)).is_err() {
            thread::yield_now();
        }
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        let status = ask(&address);
                        assert!(matches!(status, Some(200 | 503)), "{limit}: {status:?}");
                    }
                });
            }
        });
        let format = "{{.State.Status}} {{.State.OOMKilled}} {{.RestartCount}}";
        let state = world.knarr(&["inspect", "greedy", "--format", format]).ok();
        assert_eq!(state, "running false 0", "{limit}");
        world.knarr(&["rm", "-f", "greedy"]).ok();
    }
}

#[test]
fn an_end_before_the_start_has_its_own_words() {
    let world = world_of_both();
    // The host program, started ahead, has nothing to listen on.
    for number in 0..20 {
        let run = world.knarr(&["run", "--rm", "--network", "none", "web"]);
        assert_eq!(
            run.stderr.trim_end(),
            "knarr-wasm: an HTTP component without a network cannot be reached",
            "{number}"
        );
        assert_eq!((run.code, run.stdout.as_str()), (125, ""), "{number}");
    }
    // Nothing of a native one comes before its start, whatever its network is.
    let file = world.path().join("file");
    std::fs::write(&file, "").unwrap();
    let bind = format!("{}:/bin", file.display());
    for network in ["none", "bridge"] {
        for number in 0..10 {
            let run = world.knarr(&["run", "--rm", "--network", network, "-v", &bind, "busybox"]);
            assert!(matches!(run.code, 125 | 126), "{network} {number}: {run:?}");
            assert!(run.stderr.contains("mount"), "{network} {number}: {}", run.stderr);
        }
    }
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok(), "");
}

/// The entries of the code cache.
fn entries(world: &World) -> Vec<PathBuf> {
    let cache = world.data_root().join("wasm");
    let hosts = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let files =
        hosts.filter(|path| path.is_dir()).flat_map(|host| std::fs::read_dir(host).unwrap());
    let mut all: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "cwasm"));
    all.sort();
    all
}

#[test]
fn w21_code_that_is_not_what_was_compiled_is_made_again() {
    let world = world_of_both();
    let hello = || world.knarr(&["run", "--rm", "-e", "NAME=boat", "hello"]).ok();
    let expected = hello();
    let codes = entries(&world);
    let [one, other] = &codes[..] else { panic!("{codes:?}") };
    let sizes = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    // Which of the two is hello's: the smaller one.
    let (mine, theirs) = if sizes(one) < sizes(other) { (one, other) } else { (other, one) };
    let good = std::fs::read(mine).unwrap();
    let open = || std::fs::File::options().write(true).open(mine).unwrap();
    let damages: [(&str, &dyn Fn()); 5] = [
        ("a flipped bit", &|| {
            let at = good.len() / 2;
            open().write_all_at(&[good[at] ^ 1], at as u64).unwrap();
        }),
        ("cut", &|| open().set_len(good.len() as u64 / 2).unwrap()),
        ("empty", &|| open().set_len(0).unwrap()),
        ("somebody else's", &|| {
            std::fs::copy(theirs, mine).unwrap();
        }),
        ("a link", &|| {
            std::fs::remove_file(mine).unwrap();
            std::os::unix::fs::symlink(theirs, mine).unwrap();
        }),
    ];
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        damage();
        assert_eq!(hello(), expected, "{what}");
        assert_eq!(std::fs::read(mine).unwrap(), good, "{what}");
        assert!(std::fs::symlink_metadata(mine).unwrap().is_file(), "{what}");
        let said = world.daemon_log().matches("made again").count();
        assert_eq!(said, number + 1, "{what}");
    }
    // Nothing is left of the images' code when the images go.
    world.knarr(&["image", "rm", "hello", "web"]).ok();
    assert!(entries(&world).is_empty());
}
