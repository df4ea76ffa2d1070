//! knarr: the command line.

fn main() {}
