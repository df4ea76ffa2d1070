//! References against Docker's verdicts.
//!
//! `references.jsonl` has a pair a line: what a user writes, and what it means in
//! full, or null where it is no reference. It was made from the grammar of the
//! distribution project (`reference/regexp.go`, v0.6) and agrees, line by line, with
//! what the `docker` client 28.2 takes and refuses. `a_b.c/d` is not in it: Docker takes
//! it for a name without a host, and finds nobody to ask.

use knarr_model::Reference;

#[test]
fn i15_references_mean_what_docker_says_they_mean() {
    let table = include_str!("references.jsonl");
    let mut wrong = Vec::new();
    for line in table.lines() {
        let (text, want): (String, Option<String>) = serde_json::from_str(line).unwrap();
        let got = text.parse::<Reference>().ok().map(|reference| reference.to_string());
        if got != want {
            wrong.push(format!("{text:?}: want {want:?}, got {got:?}"));
        }
        if let Some(whole) = want {
            // What was normalised once stays as it is.
            assert_eq!(whole.parse::<Reference>().unwrap().to_string(), whole);
            assert!(whole.bytes().all(|c| c.is_ascii_graphic()), "{whole:?} in a header or a log");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(table.lines().count() >= 200);
}

#[test]
fn i15_endless_references_are_refused() {
    for text in [
        "a".repeat(10_000),
        format!("r.example/{}a", "a/".repeat(2000)),
        format!("a:{}", "t".repeat(10_000)),
        format!("{}/a", "a.".repeat(10_000)),
        format!("a@sha256:{}", "0".repeat(1 << 20)),
    ] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.len() < 1000, "the message does not repeat it");
    }
}
