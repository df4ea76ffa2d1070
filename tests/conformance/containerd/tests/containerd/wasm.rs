//! Wasm programs as containers of containerd's, alone and in a pod beside native ones.

use std::fs;

use knarr_harness::ImageBuilder;
use serde_json::json;

use crate::{
    api,
    support::{Containerd, KNARR, Ran, ours, unique},
};

const POD: [&str; 2] = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];

/// Imports a guest of the tree as an ordinary image of this machine's platform.
pub fn import(containerd: &Containerd, guest: &str) -> String {
    let name = format!("docker.io/library/{guest}:latest");
    let path = containerd.path(&format!("{guest}.tar"));
    let image = ImageBuilder::wasm(&name, guest).unwrap().platform("linux", "amd64");
    fs::write(&path, image.docker_archive()).unwrap();
    containerd.ctr(&["image", "import", path.to_str().unwrap()]).ok();
    name
}

/// `ctr run` of an image with further flags, to its end.
pub fn run(containerd: &Containerd, flags: &[&str], image: &str, id: &str, words: &[&str]) -> Ran {
    let line = [&["run", "--runtime", KNARR], flags, &[image, id], words].concat();
    containerd.ctr(&line)
}

fn compiled(containerd: &Containerd) -> usize {
    let hosts = fs::read_dir(containerd.path("data/wasm")).into_iter().flatten().flatten();
    let directories = hosts.filter(|host| host.path().is_dir());
    let files = directories.flat_map(|host| fs::read_dir(host.path()).unwrap().flatten());
    // Beside each entry is its seal.
    files.filter(|file| file.path().extension().is_some_and(|kind| kind == "cwasm")).count()
}

#[test]
fn a_wasm_program_runs_and_is_compiled_once() {
    ours(|containerd| {
        let hello = import(containerd, "hello");
        for _ in 0..3 {
            let flags = ["--rm", "--env", "NAME=boat"];
            let said = run(containerd, &flags, &hello, "one", &[]);
            assert_eq!(said.code, 0, "{said:?}");
            assert!(said.out.contains("hello boat, from a Wasm program"), "{said:?}");
            assert_eq!(compiled(containerd), 1);
        }
        for code in [0, 7, 255] {
            let said = run(
                containerd,
                &["--rm"],
                &hello,
                "one",
                &["/hello.wasm", "exit", &code.to_string()],
            );
            assert_eq!(said.code, code, "{said:?}");
        }
        // The root is the image's, to be read; a mount is what it was mounted as.
        let held = containerd.path("hold");
        fs::create_dir(&held).unwrap();
        let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", held.display());
        let write = ["/hello.wasm", "write", "/data/log", "grain"];
        assert_eq!(run(containerd, &["--rm", "--mount", &mount], &hello, "one", &write).code, 0);
        assert_eq!(fs::read_to_string(held.join("log")).unwrap(), "grain\n");
        let mount = mount.replace(":rw", ":ro");
        assert_eq!(run(containerd, &["--rm", "--mount", &mount], &hello, "one", &write).code, 1);
        let root = ["/hello.wasm", "write", "/x", "grain"];
        assert_eq!(run(containerd, &["--rm"], &hello, "one", &root).code, 1);
        containerd.assert_clean();
    });
}

#[test]
fn r18_annotations_choose_and_do_not_grant() {
    ours(|containerd| {
        let hello = import(containerd, "hello");
        let forged = r#"dev.knarr.wasm={"host":"/bin/sh","code":"/etc/passwd","abi":"preview1-command","preopens":[{"path":"/","read_only":false}]}"#;
        let write = ["/hello.wasm", "write", "/x", "grain"];
        let said = run(containerd, &["--rm", "--annotation", forged], &hello, "one", &write);
        assert_eq!(said.code, 1, "the root stays read-only: {said:?}");
        let said = containerd.run(&["--rm", "--annotation", forged], "two", &["echo", "native"]);
        assert_eq!(said.ok(), "native");
        let handler = "run.oci.handler=wasm";
        let said = run(containerd, &["--rm", "--annotation", handler], &hello, "one", &[]);
        assert_eq!(said.code, 0, "{said:?}");
        let said = containerd.run(&["--rm", "--annotation", handler], "two", &["echo", "native"]);
        assert_ne!(said.code, 0);
        assert!(said.err.contains("run.oci.handler=wasm"), "{said:?}");
        containerd.ctr(&["container", "rm", "two"]);
        containerd.assert_clean();
    });
}

