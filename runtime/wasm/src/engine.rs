//! One configuration of wasmtime for compiling and for running.
//!
//! Code is only loaded where it was compiled with the same settings: the hash
//! of both configurations, which also covers wasmtime's version and the
//! processor's features, is the host's half of the compile cache's key.

use std::{
    hash::{Hash as _, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Result,
};

use crate::{
    budget::{Division, HOST_STACK},
    inherited::MappedCode,
};

/// Raised when something that the cache's key cannot see changes.
const FORMAT: &[u8] = b"knarr-wasm 1\n";

/// The two kinds of WebAssembly binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A core module. It is alone in its process, which a signal ends whatever
    /// it does: its code carries no epoch checks (they cost 7 to 17 %).
    Module,
    /// A component. Instances share a process when they serve requests: loops
    /// check an epoch, so that they take turns and end in time.
    Component,
}

impl Kind {
    /// Reads the eight bytes that every WebAssembly binary begins with.
    pub(crate) fn of(binary: &[u8]) -> Result<Self> {
        match binary {
            [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Self::Module),
            [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(Self::Component),
            [0x7f, b'E', b'L', b'F', ..] => wasmtime::bail!(
                "this is native code (ELF), not a WebAssembly binary: code compiled ahead \
                 elsewhere is never loaded"
            ),
            [0, b'a', b's', b'm', version @ ..] => wasmtime::bail!(
                "unknown version of the WebAssembly binary format: {:02x?}",
                &version[..version.len().min(4)]
            ),
            _ => wasmtime::bail!("this is not a WebAssembly binary: it does not begin with \\0asm"),
        }
    }
}

/// What compiled code depends on.
fn config(kind: Kind) -> Config {
    let mut config = Config::new();
    // Denied: what a WASI 0.2 program cannot use here, or what is not a first-tier
    // feature of wasmtime (CATALOGUE W20); threads, gc and exceptions are not even
    // built in. Validation names what a module asked for.
    config
        .wasm_memory64(false)
        .wasm_stack_switching(false)
        .wasm_custom_page_sizes(false)
        .wasm_shared_everything_threads(false);
    config
        .epoch_interruption(kind == Kind::Component)
        .cranelift_opt_level(OptLevel::Speed)
        // Backtraces name functions; byte offsets would double the tables.
        .generate_address_map(false)
        .native_unwind_info(false);
    config
}

/// The engine of `compile`.
pub(crate) fn compiling(kind: Kind) -> Result<Engine> {
    Engine::new(&config(kind))
}

/// The engine of `run` and `serve`, with the sizes that the container's memory allows.
///
/// `instances` is how many there are at once: where it is many, their memories
/// come from a pool of slots, if the address space has room for one.
pub(crate) fn running(kind: Kind, division: &Division, instances: Option<u32>) -> Result<Engine> {
    let mut config = config(kind);
    let stack = usize::try_from(division.stack)?;
    config.max_wasm_stack(stack).async_stack_size(stack + usize::try_from(HOST_STACK)?);
    if kind == Kind::Component {
        config.with_custom_code_memory(Some(Arc::new(MappedCode)));
    }
    if let Some(count) = instances {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(count)
            .total_core_instances(count.saturating_mul(16))
            .total_memories(count.saturating_mul(2))
            .total_tables(count.saturating_mul(8))
            .total_stacks(count.saturating_mul(2))
            .table_elements(100_000)
            .max_component_instance_size(4 << 20)
            .max_core_instance_size(4 << 20)
            // What an instance wrote is wiped; this much of it without unmapping.
            .linear_memory_keep_resident(division.resident)
            .table_keep_resident(division.resident / 4)
            .async_stack_keep_resident(division.resident / 2);
        // A stack that one deep guest has used is not the host's to keep.
        config
            .async_stack_zeroing(true)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    Engine::new(&config)
}

/// The host's half of the compile cache's key, in hexadecimal.
pub(crate) fn fingerprint() -> Result<String> {
    let mut hasher = Sha(Sha256::new());
    hasher.write(FORMAT);
    for kind in [Kind::Module, Kind::Component] {
        compiling(kind)?.precompile_compatibility_hash().hash(&mut hasher);
    }
    Ok(hasher.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// SHA-256 as a [`Hasher`]: the key names files for years, so it must neither
/// collide nor change with the standard library.
struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let bytes: [u8; 32] = self.0.clone().finalize().into();
        bytes.iter().take(8).fold(0, |all, byte| (all << 8) | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i20_native_code_is_refused_by_its_first_bytes() {
        let refused = Kind::of(b"\x7fELF\x02\x01\x01").unwrap_err().to_string();
        assert!(refused.contains("ELF"), "{refused}");
    }

    #[test]
    fn w22_kinds_are_told_apart_by_eight_bytes() {
        assert_eq!(Kind::of(b"\0asm\x01\0\0\0").unwrap(), Kind::Module);
        assert_eq!(Kind::of(b"\0asm\x0d\0\x01\0").unwrap(), Kind::Component);
        for bad in [&b""[..], b"\0as", b"\0asm", b"\0asm\x02\0\0\0", b"(module)", b"#!/bin/sh"] {
            assert!(Kind::of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_fingerprint_is_stable() {
        let one = fingerprint().unwrap();
        assert_eq!(one.len(), 64);
        assert_eq!(one, fingerprint().unwrap());
    }
}
