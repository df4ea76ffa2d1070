//! The same verbs on Wasm containers.

use std::{
    net::{TcpListener, TcpStream},
    process::Stdio,
};

use knarr_harness::ImageBuilder;

use crate::{world, world_of_both};

#[test]
fn a_wasm_program_runs_like_any_other() {
    let world = world_of_both();
    let said = world.knarr(&["run", "--rm", "-e", "NAME=boat", "hello"]).ok();
    assert!(said.contains("hello"), "{said}");
    assert_eq!(world.knarr(&["run", "--rm", "hello", "exit", "7"]).code, 7);
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn image_inspect_shows_the_decision_and_its_reason() {
    let world = world_of_both();
    let field = |image: &str, field: &str| {
        world
            .knarr(&[
                "image",
                "inspect",
                image,
                "--format",
                &format!("{{{{json .Knarr.{field}}}}}"),
            ])
            .ok()
    };
    assert!(field("busybox", "Workload").contains("native"));
    assert!(field("hello", "Abi").contains("preview1-command"));
    assert!(field("web", "Abi").contains("http-proxy"));
    assert!(field("web", "Reason").contains("wasi:http/incoming-handler"));
}

#[test]
fn a_service_without_a_server_has_logs_stats_and_a_clean_stop() {
    let world = world_of_both();
    world.knarr(&["run", "-d", "--name", "web", "-m", "64m", "web"]).ok();
    let stats = world.knarr(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"]).ok();
    assert!(stats.starts_with("web ") && stats.contains("/ 64MiB"), "{stats}");
    let processes = world.knarr(&["top", "web"]).ok();
    assert!(processes.contains("knarr-wasm"), "{processes}");
    world.knarr(&["pause", "web"]).ok();
    world.knarr(&["unpause", "web"]).ok();
    world.knarr(&["stop", "web"]).ok();
    assert_eq!(world.knarr(&["inspect", "web", "--format", "{{.State.Status}}"]).ok(), "exited");
    world.knarr(&["start", "web"]).ok();
    world.knarr(&["rm", "-f", "web"]).ok();
}

#[test]
fn w01_a_tight_loop_stops_in_time() {
    let world = world();
    let spin = wat_image(&world, "spin", "(loop br 0)");
    world.knarr(&["run", "-d", "--name", "spin", &spin]).ok();
    world.knarr(&["stop", "-t", "5", "spin"]).ok();
    assert_eq!(world.knarr(&["inspect", "spin", "--format", "{{.State.ExitCode}}"]).ok(), "143");
}

#[test]
fn a_trap_is_an_exit_code_and_a_message() {
    let world = world();
    let trap = wat_image(&world, "trap", "unreachable");
    let run = world.knarr(&["run", "--rm", &trap]);
    assert_eq!(run.code, 134, "{}", run.stderr);
    assert!(run.stderr.contains("unreachable"), "{}", run.stderr);
}

#[test]
fn i19_what_conflicts_is_refused_with_both_readings() {
    let world = world();
    let lying = ImageBuilder::busybox()
        .unwrap()
        .named("liar:latest")
        .platform("wasi", "wasm")
        .docker_archive();
    let refused = world.knarr_with_input(&["load"], &lying);
    assert_ne!(refused.code, 0);
    let said = refused.stderr + &refused.stdout;
    assert!(said.contains("wasi/wasm") && said.contains("ELF"), "{said}");
}

#[test]
fn what_a_wasm_container_cannot_have_is_refused_with_a_reason() {
    let world = world_of_both();
    for flags in [&["--privileged"][..], &["--cap-add", "NET_ADMIN"], &["--device", "/dev/null"]] {
        let refused = world.knarr(&[&["run", "--rm"], flags, &["hello"]].concat());
        assert_eq!(refused.code, 125, "{flags:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("Wasm"), "{}", refused.stderr);
    }
}

/// An image whose program is a preview 1 command with this body.
fn wat_image(world: &knarr_harness::World, name: &str, body: &str) -> String {
    // A module so small that its bytes can be written by hand would hide what it
    // is; the text form is turned into bytes by the crate that wasmtime uses.
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
            (memory (export "memory") 1) (func (export "_start") {body}))"#
    );
    let code = wat::parse_str(text).expect("valid text");
    let image = ImageBuilder::new(&format!("{name}:latest"))
        .platform("wasi", "wasm")
        .file("/app.wasm", code, 0o755)
        .entrypoint(&["/app.wasm"]);
    world.load(&image.docker_archive());
    name.to_owned()
}

#[test]
fn a_single_file_is_written_where_it_was_granted() {
    let world = world_of_both();
    let [notes, fixed] = ["notes", "fixed"].map(|name| world.path().join(name));
    for file in [&notes, &fixed] {
        std::fs::write(file, "before\n").unwrap();
    }
    let writable = format!("{}:/etc/notes", notes.display());
    let read_only = format!("{}:/etc/fixed:ro", fixed.display());
    let run = |words: &[&str]| {
        let flags = ["run", "--rm", "-v", &writable, "-v", &read_only, "hello"];
        world.knarr(&[&flags[..], words].concat())
    };
    assert_eq!(run(&["cat", "/etc/notes", "/etc/fixed"]).ok(), "before\nbefore");
    run(&["write", "/etc/notes", "after"]).ok();
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "after\n");
    // Neither its neighbours nor what was mounted to be read.
    for path in ["/etc/fixed", "/etc/other", "/hello.wasm"] {
        assert_eq!(run(&["write", path, "x"]).code, 1, "{path}");
    }
    assert_eq!(std::fs::read_to_string(&fixed).unwrap(), "before\n");
}

