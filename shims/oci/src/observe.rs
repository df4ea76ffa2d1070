//! `state`, `list`, `ps` and `events`: what is asked about containers.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use knarr_model::task::TaskStats;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Global, Outcome,
    args::Verb,
    state::{Known, Status},
};

/// What is read of the host's passwd(5).
const MAX_PASSWD: u64 = 4 << 20;

pub(crate) fn state(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find(global, verb.container(1)?)?;
    print(&(serde_json::to_string_pretty(&entry(&known))? + "\n"))?;
    Ok(0)
}

/// A container as runc shows it, in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: u32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
    owner: String,
}

fn entry(known: &Known) -> Entry<'_> {
    let record = &known.record;
    let status = known.status();
    Entry {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: if status == Status::Stopped { 0 } else { record.pid },
        status: status.word(),
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        created: &record.created,
        annotations: &record.annotations,
        owner: owner(record.owner),
    }
}

/// Its name in the host's passwd(5), or its number where it has none there.
fn owner(uid: u32) -> String {
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open("/etc/passwd") {
        let _ = file.take(MAX_PASSWD).read_to_end(&mut text);
    }
    named(&text, uid).unwrap_or_else(|| format!("#{uid}"))
}

fn named(passwd: &[u8], uid: u32) -> Option<String> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

pub(crate) fn list(global: &Global, verb: &Verb) -> Outcome {
    ensure(verb.words.is_empty(), "list takes no arguments")?;
    if let Some(root) = global.flags.get("root").filter(|root| !root.is_empty()) {
        std::fs::metadata(root).with_context(|| root.to_owned())?;
    }
    let all = Known::all(global)?;
    if verb.flags.has("quiet") {
        let names: String = all.iter().map(|known| format!("{}\n", known.home.id)).collect();
        print(&names)?;
        return Ok(0);
    }
    match verb.flags.get("format").unwrap_or("table") {
        "json" => {
            let entries: Vec<Entry<'_>> = all.iter().map(entry).collect();
            print(&(serde_json::to_string(&entries)? + "\n"))?;
        }
        "table" => {
            let mut rows =
                vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
            rows.extend(all.iter().map(|known| {
                let record = &known.record;
                let status = known.status();
                let pid = if status == Status::Stopped { 0 } else { record.pid };
                [
                    record.id.clone(),
                    pid.to_string(),
                    status.word().to_owned(),
                    record.bundle.display().to_string(),
                    record.created.clone(),
                    owner(record.owner),
                ]
            }));
            print(&table(&rows))?;
        }
        other => return Err(anyhow!("invalid format option {other:?}").into()),
    }
    Ok(0)
}

/// Columns as runc's: at least nine letters wide and three apart.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..6).map(|column| width(column).unwrap_or(0).max(9) + 3).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths).take(5) {
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

fn ensure(good: bool, text: &'static str) -> Result<()> {
    ensure!(good, text);
    Ok(())
}

pub(crate) fn ps(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find_within(global, verb.container(usize::MAX)?)?;
    let pids = match &known.container {
        Some(container) => container.pids()?,
        // What it has left behind, without a pid namespace of its own.
        None => knarr_sandbox::cgroup_of(&known.spec, &known.home.id)?.pids()?,
    };
    match verb.flags.get("format").unwrap_or("table") {
        "json" => print(&(serde_json::to_string(&pids)? + "\n"))?,
        "table" => {
            let mut options = verb.words[1..].to_vec();
            if options.is_empty() {
                options.push("-ef".to_owned());
            }
            print(&lines_of(&pids, &options)?)?;
        }
        _ => return Err(anyhow!("invalid format option").into()),
    }
    Ok(0)
}

