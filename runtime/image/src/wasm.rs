//! What a WebAssembly program is, by its bytes.
//!
//! Only the first bytes and the outermost import and export sections are read;
//! nothing is executed and nothing compiled here.
//!
//! **How it fails.** A program that Knarr does not run is refused with the
//! imports or exports that say so.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use knarr_model::{Digest, WasmAbi};
use sha2::{Digest as _, Sha256};
use wasmparser::{ExternalKind, Parser, Payload};

use crate::{Error, Result};

/// Larger programs are refused; the largest known are below 100 MB.
const PROGRAM_MAX: u64 = 512 << 20;
/// How many imports and exports are kept for people to read.
const NAMES_MAX: usize = 1000;

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Magic {
    Module,
    Component,
    /// `\0asm` of a version that is neither.
    UnknownWasm,
    Elf,
    /// Code compiled ahead by wasmtime: never taken from an image.
    Precompiled,
    Script,
    Other,
}

/// Looks at a file's first bytes, and at the sections of an ELF file.
pub(crate) fn magic(file: &File) -> std::io::Result<Magic> {
    let mut start = [0u8; 64];
    let mut have = 0;
    while have < start.len() {
        match file.read_at(&mut start[have..], have as u64)? {
            0 => break,
            read => have += read,
        }
    }
    Ok(match &start[..have] {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Magic::Module,
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Magic::Component,
        [0, b'a', b's', b'm', ..] => Magic::UnknownWasm,
        [0x7f, b'E', b'L', b'F', ..] => {
            if precompiled(file, &start)? {
                Magic::Precompiled
            } else {
                Magic::Elf
            }
        }
        [b'#', b'!', ..] => Magic::Script,
        _ => Magic::Other,
    })
}

