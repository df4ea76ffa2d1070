//! Wasm bundles: crun's annotations and the entrypoint's bytes.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{Bundle, Done};

/// A guest of the examples.
pub fn prebuilt(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-examples/prebuilt").join(name)
}

/// A bundle whose program is one of the examples.
fn example(name: &str) -> Bundle {
    let mut bundle = Bundle::new(&["/program.wasm", "one", "two"]);
    fs::copy(prebuilt(name), bundle.rootfs("program.wasm")).expect("copy");
    bundle.config["root"]["readonly"] = json!(true);
    bundle
}

fn run(bundle: &Bundle) -> Done {
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    command.env("KNARR_DATA_ROOT", bundle.path("cache")).output().expect("knarr-oci").into()
}

#[test]
fn programs_are_run_for_their_first_bytes() {
    for name in ["hello.wasm", "hello-component.wasm"] {
        let bundle = example(name);
        let done = run(&bundle);
        assert!(done.code == 0 && !done.out.is_empty(), "{name}: {done:?}");
        // The second time there is code already; and hooks are for Wasm too.
        let mut bundle = bundle;
        bundle.config["hooks"] = json!({ "prestart": [{ "path": "/bin/true" }] });
        let again = run(&bundle);
        assert_eq!(again.out, done.out, "{again:?}");
    }
}

#[test]
fn handlers_name_what_must_be_wasm_and_bytes_win() {
    for (key, value) in [("run.oci.handler", "wasm"), ("module.wasm.image/variant", "compat")] {
        let mut native = Bundle::new(&["/bin/true"]);
        native.config["annotations"] = json!({ key: value });
        run(&native).failed(1, "but the entry /bin/true is an ELF executable");
        native.config["annotations"] = json!({ key: format!("{value}-smart") });
        assert_eq!(run(&native).code, 0);
    }
    let mut bundle = example("hello.wasm");
    bundle.config["annotations"] = json!({ "run.oci.handler": "wasm" });
    assert_eq!(run(&bundle).code, 0);
    // What the engine grants by cannot be brought along: it is not read.
    bundle.config["annotations"] = json!({ "dev.knarr.wasm": "{}" });
    assert_eq!(run(&bundle).code, 0);
    fs::write(bundle.rootfs("program.wasm"), b"\0asm\x01\0\0\0broken").expect("program");
    bundle.config["annotations"] = json!({});
    run(&bundle).failed(1, "/program.wasm");
}

#[test]
fn a_server_lives_the_life_of_a_container() {
    let bundle = example("web.wasm");
    bundle.write();
    let mut command = bundle.command(&["create", &bundle.id]);
    let null = std::process::Stdio::null;
    command.env("KNARR_DATA_ROOT", bundle.path("cache")).stdout(null()).stderr(null());
    assert!(command.status().expect("create").success());
    bundle.verb(&["start"]).fine();
    assert_eq!(bundle.status(), "running");
    bundle.knarr(&["exec", &bundle.id, "sh"]).failed(255, "a wasm container has no other programs");
    bundle.verb(&["pause"]).fine();
    bundle.verb(&["resume"]).fine();
    bundle.knarr(&["kill", &bundle.id, "TERM"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
    bundle.verb(&["delete"]).fine();
}