/// What ps(1) says about these processes, as runc asks it.
fn lines_of(pids: &[u32], options: &[String]) -> Result<String> {
    let output = Command::new("ps").args(options).output().context("run ps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let Some(column) = title.split_ascii_whitespace().position(|name| name == "PID") else {
        bail!("couldn't find PID field in ps output");
    };
    let ours = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let kept: String = lines.filter(ours).map(|line| format!("{line}\n")).collect();
    Ok(format!("{title}\n{kept}"))
}

pub(crate) fn events(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find(global, verb.container(1)?)?;
    let interval = duration(verb.flags.get("interval").unwrap_or("5s"))?;
    ensure(!interval.is_zero(), "duration interval must be greater than 0")?;
    if known.status() == Status::Stopped {
        return Err(anyhow!("container with id {} is not running", known.home.id).into());
    }
    let container = known.alive()?;
    let say = |kind, data| {
        let event = Event { kind, id: &known.home.id, data };
        print(&(serde_json::to_string(&event)? + "\n"))
    };
    if verb.flags.has("stats") {
        say("stats", Some(stats(&container.stats()?)))?;
        return Ok(0);
    }
    let mut killed = container.cgroup().oom_kills();
    loop {
        if container.init().ends_within(interval) {
            return Ok(0);
        }
        let now = container.cgroup().oom_kills();
        for _ in killed..now {
            say("oom", None)?;
        }
        killed = now;
        match container.stats() {
            Ok(all) => say("stats", Some(stats(&all)))?,
            // It ended while it was asked.
            Err(_) if container.init().has_ended() => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// runc's `types.Event`, in its order.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

/// `5s`, `100ms`, `1m`.
fn duration(text: &str) -> Result<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let bad = || anyhow!("invalid duration {text:?}");
    let number: u64 = text[..end].parse().map_err(|_| bad())?;
    Ok(match &text[end..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(3600)),
        _ => return Err(bad()),
    })
}

/// runc's `types.Stats`.
fn stats(all: &TaskStats) -> Value {
    let memory = |name: &str| all.memory_stat.get(name).copied().unwrap_or(0);
    let (periods, throttled, time) = all.cpu_throttling;
    let io: Vec<Value> = all
        .io_bytes
        .iter()
        .map(|(major, minor, op, value)| {
            json!({ "major": major, "minor": minor, "op": op, "value": value })
        })
        .collect();
    let interfaces: Vec<Value> = all
        .networks
        .iter()
        .map(|(name, one)| {
            json!({
                "Name": name,
                "RxBytes": one.rx_bytes, "RxPackets": one.rx_packets,
                "RxErrors": one.rx_errors, "RxDropped": one.rx_dropped,
                "TxBytes": one.tx_bytes, "TxPackets": one.tx_packets,
                "TxErrors": one.tx_errors, "TxDropped": one.tx_dropped,
            })
        })
        .collect();
    json!({
        "cpu": {
            "usage": { "total": all.cpu_ns, "kernel": all.cpu_system_ns, "user": all.cpu_user_ns },
            "throttling": {
                "periods": periods, "throttledPeriods": throttled, "throttledTime": time,
            },
        },
        "memory": {
            "usage": {
                "limit": all.memory_limit, "usage": all.memory_usage,
                "max": all.memory_max_usage, "failcnt": all.memory_failcnt,
            },
            "cache": memory("cache").max(memory("file")),
            "raw": all.memory_stat,
        },
        "pids": { "current": all.pids, "limit": all.pids_limit },
        "blkio": { "ioServiceBytesRecursive": io },
        "network_interfaces": interfaces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v02_owners_are_read_from_the_file_itself() {
        let passwd = b"root:x:0:0::/root:/bin/sh\n\xff\n:x:7:7::/:\nlp:x:7:7::/:/bin/sh\n";
        assert_eq!(named(passwd, 0).as_deref(), Some("root"));
        assert_eq!(named(passwd, 7).as_deref(), Some("lp"));
        assert_eq!(named(passwd, 8), None);
        assert_eq!(owner(0), "root");
        assert_eq!(owner(4_000_000_001), "#4000000001");
    }
}
