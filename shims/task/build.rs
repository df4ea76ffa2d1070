//! Code for the messages of `proto/`, made without `protoc`.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/containerd.proto")
        .input("proto/cri.proto")
        .cargo_out_dir("proto")
        .run_from_script();
}
