//! What strangers hold open must not keep the engine from its work.

use std::{fs, os::fd::AsRawFd as _, process::Stdio};

use knarr_harness::{
    ImageBuilder, Inventory, World,
    lying_registry::{LyingRegistry, Reply, ReplyBody, serve_image},
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, connect, socket},
    },
};

use crate::{raw, world};

/// Descriptors that the daemon has open.
fn descriptors(world: &World) -> usize {
    let pid = world.daemon_pid().expect("a daemon");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of ours").count()
}

/// The hard limit, too: what cannot be raised has to be shared well.
#[test]
fn n11_idle_connections_to_a_published_port_leave_descriptors_for_a_start() {
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).unwrap();
    let world = world();
    world.knarr(&["network", "create", "harbour"]).ok();
    world.knarr(&["run", "-d", "-p", "8080:8000", "busybox", "httpd", "-f", "-p", "8000"]).ok();
    let before = descriptors(&world);
    // Some are connected, others wait half open: none says a word.
    let to = SockaddrIn6::from("[::1]:8080".parse::<std::net::SocketAddrV6>().unwrap());
    let idle: Vec<_> = (0..800)
        .map(|_| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let client = socket(AddressFamily::Inet6, SockType::Stream, flags, None).unwrap();
            let outcome = connect(client.as_raw_fd(), &to);
            assert!(matches!(outcome, Ok(()) | Err(Errno::EINPROGRESS)), "{outcome:?}");
            client
        })
        .collect();
    // Two for each of the port's 64 places; some of those before are closed by now.
    while descriptors(&world) < before + 100 {
        std::thread::yield_now();
    }
    for network in ["bridge", "harbour"] {
        for _ in 0..5 {
            let run = ["run", "--rm", "--network", network, "busybox", "echo", "started"];
            assert_eq!(world.knarr(&run).ok(), "started");
        }
    }
    let most = 1024 / 2;
    assert!(descriptors(&world) < before + most, "{} were {before}", descriptors(&world));
    drop(idle);
}

/// Others have all descriptors but a few, and one more of them is free each time: so a
/// start fails at each of its steps that needs one.
#[test]
fn k07_a_start_without_descriptors_fails_and_the_next_one_does_not() {
    let world = world();
    let daemon = world.daemon_pid().expect("a daemon").to_string();
    let files = |soft: usize| {
        world.host_run("prlimit", &["--pid", &daemon, &format!("--nofile={soft}:")]).ok();
    };
    // What the first container makes stays for the next.
    world.knarr(&["run", "--rm", "busybox", "true"]).ok();
    let before = Inventory::settled(&world.exec_root(), &[]);
    let id = world.knarr(&["create", "--name", "one", "busybox", "sleep", "1000"]).ok();
    // The engine can take no other.
    let mut client = raw::Connection::open(&raw::socket(&world));
    assert_eq!(client.ask("GET", "/_ping", "").0, 200);
    let open = descriptors(&world);
    // Three are open for certain, and then there is none.
    let mut failed = 0;
    for limit in std::iter::once(3).chain(open..open + 200) {
        files(limit);
        let (status, said) = client.ask("POST", "/containers/one/start", "");
        if status == 204 {
            break;
        }
        failed += 1;
        assert_eq!(status, 500, "{limit}: {said}");
        assert!(said.to_lowercase().contains("too many open files"), "{limit}: {said}");
        let (status, said) = client.ask("GET", "/containers/one/json", "");
        assert_eq!(status, 200, "{limit}: {said}");
        let seen: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(seen["State"]["Status"], "created", "{limit}");
        assert_eq!(seen["State"]["Pid"], 0, "{limit}");
    }
    assert!(failed > 0);
    files(1024);
    assert_eq!(world.knarr(&["exec", "one", "echo", "fine"]).ok(), "fine");
    world.knarr(&["run", "--rm", "busybox", "echo", "next"]).ok();
    world.knarr(&["rm", "-f", "one"]).ok();
    assert_eq!(Inventory::settled(&world.exec_root(), &[id]), before);
}

/// The engine takes what the hard limit allows; containers get what they would
/// have had without an engine.
#[test]
fn x03_many_starts_at_once_need_more_descriptors_than_a_shell_gives() {
    setrlimit(Resource::RLIMIT_NOFILE, 128, 4000).unwrap();
    let world = world();
    let pid = world.daemon_pid().unwrap();
    let daemon = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = daemon.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["4000", "4000"]);
    let limits = ["run", "--rm", "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn"];
    assert_eq!(world.knarr(&limits).ok(), "128\n4000");
    let own = ["run", "--rm", "--ulimit", "nofile=64:99", "busybox", "sh", "-c", "ulimit -Sn"];
    assert_eq!(world.knarr(&own).ok(), "64");
    let runs: Vec<_> = (0..40)
        .map(|n| {
            let mut run = world.knarr_command(&["run", "--rm", "busybox", "echo", &n.to_string()]);
            run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        let output = run.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\n"), "{error}");
    }
}

/// Each layer of a pull keeps a thread until the registry has sent it. Fourteen
/// pulls of three layers are more than the threads that starts have.
#[test]
fn i16_pulls_that_hang_hold_up_no_start() {
    const PULLS: usize = 14;
    let world = world();
    let images: Vec<_> = (0..PULLS)
        .map(|n| {
            let mut image = ImageBuilder::new("x:1");
            for layer in 0..3 {
                let content = format!("{n} {layer} {}", "never whole ".repeat(1000));
                image = image.file(&format!("/{layer}"), content, 0o644).next_layer();
            }
            image.cmd(&["true"]).for_registry()
        })
        .collect();
    let server = LyingRegistry::in_background(move |request, _| {
        let number = request.path.split('/').nth(3).and_then(|name| name.parse::<usize>().ok());
        let Some(image) = number.and_then(|number| images.get(number)) else {
            return Reply::status(200);
        };
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        match image.blobs.get(digest) {
            // The configuration comes, layers do not.
            Some(blob) if !blob.starts_with(b"{") => {
                Reply::new(200, ReplyBody::Stall(blob[..20].to_vec(), blob.len() as u64))
            }
            _ => serve_image(request, image),
        }
    })
    .unwrap();
    let mut pulls: Vec<_> = (0..PULLS)
        .map(|n| {
            let name = format!("{}/ship/{n}:1", server.host());
            let mut pull = world.knarr_command(&["pull", &name]);
            pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let hanging = || {
        let requests = server.requests();
        requests.iter().filter(|request| request.path.contains("/blobs/")).count()
    };
    // Three layers and a configuration each.
    while hanging() < 4 * PULLS {
        for pull in &mut pulls {
            assert!(pull.try_wait().unwrap().is_none(), "a pull ended early");
        }
        std::thread::yield_now();
    }
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "started"]).ok(), "started");
    world.knarr(&["run", "-d", "--name", "one", "-v", "/new", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["exec", "one", "true"]).ok();
    world.knarr(&["rm", "-f", "-v", "one"]).ok();
    for pull in &mut pulls {
        assert!(pull.try_wait().unwrap().is_none(), "the pulls still hang");
        pull.kill().unwrap();
        pull.wait().unwrap();
    }
}