#[test]
fn a_preview_1_program_is_told_its_working_directory() {
    let world = world_of_both();
    let told = world
        .knarr(&["run", "--rm", "-w", "/data/cargo", "-v", "hold:/data/cargo", "hello", "env"])
        .ok();
    assert!(told.lines().any(|line| line == "PWD=/data/cargo"), "{told}");
    let own = world
        .knarr(&["run", "--rm", "-w", "/data", "-v", "hold:/data", "-e", "PWD=/x", "hello", "env"])
        .ok();
    assert!(own.lines().any(|line| line == "PWD=/x"), "{own}");
    assert!(!world.knarr(&["run", "--rm", "hello", "env"]).ok().contains("PWD="));
}

/// The WASI context says no, and where it says yes the namespace is the container's own.
#[test]
fn n13_a_wasm_program_has_the_sockets_that_it_was_granted_and_no_others() {
    let world = world();
    let greeter = || ImageBuilder::wasm("greeter:latest", "greeter").unwrap();
    world.load(&greeter().docker_archive());
    world.load(&greeter().named("exposed:latest").expose("7000/tcp").docker_archive());
    let run = |words: &[&str]| world.knarr(&[&["run", "--rm"], words].concat());
    // The host's own service, on its loopback.
    let service = TcpListener::bind("127.0.0.1:7999").unwrap();
    service.set_nonblocking(true).unwrap();
    let unreached = || assert!(service.accept().is_err(), "somebody came");

    // Without a network: no sockets at all, with and without a port that is granted.
    for words in [
        &["--network", "none", "exposed"][..],
        &["--network", "none", "exposed", "127.0.0.1:7999", "boat"],
        // With a network: no listening where no port was granted, nor on another.
        &["greeter"],
        &["-e", "PORT=7001", "exposed"],
        &["-e", "PORT=7999", "-p", "7000:7000", "greeter"],
        // The loopback is the container's own.
        &["greeter", "127.0.0.1:7999", "boat"],
        &["-p", "7000:7000", "greeter", "127.0.0.1:7999", "boat"],
    ] {
        let denied = run(words);
        assert_eq!(denied.code, 1, "{words:?}: {} {}", denied.stdout, denied.stderr);
        assert!(!denied.stdout.contains("listening"), "{words:?}: {}", denied.stdout);
        unreached();
    }

    // A granted port is bound in the container's namespace and not in the host's.
    let mut listening = world.knarr_command(&["run", "--rm", "--name", "one", "exposed"]);
    let mut listening = listening.stdout(Stdio::piped()).spawn().unwrap();
    world.await_output(&mut listening, "listening on 7000");
    assert!(TcpStream::connect("127.0.0.1:7000").is_err(), "bound on the host");
    let hosts = TcpListener::bind("127.0.0.1:7000").unwrap();
    let address =
        world.knarr(&["inspect", "one", "--format", "{{.NetworkSettings.IPAddress}}"]).ok();
    let said = run(&["greeter", &format!("{address}:7000"), "boat"]).ok();
    assert_eq!(said, "hello boat");
    drop(hosts);
    world.knarr(&["rm", "-f", "one"]).ok();
    listening.wait().unwrap();
}

/// A library that says so when somebody loads it. Without a C library of its own, so that
/// it loads wherever it is found.
const PLANTED: &str = r#"
__attribute__((constructor)) static void mark(void) {
  long answer; __asm__ volatile("syscall" : "=a"(answer) : "a"(1L), "D"(2L), "S"("PLANTED\n"), "d"(8L) : "rcx", "r11", "memory");
}
"#;

/// Fault 2: volumes whose places are links out of the image's root, filled with what the C
/// library reads, and a guest that looks a name up.
#[test]
fn w27_an_image_loads_nothing_into_the_jail() {
    let world = world();
    let source = world.path().join("planted.c");
    let library = world.path().join("planted.so");
    std::fs::write(&source, PLANTED).unwrap();
    let made = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-nostdlib", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler (the linker's own)");
    assert!(made.success());
    let library = std::fs::read(library).unwrap();
    // To the root itself none may lead; that one is refused or ends like the others.
    for (number, links) in
        [&["/etc", "/lib", "/lib64", "/usr", "/dev"][..], &["/"]].iter().enumerate()
    {
        let name = format!("planted:{number}");
        let mut image = ImageBuilder::wasm(&name, "greeter")
            .unwrap()
            .file("/etc/nsswitch.conf", "hosts: planted\npasswd: planted\n", 0o644)
            .directory("/dev", 0o755);
        for place in ["/lib", "/lib64", "/usr/lib", "/lib/x86_64-linux-gnu"] {
            image = image.file(&format!("{place}/libnss_planted.so.2"), library.clone(), 0o755);
        }
        let mut volumes = serde_json::Map::new();
        for (number, link) in links.iter().enumerate() {
            image = image.symlink(&format!("/v{number}"), link);
            volumes.insert(format!("/v{number}"), serde_json::json!({}));
        }
        world.load(&image.config("Volumes", volumes.into()).docker_archive());
        let ran = world.knarr(&["run", "--rm", &name, "nobody.invalid:1", "x"]);
        assert_ne!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains("PLANTED"), "{}", ran.stderr);
        if number == 0 {
            assert!(ran.stderr.contains("nobody.invalid"), "it did not look: {}", ran.stderr);
        }
    }
}
