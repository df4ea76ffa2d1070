//! The Wasm host: runs, serves and compiles WASI programs.

fn main() {}
