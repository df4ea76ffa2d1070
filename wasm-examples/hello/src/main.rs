//! A command of WASI preview 1: what a container gives a program, shown.
//!
//! | arguments | what it does |
//! |---|---|
//! | none | greets `NAME`, lists arguments |
//! | `env` | prints the environment, one variable a line |
//! | `cat FILE…` | prints files; without one, standard input |
//! | `write FILE TEXT` | writes a file |
//! | `ls DIRECTORY` | lists a directory |
//! | `exit CODE` | ends with that code |
//! | `trap` | ends abnormally |

#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{self, Write as _},
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match act(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hello: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match *words {
        ["env"] => {
            for (name, value) in env::vars() {
                writeln!(out, "{name}={value}")?;
            }
        }
        ["cat"] => {
            io::copy(&mut io::stdin().lock(), &mut out)?;
        }
        ["cat", ref files @ ..] => {
            for file in files {
                out.write_all(&fs::read(file)?)?;
            }
        }
        ["write", file, text] => fs::write(file, format!("{text}\n"))?,
        ["ls", directory] => {
            let mut names: Vec<_> = fs::read_dir(directory)?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()?;
            names.sort();
            writeln!(out, "{}", names.join("\n"))?;
        }
        ["exit", code] => return Ok(code.parse::<u8>().map_or(ExitCode::FAILURE, ExitCode::from)),
        ["trap"] => panic!("asked to"),
        ref rest => {
            let name = env::var("NAME").unwrap_or_else(|_| "world".to_owned());
            writeln!(out, "hello {name}, from a Wasm program")?;
            if !rest.is_empty() {
                writeln!(out, "arguments: {}", rest.join(" "))?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
