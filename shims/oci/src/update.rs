//! `update`: other limits for a running container.

use anyhow::{Context, Result};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::{Global, Outcome, args::Verb, state::Known};

pub(crate) fn update(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find(global, verb.container(1)?)?;
    let resources = resources(verb)?;
    known.alive()?.update(&resources)?;
    Ok(0)
}

fn resources(verb: &Verb) -> Result<LinuxResources> {
    let flags = &verb.flags;
    if let Some(path) = flags.get("resources") {
        let text = if path == "-" {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.with_context(|| path.to_owned())?;
        return serde_json::from_str(&text).with_context(|| path.to_owned());
    }
    let mut all = json!({});
    let mut set = |group: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            all[group][name] = value;
        }
    };
    let number =
        |flag: &str| -> Result<Option<Value>> { Ok(flags.number::<i64>(flag)?.map(Value::from)) };
    let bytes = |flag: &str| -> Result<Option<Value>> {
        let Some(text) = flags.get(flag) else { return Ok(None) };
        size(text)
            .map(|bytes| Some(bytes.into()))
            .with_context(|| format!("invalid value for {flag}"))
    };
    set("blockIO", "weight", number("blkio-weight")?);
    set("cpu", "period", number("cpu-period")?);
    set("cpu", "quota", number("cpu-quota")?);
    set("cpu", "burst", number("cpu-burst")?);
    set("cpu", "shares", number("cpu-share")?);
    set("cpu", "realtimePeriod", number("cpu-rt-period")?);
    set("cpu", "realtimeRuntime", number("cpu-rt-runtime")?);
    set("cpu", "idle", number("cpu-idle")?);
    set("cpu", "cpus", flags.get("cpuset-cpus").map(Value::from));
    set("cpu", "mems", flags.get("cpuset-mems").map(Value::from));
    set("memory", "kernelTCP", bytes("kernel-memory-tcp")?);
    set("memory", "limit", bytes("memory")?);
    set("memory", "reservation", bytes("memory-reservation")?);
    set("memory", "swap", bytes("memory-swap")?);
    set("pids", "limit", number("pids-limit")?);
    serde_json::from_value(all).context("resources")
}

/// `1024`, `512m`, `-1`.
fn size(text: &str) -> Result<i64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => anyhow::bail!("invalid size: {text:?}"),
    };
    let number: i64 = digits.parse().with_context(|| format!("invalid size: {text:?}"))?;
    number.checked_mul(1 << shift).with_context(|| format!("invalid size: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("1", 1), ("-1", -1), ("2k", 2048), ("33m", 33 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(size(text).expect(text), bytes);
        }
        assert!(size("m").is_err() && size("1x").is_err());
    }
}