/// Whether an ELF file holds wasmtime's compiled code: its own OS ABI number in
/// the header, or one of its section names.
fn precompiled(file: &File, header: &[u8; 64]) -> std::io::Result<bool> {
    const WASMTIME_ABI: u8 = 200;
    if header[7] == WASMTIME_ABI {
        return Ok(true);
    }
    // 64-bit little-endian is what wasmtime writes.
    if header[4] != 2 || header[5] != 1 {
        return Ok(false);
    }
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let mut word = [0; 8];
    word.copy_from_slice(&header[40..48]);
    let (table, size, names) = (u64::from_le_bytes(word), u16_at(58), u16_at(62));
    let mut section = [0u8; 64];
    let at = table.checked_add(size * names);
    if size < 64 || at.is_none_or(|at| file.read_exact_at(&mut section, at).is_err()) {
        return Ok(false);
    }
    let mut number = |at: usize| {
        word.copy_from_slice(&section[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (offset, length) = (number(24), number(32));
    let mut strings = vec![0; length.min(64 * 1024) as usize];
    if file.read_exact_at(&mut strings, offset).is_err() {
        return Ok(false);
    }
    Ok(strings.windows(10).any(|window| window == b".wasmtime."))
}

/// A program that Knarr runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) abi: WasmAbi,
    /// The digest of its bytes.
    pub(crate) module: Digest,
    /// What it is, for people: `a core module importing wasi_snapshot_preview1`.
    pub(crate) description: String,
}

/// What a program imports and exports, at its outermost level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) component: bool,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
}

/// Reads a program and decides how it is called; `shown` names it in messages.
pub(crate) fn inspect(file: &mut File, shown: &str) -> Result<Program> {
    let (interface, module) = read(file, shown)?;
    let (abi, description) = decide(&interface, shown)?;
    Ok(Program { abi, module, description })
}

/// Reads a program's interface and hashes its bytes.
pub(crate) fn read(file: &mut File, shown: &str) -> Result<(Interface, Digest)> {
    let failed = |e: std::io::Error| Error::Internal(format!("read {shown}: {e}"));
    let size = file.metadata().map_err(failed)?.len();
    if size > PROGRAM_MAX {
        return Err(Error::Unsupported(format!("{shown} is larger than {PROGRAM_MAX} bytes")));
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(PROGRAM_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let module = Digest::from_bytes(Sha256::digest(&bytes).into());
    Ok((parse(&bytes).map_err(|e| Error::invalid(shown, e.to_string()))?, module))
}

fn parse(bytes: &[u8]) -> wasmparser::Result<Interface> {
    let mut interface = Interface { component: Parser::is_component(bytes), ..Default::default() };
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    note(&mut interface.imports, format!("{}.{}", import.module, import.name));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        note(&mut interface.exports, export.name.to_owned());
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    note(&mut interface.imports, import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    note(&mut interface.exports, export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(interface)
}

/// Names are for people and for the decision; a program has some dozens.
fn note(names: &mut Vec<String>, name: String) {
    if names.len() < NAMES_MAX && name.len() < 1024 {
        names.push(name);
    }
}

/// WASI packages that the Wasm host provides to components, at 0.2.
const PACKAGES: [&str; 7] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:http/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// `wasi:cli/run@0.2.3` has version 0.2.
fn is_preview2(name: &str) -> bool {
    name.split_once('@').is_some_and(|(_, version)| version.starts_with("0.2."))
}

fn decide(interface: &Interface, shown: &str) -> Result<(WasmAbi, String)> {
    let list = |names: &[&String]| -> String {
        let mut list: Vec<&str> = names.iter().take(5).map(|name| name.as_str()).collect();
        if names.len() > 5 {
            list.push("…");
        }
        list.join(", ")
    };
    let refuse = |why: String| Err(Error::Unsupported(format!("{shown} cannot be run: {why}")));
    if !interface.component {
        let known = |import: &&String| import.starts_with("wasi_snapshot_preview1.");
        let foreign: Vec<&String> = interface.imports.iter().filter(|i| !known(i)).collect();
        if foreign.iter().any(|import| import.starts_with("env.proxy_")) {
            return refuse(format!(
                "it is a proxy-wasm filter (imports {}), which only a proxy such as Envoy runs",
                list(&foreign)
            ));
        }
        if foreign.iter().any(|import| import.starts_with("wapc.")) {
            return refuse("it is a waPC policy (Kubewarden), which only its own host runs".into());
        }
        if !foreign.is_empty() {
            return refuse(format!(
                "it imports {}; Knarr provides wasi_snapshot_preview1 to core modules",
                list(&foreign)
            ));
        }
        if !interface.exports.iter().any(|export| export == "_start") {
            let exports: Vec<&String> = interface.exports.iter().collect();
            return refuse(format!("it does not export _start (it exports: {})", list(&exports)));
        }
        let imports = interface
            .imports
            .first()
            .map_or("nothing", |import| import.split('.').next().unwrap_or(import));
        return Ok((WasmAbi::Preview1Command, format!("a core module importing {imports}")));
    }
    // A component made for wasi:http may export a wasi:cli/run that only
    // panics: the handler is looked for first, whatever their order.
    let exported = |prefix: &str| interface.exports.iter().find(|name| name.starts_with(prefix));
    let http = exported("wasi:http/incoming-handler@").filter(|name| is_preview2(name));
    let run = exported("wasi:cli/run@").filter(|name| is_preview2(name));
    let (abi, export) = match (http, run) {
        (Some(http), _) => (WasmAbi::HttpProxy, http),
        (None, Some(run)) => (WasmAbi::ComponentCommand, run),
        (None, None) => {
            let exports: Vec<&String> = interface.exports.iter().collect();
            return refuse(format!(
                "the component exports neither wasi:http/incoming-handler@0.2 nor \
                 wasi:cli/run@0.2 (it exports: {})",
                list(&exports)
            ));
        }
    };
    let foreign: Vec<&String> = interface
        .imports
        .iter()
        .filter(|name| name.contains(':'))
        .filter(|name| {
            !PACKAGES.iter().any(|package| name.starts_with(package)) || !is_preview2(name)
        })
        .collect();
    if !foreign.is_empty() {
        return refuse(format!(
            "the component imports {}; Knarr provides WASI 0.2 (cli, clocks, filesystem, http, io, \
             random, sockets)",
            list(&foreign)
        ));
    }
    Ok((abi, format!("a component exporting {export}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(wat: &str) -> Result<(WasmAbi, String)> {
        let bytes = wat::parse_str(wat).unwrap();
        decide(&parse(&bytes).unwrap(), "/app.wasm")
    }

    fn component(imports: &[&str], exports: &[&str]) -> String {
        let mut text = String::from("(component\n");
        for name in imports {
            text += &format!("(import \"{name}\" (instance))\n");
        }
        for name in exports {
            text += &format!("(instance $i{} )\n", name.len());
            text += &format!("(export \"{name}\" (instance $i{}))\n", name.len());
        }
        // A nested module's imports are not the component's.
        text + "(core module (import \"env\" \"x\" (func))))"
    }

    #[test]
    fn w_modules_are_told_apart() {
        let wasi = r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))"#;
        let start = r#"(func (export "_start"))"#;
        let (abi, text) = verdict(&format!("(module {wasi} {start})")).unwrap();
        assert_eq!(abi, WasmAbi::Preview1Command);
        assert_eq!(text, "a core module importing wasi_snapshot_preview1");
        assert!(verdict(&format!("(module {start})")).is_ok());
        for (wat, word) in [
            (format!("(module {wasi} (func (export \"_initialize\")))"), "does not export _start"),
            (
                format!("(module (import \"wasi_unstable\" \"x\" (func)) {start})"),
                "wasi_unstable.x",
            ),
            (format!("(module (import \"wasix_32v1\" \"x\" (func)) {start})"), "wasix_32v1.x"),
            (format!("(module (import \"env\" \"memory\" (memory 1)) {start})"), "env.memory"),
            (format!("(module (import \"env\" \"proxy_log\" (func)) {start})"), "Envoy"),
            (format!("(module (import \"wapc\" \"__guest_call\" (func)) {start})"), "Kubewarden"),
        ] {
            let error = verdict(&wat).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn w_components_are_told_apart() {
        let http = "wasi:http/incoming-handler@0.2.0";
        let run = "wasi:cli/run@0.2.10";
        for exports in [vec![http, run], vec![run, http], vec![http]] {
            let (abi, text) = verdict(&component(&["wasi:io/streams@0.2.0"], &exports)).unwrap();
            assert_eq!(abi, WasmAbi::HttpProxy, "{exports:?}");
            assert_eq!(text, format!("a component exporting {http}"));
        }
        assert_eq!(verdict(&component(&[], &[run])).unwrap().0, WasmAbi::ComponentCommand);
        for (imports, exports, word) in [
            (vec![], vec!["a:b/c@1.0.0"], "a:b/c@1.0.0"),
            (vec![], vec!["wasi:http/handler@0.3.0"], "exports neither"),
            (vec!["wasi:keyvalue/store@0.2.0"], vec![run], "wasi:keyvalue"),
            (vec!["wasi:cli/stdout@0.3.0"], vec![run], "wasi:cli/stdout@0.3.0"),
        ] {
            let error = verdict(&component(&imports, &exports)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
