//! What the compiler takes, and what it refuses in words and in time.

use std::fmt::Write as _;

use crate::support::compile;

fn refused(binary: &[u8]) -> String {
    let (code, said) = compile(binary);
    assert!(code.is_none(), "compiled");
    assert!(!said.is_empty());
    said
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn i20_code_compiled_elsewhere_is_refused() {
    let (code, _) = compile(&wat("(module)"));
    let code = code.unwrap();
    assert!(code.starts_with(b"\x7fELF"));
    assert!(refused(&code).contains("ELF"));
}

#[test]
fn w22_malformed_binaries_are_refused() {
    let whole = wat(r#"(module (func (export "_start") (drop (i32.const 1))))"#);
    for end in 0..whole.len() {
        // Cut between two sections it is a whole module again.
        let _ = compile_is_error_or_code(&whole[..end]);
    }
    for (bad, word) in [
        (&b"(module)"[..], "\\0asm"),
        (b"", "\\0asm"),
        (b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\x0f", "compiled"),
        (b"\0asm\x09\0\0\0", "version"),
    ] {
        let said = refused(bad);
        assert!(said.contains(word), "{said}");
    }
}

fn compile_is_error_or_code(binary: &[u8]) -> bool {
    compile(binary).0.is_some()
}

#[test]
fn w20_features_that_are_off_are_named() {
    for (text, word) in [
        ("(module (memory 1 1 shared))", "threads"),
        ("(module (memory i64 1))", "memory64"),
        ("(module (type (struct)))", "gc"),
        ("(module (tag))", "exceptions"),
    ] {
        let said = refused(&wat(text));
        assert!(said.contains(word), "{text}: {said}");
    }
}

#[test]
fn w05_compile_bombs_end() {
    // Nested blocks, a wide br_table, many locals, many functions: each ends in
    // code or in an error, and the process in neither a crash nor a limit.
    let nested = format!("(module (func {} {}))", "block ".repeat(10_000), "end ".repeat(10_000));
    let table =
        format!("(module (func (block (br_table {} (i32.const 0)))))", "0 ".repeat(100_000));
    let locals = format!("(module (func (local {})))", "i64 ".repeat(50_000));
    let mut many = String::from("(module ");
    for number in 0..20_000 {
        write!(many, "(func (result i32) (i32.const {number}))").unwrap();
    }
    many.push(')');
    for (name, text) in [("nested", nested), ("table", table), ("locals", locals), ("many", many)] {
        let (code, said) = compile(&wat(&text));
        assert!(!said.contains("crashed"), "{name}: {said}");
        assert!(code.is_some() || !said.is_empty(), "{name}");
    }
    let too_many = format!("(module (func (local {})))", "i64 ".repeat(50_001));
    assert!(refused(&wat(&too_many)).contains("locals"));
}

#[test]
fn w05_what_is_too_large_is_refused_before_it_is_compiled() {
    let mut large = b"\0asm\x01\0\0\0".to_vec();
    large.resize((256 << 20) + 1, 0);
    assert!(refused(&large).contains("256 MiB"));
}
