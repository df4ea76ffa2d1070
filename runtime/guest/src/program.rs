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
use wasmparser::{
    BinaryReader, ComponentExportSectionReader, ComponentImportSectionReader, ExportSectionReader,
    ExternalKind, ImportSectionReader, Parser,
};

use crate::{Error, Result};

/// Larger programs are refused; the largest known are below 100 MB.
pub const PROGRAM_MAX: u64 = 512 << 20;
/// The largest import or export section.
const SECTION_MAX: u64 = 8 << 20;
/// How many imports and exports are kept for people to read.
const NAMES_MAX: usize = 1000;

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// A core module.
    Module,
    /// A component.
    Component,
    /// `\0asm` of a version that is neither.
    UnknownWasm,
    /// A native executable.
    Elf,
    /// Code compiled ahead by wasmtime: never taken from an image.
    Precompiled,
    /// `#!`.
    Script,
    /// Anything else.
    Other,
}

impl Magic {
    /// For messages: `an ELF executable`.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Module => "a Wasm module",
            Self::Component => "a Wasm component",
            Self::UnknownWasm => "a Wasm binary of an unknown version",
            Self::Elf => "an ELF executable",
            Self::Precompiled => "precompiled Wasm",
            Self::Script => "a script",
            Self::Other => "neither Wasm nor ELF",
        }
    }
}

/// Looks at a file's first bytes, and at the sections of an ELF file.
///
/// # Errors
/// When the file cannot be read.
pub fn magic(file: &File) -> std::io::Result<Magic> {
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
pub struct Program {
    /// How it is called.
    pub abi: WasmAbi,
    /// The digest of its bytes.
    pub module: Digest,
    /// What it is, for people: `a core module importing wasi_snapshot_preview1`.
    pub description: String,
}

/// What a program imports and exports, at its outermost level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Not a core module.
    pub component: bool,
    /// `module.name`, or a component's interfaces.
    pub imports: Vec<String>,
    /// Functions, or a component's interfaces.
    pub exports: Vec<String>,
}

/// Whether an image's layer of this media type is a program as it is, and no archive.
pub fn is_program(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/wasm"
            | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.module.wasm.content.layer.v1+wasm"
    )
}

/// Reads a program and decides how it is called; `shown` names it in messages.
///
/// # Errors
/// See the module.
pub fn inspect(file: &mut File, shown: &str) -> Result<Program> {
    let (abi, description) = decide(&interface(file, shown)?, shown)?;
    let module = hash(file).map_err(|e| Error::Internal(format!("read {shown}: {e}")))?;
    Ok(Program { abi, module, description })
}

/// Reads what a program imports and exports.
///
/// # Errors
/// See the module.
pub fn interface(file: &File, shown: &str) -> Result<Interface> {
    let failed = |e: std::io::Error| Error::Internal(format!("read {shown}: {e}"));
    let size = file.metadata().map_err(failed)?.len();
    if size > PROGRAM_MAX {
        return Err(Error::Unsupported(format!("{shown} is larger than {PROGRAM_MAX} bytes")));
    }
    parse(size, |buffer, at| file.read_exact_at(buffer, at))
        .map_err(|why| Error::invalid(shown, why))
}

fn hash(file: &mut File) -> std::io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Walks the outermost sections: only imports and exports are read, the rest,
/// which may be a hundred megabytes of code, is stepped over.
fn parse(
    size: u64,
    read: impl Fn(&mut [u8], u64) -> std::io::Result<()>,
) -> std::result::Result<Interface, String> {
    let get = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        read(&mut bytes, at).map_err(|e| e.to_string()).map(|()| bytes)
    };
    let kind = get(0, size.min(8))?;
    let component = Parser::is_component(&kind);
    if !component && !Parser::is_core_wasm(&kind) {
        return Err("neither a module nor a component of a version that is known".into());
    }
    let mut interface = Interface { component, ..Default::default() };
    let mut at = 8;
    while at < size {
        let start = get(at, (size - at).min(6))?;
        let mut header = BinaryReader::new(&start, at as usize);
        let wrong = |e: wasmparser::BinaryReaderError| e.to_string();
        let id = header.read_u8().map_err(wrong)?;
        let length = u64::from(header.read_var_u32().map_err(wrong)?);
        let content = header.original_position() as u64;
        if length > size - content {
            return Err(format!("section at byte {at} ends behind the end of the file"));
        }
        at = content + length;
        let wanted = matches!((component, id), (false, 2 | 7) | (true, 10 | 11));
        if !wanted {
            continue;
        }
        if length > SECTION_MAX {
            return Err(format!("import or export section of more than {SECTION_MAX} bytes"));
        }
        let bytes = get(content, length)?;
        let reader = BinaryReader::new(&bytes, content as usize);
        section(&mut interface, id, reader).map_err(wrong)?;
    }
    Ok(interface)
}

fn section(interface: &mut Interface, id: u8, reader: BinaryReader<'_>) -> wasmparser::Result<()> {
    match id {
        2 => {
            for import in ImportSectionReader::new(reader)?.into_imports() {
                let import = import?;
                note(&mut interface.imports, format!("{}.{}", import.module, import.name));
            }
        }
        7 => {
            for export in ExportSectionReader::new(reader)? {
                let export = export?;
                if export.kind == ExternalKind::Func {
                    note(&mut interface.exports, export.name.to_owned());
                }
            }
        }
        10 => {
            for import in ComponentImportSectionReader::new(reader)? {
                note(&mut interface.imports, import?.name.name.to_owned());
            }
        }
        _ => {
            for export in ComponentExportSectionReader::new(reader)? {
                note(&mut interface.exports, export?.name.name.to_owned());
            }
        }
    }
    Ok(())
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

    fn of(bytes: &[u8]) -> std::result::Result<Interface, String> {
        parse(bytes.len() as u64, |buffer, at| {
            let at = at as usize;
            let from = bytes.get(at..at + buffer.len());
            buffer.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn w22_broken_binaries_are_errors() {
        let bytes = wat::parse_str(
            "(module (import \"a\" \"b\" (func)) (func (export \"_start\")) (memory 1))",
        )
        .unwrap();
        for end in 9..bytes.len() {
            // A cut between sections is for the compiler to find.
            let _ = of(&bytes[..end]);
        }
        for at in 8..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0xff;
            let _ = of(&broken);
        }
        assert!(of(&bytes[..bytes.len() - 3]).is_err() || of(&bytes[..12]).is_err());
        for bad in [&b"\0asm"[..], b"\0asm\x02\0\0\0", b"\0asm\x0c\0\x01\0", b""] {
            assert!(of(bad).unwrap_err().contains("neither"), "{bad:?}");
        }
        let huge = [&bytes[..8], &[2, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert!(of(&huge).unwrap_err().contains("behind the end"));
    }

    fn verdict(wat: &str) -> Result<(WasmAbi, String)> {
        let bytes = wat::parse_str(wat).unwrap();
        decide(&of(&bytes).unwrap(), "/app.wasm")
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
