//! The catalogue of attacks and failures (`tests/CATALOGUE.md`) against the tests that exist.
//!
//! A test carries the ids that its name begins with: `fn p12_x02_…` carries P12 and X02. Every id
//! must be in the catalogue; a case that says `tested` must have a test, and no other may have one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::run::root;

/// The letters that ids begin with.
const GROUPS: &str = "ABIKNPRSVWX";
/// Folders with Rust code.
const FOLDERS: [&str; 4] = ["runtime", "shims", "tests", "wasm-examples"];

/// Compares catalogue and tests, and lists each case's tests with `list`.
///
/// # Errors
/// Names every id that is out of step.
pub fn check(list: bool) -> Result<()> {
    let path = root().join("tests/CATALOGUE.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let tests = tests()?;
    if list {
        for (id, names) in &tests {
            println!("{id}");
            for name in names {
                println!("  {name}");
            }
        }
    }
    let wrong = compare(&text, &tests);
    ensure!(wrong.is_empty(), "tests/CATALOGUE.md and the tests:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// Every test that carries an id, by id.
fn tests() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    let mut pending: Vec<PathBuf> = FOLDERS.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                for (id, name) in carried(&code) {
                    found.entry(id).or_default().insert(shown(&path, &name));
                }
            }
        }
    }
    Ok(found)
}

fn shown(path: &Path, name: &str) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    format!("{}: {name}", path.display())
}

/// The ids that the functions of a file carry, each with the function's name.
fn carried(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in code.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("async ").unwrap_or(line);
        let Some(name) = line.strip_prefix("fn ") else { continue };
        let name: String =
            name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        for word in name.split('_') {
            match id(word) {
                Some(id) => found.push((id, name.clone())),
                None => break,
            }
        }
    }
    found
}

/// `r05` as `R05`: a group's letter and two digits.
fn id(word: &str) -> Option<String> {
    let upper = word.to_ascii_uppercase();
    let (group, digits) = upper.split_at_checked(1)?;
    let is_id = GROUPS.contains(group)
        && digits.len() == 2
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then_some(upper)
}

/// What is out of step, a sentence each.
fn compare(catalogue: &str, tests: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for line in catalogue.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [first, .., state] = cells.as_slice() else { continue };
        let Some(id) = id(first.trim_end_matches('★')) else { continue };
        let tested = tests.contains_key(&id);
        let word = state.split(':').next().unwrap_or_default();
        match (word, tested) {
            ("tested", false) => wrong.push(format!("{id} says tested and has no test")),
            ("verdict" | "not built" | "open", true) => {
                wrong.push(format!("{id} says {word} and has tests"));
            }
            ("tested", true) => {}
            ("verdict" | "not built" | "open", false) if state.contains(": ") => {}
            _ => wrong.push(format!("{id} has the state {state:?}, without a reason")),
        }
        if !known.insert(id.clone()) {
            wrong.push(format!("{id} is there twice"));
        }
    }
    for (id, names) in tests {
        if !known.contains(id) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            wrong.push(format!("{id} is not in the catalogue: {}", names.join(", ")));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogue_and_tests_are_in_step() {
        check(false).unwrap();
    }

    #[test]
    fn what_is_out_of_step_is_named() {
        let catalogue = "| R01★ | a | b | tested |\n| R02 | a | b | open: why |\n\
                         | R03 | a | b | tested |\n| R03 | a | b | verdict |\n";
        let code = "    async fn r02_x_is_y() {\nfn r04_r01_z() {\nfn from_r09() {\nfn r1_no() {";
        let mut tests = BTreeMap::<String, BTreeSet<String>>::new();
        for (id, name) in carried(code) {
            tests.entry(id).or_default().insert(name);
        }
        let wrong = compare(catalogue, &tests);
        assert_eq!(
            wrong,
            [
                "R02 says open and has tests",
                "R03 says tested and has no test",
                "R03 has the state \"verdict\", without a reason",
                "R03 is there twice",
                "R04 is not in the catalogue: r04_r01_z",
            ]
        );
    }
}