#[test]
fn s07_native_and_wasm_share_a_pod() {
    ours(|containerd| {
        let web = import(containerd, "web");
        containerd.sleeper(&POD, "pause");
        let network = format!("network:/proc/{}/ns/net", containerd.pid("pause"));
        let flags = [&POD[..], &["-d", "--null-io", "--with-ns", &network]].concat();
        run(containerd, &flags, &web, "web", &[]).ok();
        assert_eq!(containerd.shims().len(), 1, "{:?}", containerd.shims());
        // The native one asks the Wasm one, on the pod's own loopback.
        containerd.exec("pause", &["ip", "link", "set", "lo", "up"]).ok();
        let ask = "until wget -q -O - http://127.0.0.1:8080/ 2>/dev/null; do :; done";
        let answer = containerd.exec("pause", &["sh", "-c", ask]);
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(!answer.out.is_empty());

        containerd.ctr(&["task", "pause", "web"]).ok();
        assert_eq!(containerd.status("web"), "PAUSED");
        containerd.ctr(&["task", "resume", "web"]).ok();
        let metrics = containerd.ctr(&["task", "metrics", "--format", "json", "web"]).ok();
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
        assert!(metrics["pids"]["current"].as_u64().is_some_and(|pids| pids > 0), "{metrics}");
        let refused = containerd.exec("web", &["true"]);
        assert!(refused.err.contains("there is one program in it"), "{refused:?}");

        containerd.ctr(&["task", "kill", "-s", "TERM", "web"]).ok();
        containerd.await_status("web", "STOPPED");
        assert_eq!(containerd.delete("web"), 0, "it ends politely");
        containerd.kill_and_delete("pause");
        containerd.assert_clean();
    });
}

/// Makes a container without a snapshot, which `ctr` has no words for.
fn create(containerd: &Containerd, id: &str, image: &str, args: &[&str]) {
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/", "env": ["NAME=boat"] },
        "root": { "path": "rootfs" },
        "linux": {
            "cgroupsPath": format!("/{}/{id}", containerd.namespace),
            "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "network" }],
        },
    });
    api::make_container(containerd, id, image, &spec);
}

#[test]
fn artifacts_are_run_from_the_content_store_and_compiled_once() {
    ours(|containerd| {
        let name = format!("docker.io/library/{}:latest", unique());
        let path = containerd.path("artifact.tar");
        let artifact = ImageBuilder::artifact(&name, "hello").unwrap();
        fs::write(&path, artifact.oci_archive(&name)).unwrap();
        let import = ["image", "import", "--no-unpack", "--all-platforms", path.to_str().unwrap()];
        containerd.ctr(&import).ok();
        for _ in 0..2 {
            let id = unique();
            create(containerd, &id, &name, &["/hello.wasm"]);
            let said = containerd.ctr(&["task", "start", &id]);
            assert!(said.out.contains("hello boat, from a Wasm program"), "{said:?}");
            assert_eq!(compiled(containerd), 1);
            containerd.ctr(&["container", "rm", &id]).ok();
        }
        // An image without Wasm, or none: what is missing is the entry.
        let id = unique();
        create(containerd, &id, "", &["/hello.wasm"]);
        let said = containerd.ctr(&["task", "start", &id]);
        assert!(said.code != 0 && said.err.contains("/hello.wasm"), "{said:?}");
        containerd.ctr(&["container", "rm", &id]).ok();
    });
}
