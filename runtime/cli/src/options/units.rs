//! Sizes, durations, and `name=value` pairs.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail};

/// Bytes from `64m`, `1.5g`, `1024`, `10kb` (docker/go-units `RAMInBytes`: powers of 1024).
pub fn bytes(text: &str) -> Result<i64> {
    let bad = || format!("invalid size: '{text}'");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = lower[digits.len()..].trim().trim_end_matches("ib").trim_end_matches('b');
    let number: f64 = digits.parse().ok().with_context(bad)?;
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!(bad()),
    };
    let value = number * 1024_f64.powi(power);
    if !(0.0..9e18).contains(&value) {
        bail!(bad());
    }
    Ok(value as i64)
}

/// Nanoseconds from Go's `1h30m`, `500ms`, `10s`.
pub fn duration(text: &str) -> Result<i64> {
    let bad = || format!("invalid duration {text:?}");
    let mut rest = text;
    let mut total = 0.0;
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        bail!(bad());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).with_context(bad)?;
        let number: f64 = rest[..end].parse().ok().with_context(bad)?;
        let behind = &rest[end..];
        let unit_end =
            behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let scale = match &behind[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            _ => bail!(bad()),
        };
        total += number * scale;
        rest = &behind[unit_end..];
    }
    Ok(total as i64)
}

/// Billionths of a CPU from `1.5`.
pub fn cpus(text: &str) -> Result<i64> {
    let number: f64 = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0)
        .with_context(|| format!("failed to parse {text} as a rational number"))?;
    Ok((number * 1e9).round() as i64)
}

/// `name=value` words to a map; a word without `=` has an empty value.
pub fn pairs(words: &[String]) -> BTreeMap<String, String> {
    words
        .iter()
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// `-e` words after the lines of `--env-file`s. A word without `=` takes the
/// value of this process's own environment, or is left out.
pub fn environment(files: &[String], words: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(file_lines(file)?);
    }
    all.extend(words.iter().cloned());
    let mut environment = Vec::with_capacity(all.len());
    for word in all {
        match word.split_once('=') {
            Some(("", _)) => bail!("invalid environment variable: {word}"),
            Some(_) => environment.push(word),
            None if word.is_empty() => bail!("invalid environment variable: {word}"),
            None => {
                environment.extend(std::env::var(&word).ok().map(|value| format!("{word}={value}")))
            }
        }
    }
    Ok(environment)
}

/// `-l` words after the lines of `--label-file`s.
pub fn labels(files: &[String], words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(file_lines(file)?);
    }
    all.extend(words.iter().cloned());
    Ok(pairs(&all))
}

/// The lines of a file that are no comments (docker/cli `opts/file.go`).
fn file_lines(path: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("open {path}"))?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.contains([' ', '\t']) || name.is_empty() {
            bail!("invalid env file ({path}): variable '{name}' contains whitespaces");
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in
            [("0", 0), ("64m", 64 << 20), ("1.5g", 3 << 29), ("10kb", 10 << 10), ("1KiB", 1024)]
        {
            assert_eq!(bytes(text).unwrap(), want, "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1e400", "1mm"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("0", 0),
            ("1h30m", 5_400_000_000_000),
            ("500ms", 500_000_000),
            ("1.5s", 1_500_000_000),
        ] {
            assert_eq!(duration(text).unwrap(), want, "{text}");
        }
        for bad in ["", "1", "s", "1d", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_are_billionths() {
        assert_eq!(cpus("1.5").unwrap(), 1_500_000_000);
        assert!(cpus("-1").is_err() && cpus("x").is_err() && cpus("inf").is_err());
    }

    #[test]
    fn environment_words() {
        let words = ["A=1".to_owned(), "B=".to_owned(), "KNARR_SURELY_UNSET".to_owned()];
        assert_eq!(environment(&[], &words).unwrap(), ["A=1", "B="]);
        assert!(environment(&[], &["=x".to_owned()]).is_err());
    }
}
