//! knarrd: configuration, sockets, signals; wires the API to the engine.

fn main() {}
