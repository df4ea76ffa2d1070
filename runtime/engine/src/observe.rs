//! What a running container does and uses: `top`, `stats`, `update`.

use std::collections::{HashMap, HashSet};

use knarr_sys::{ProcessStat, read};
use knarr_work::WALKS;

use crate::{
    Error, Result,
    create::check_resources,
    engine::Engine,
    facades::long,
    failpoint, host, oci,
    task::TaskError,
    view::{StatsSample, Status, Top, Update},
};

impl Engine {
    /// Its processes, in the columns of `ps -ef` or those of `ps_args`.
    ///
    /// # Errors
    /// `Conflict` where it does not run; `InvalidArgument` for `ps_args` that are not understood.
    pub async fn top(&self, key: &str, ps_args: &str) -> Result<Top> {
        let container = self.find(key)?;
        let columns = columns(ps_args)?;
        let shim = container.running_shim()?;
        let failed = |error: TaskError| Error::internal(format!("top: {error}"));
        let pids = shim.task.pids(container.id.as_str()).await.map_err(failed)?;
        self.tell(&container, "top", &[]);
        // A container has as many processes as its limit allows, and procfs waits for
        // a process's memory, which may hang.
        let look = move || {
            failpoint::hit("top.read")?;
            Ok::<_, Error>((processes(&pids), users(), boot_time()))
        };
        let (mut found, users, boot) = long(&WALKS, look).await??;
        // Whoever is not among them any more may have been read as somebody else.
        let now = shim.task.pids(container.id.as_str()).await.map_err(failed)?;
        let now: HashSet<u32> = now.into_iter().collect();
        found.retain(|process| now.contains(&process.pid));
        let show = |process: &Process| {
            columns.iter().map(|column| process.show(*column, &users, boot)).collect()
        };
        let processes = found.iter().map(show).collect();
        let titles = columns.iter().map(|column| title(*column).to_owned()).collect();
        Ok(Top { titles, processes })
    }

    /// One sample. Whoever wants rates takes two.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn stats(&self, key: &str) -> Result<StatsSample> {
        let container = self.find(key)?;
        let task = match container.running_shim() {
            Ok(shim) => match shim.task.stats(container.id.as_str()).await {
                Ok(stats) => Some(stats),
                // It ended just now.
                Err(TaskError::Lost(_)) => None,
                Err(error) if error.is_gone() => None,
                Err(error) => return Err(Error::internal(format!("stats: {error}"))),
            },
            Err(_) => None,
        };
        Ok(StatsSample {
            id: container.id.clone(),
            name: container.name().to_string(),
            read: jiff::Timestamp::now(),
            task,
            system_cpu_ns: host::cpu_time(),
            online_cpus: host::cpus(),
            host_memory: host::memory(),
        })
    }

    /// Changes limits and restart policy; answers warnings.
    ///
    /// # Errors
    /// When the kernel refuses the limits.
    pub async fn update(&self, key: &str, update: Update) -> Result<Vec<String>> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move {
            failpoint::hit("update.begin")?;
            let _op = container.op.lock().await;
            if matches!(container.status(), Status::Removing | Status::Dead) {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be \"update\"",
                ));
            }
            let mut spec = (*container.spec()).clone();
            merge(&mut spec.resources, &update.resources);
            if let Some(policy) = update.restart {
                if spec.auto_remove && policy != knarr_model::RestartPolicy::No {
                    return Err(Error::invalid(
                        "Restart policy cannot be updated because AutoRemove is enabled for the container",
                    ));
                }
                spec.restart = policy;
            }
            let mut warnings = Vec::new();
            check_resources(&spec.resources, engine.0.host.swap_limit, &mut warnings)?;
            if let Ok(shim) = container.running_shim()
                && update.resources != knarr_model::Resources::default()
            {
                let limits = oci::resources(&spec.resources, &engine.0.host, None);
                shim.task
                    .update(container.id.as_str(), &limits.to_string())
                    .await
                    .map_err(|error| {
                        Error::internal(format!("Cannot update container {}: {error}", container.id))
                    })?;
            }
            failpoint::hit("update.task")?;
            engine.save_spec(&container, spec)?;
            engine.persist(&container).await?;
            failpoint::hit("update.row")?;
            engine.tell(&container, "update", &[]);
            Ok(warnings)
        })
        .await
    }
}

fn merge(into: &mut knarr_model::Resources, from: &knarr_model::Resources) {
    macro_rules! take {
        ($($field:ident),*) => { $( if from.$field.is_some() { into.$field.clone_from(&from.$field); } )* };
    }
    take!(
        memory,
        memory_swap,
        memory_reservation,
        cpu_shares,
        cpu_quota,
        cpu_period,
        cpuset_cpus,
        cpuset_mems,
        pids
    );
    if from.nano_cpus.is_some() {
        into.nano_cpus = from.nano_cpus;
        into.cpu_quota = None;
        into.cpu_period = None;
    } else if from.cpu_quota.is_some() || from.cpu_period.is_some() {
        into.nano_cpus = None;
    }
    into.oom_kill_disable |= from.oom_kill_disable;
}

/// A column of `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Pid,
    Ppid,
    C,
    Cpu,
    Memory,
    Vsz,
    Rss,
    Tty,
    Stat,
    Start,
    Time,
    Cmd,
    Comm,
    Args,
    Nice,
    Threads,
}

fn title(column: Column) -> &'static str {
    match column {
        Column::User => "USER",
        Column::Uid => "UID",
        Column::Pid => "PID",
        Column::Ppid => "PPID",
        Column::C => "C",
        Column::Cpu => "%CPU",
        Column::Memory => "%MEM",
        Column::Vsz => "VSZ",
        Column::Rss => "RSS",
        Column::Tty => "TTY",
        Column::Stat => "STAT",
        Column::Start => "STIME",
        Column::Time => "TIME",
        Column::Cmd => "CMD",
        Column::Comm | Column::Args => "COMMAND",
        Column::Nice => "NI",
        Column::Threads => "NLWP",
    }
}

const FULL: [Column; 8] = [
    Column::Uid,
    Column::Pid,
    Column::Ppid,
    Column::C,
    Column::Start,
    Column::Tty,
    Column::Time,
    Column::Cmd,
];

const BSD: [Column; 11] = [
    Column::User,
    Column::Pid,
    Column::Cpu,
    Column::Memory,
    Column::Vsz,
    Column::Rss,
    Column::Tty,
    Column::Stat,
    Column::Start,
    Column::Time,
    Column::Args,
];

/// What the arguments of `ps` ask for. No `ps` is executed: the engine may run
/// where there is none, and inside a container there may be a hostile one.
fn columns(arguments: &str) -> Result<Vec<Column>> {
    let refuse = || {
        Error::invalid(format!(
            "ps arguments {arguments:?} are not understood\n\nhint: known are -ef, aux and -o with pid, ppid, user, uid, pcpu, pmem, vsz, rss, tty, stat, stime, time, ni, nlwp, comm, args, cmd"
        ))
    };
    let words: Vec<&str> = arguments.split_whitespace().collect();
    match words.as_slice() {
        [] | ["-ef" | "-e" | "-f" | "ef"] => return Ok(FULL.to_vec()),
        ["aux" | "-aux" | "u" | "axu" | "auxw" | "auxww"] => return Ok(BSD.to_vec()),
        _ => {}
    }
    let mut chosen = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let list = match word {
            "-e" | "-A" | "ax" | "-ax" => continue,
            "-o" | "-eo" | "o" | "axo" | "-Ao" => words.next().ok_or_else(refuse)?,
            other => {
                other.strip_prefix("-eo").or_else(|| other.strip_prefix("-o")).ok_or_else(refuse)?
            }
        };
        for name in list.split(',') {
            chosen.push(match name {
                "user" | "ruser" | "euser" | "uname" => Column::User,
                "uid" | "euid" => Column::Uid,
                "pid" => Column::Pid,
                "ppid" => Column::Ppid,
                "c" => Column::C,
                "pcpu" | "%cpu" => Column::Cpu,
                "pmem" | "%mem" => Column::Memory,
                "vsz" | "vsize" => Column::Vsz,
                "rss" | "rssize" => Column::Rss,
                "tty" | "tt" | "tname" => Column::Tty,
                "stat" | "state" | "s" => Column::Stat,
                "stime" | "start" | "start_time" | "lstart" => Column::Start,
                "time" | "cputime" => Column::Time,
                "ni" | "nice" => Column::Nice,
                "nlwp" | "thcount" => Column::Threads,
                "comm" | "ucmd" | "ucomm" => Column::Comm,
                "cmd" => Column::Cmd,
                "args" | "command" => Column::Args,
                _ => return Err(refuse()),
            });
        }
    }
    if chosen.is_empty() { Err(refuse()) } else { Ok(chosen) }
}

/// A process as /proc shows it (proc(5)).
struct Process {
    pid: u32,
    uid: u32,
    /// Resident memory in KiB.
    rss: u64,
    name: String,
    command: String,
    stat: ProcessStat,
}

/// Most of a process's command line that is shown, in bytes.
const COMMAND: usize = 64 << 10;
/// Most of all their command lines together, in bytes.
const COMMANDS: usize = 4 << 20;

/// Those that are still there. A process chooses its name and its command line itself.
fn processes(pids: &[u32]) -> Vec<Process> {
    let mut room = COMMANDS;
    let read = |pid: &u32| {
        let process = Process::read(*pid, room.min(COMMAND))?;
        room = room.saturating_sub(process.command.len());
        Some(process)
    };
    pids.iter().filter_map(read).collect()
}

impl Process {
    /// None where it has ended meanwhile; `room` is for its command line.
    fn read(pid: u32, room: usize) -> Option<Self> {
        let stat = ProcessStat::of(pid).ok()?;
        let name = String::from_utf8_lossy(stat.name()).into_owned();
        let status = read::text(format!("/proc/{pid}/status"), read::SMALL).ok()?;
        let word = |name: &str, at: usize| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().nth(at)
        };
        // Real, effective, saved, of the filesystem.
        let uid = word("Uid:", 1)?.parse().ok()?;
        // Threads of the kernel have none.
        let rss = word("VmRSS:", 0).and_then(|kib| kib.parse().ok()).unwrap_or_default();
        let raw = read::head(format!("/proc/{pid}/cmdline"), room).ok()?;
        let words: Vec<_> = raw
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let command = if words.is_empty() { format!("[{name}]") } else { words.join(" ") };
        Some(Self { pid, uid, rss, name, command, stat })
    }

    /// A numeric field by its number in proc(5), from 3 on.
    fn field(&self, number: usize) -> u64 {
        self.stat.number(number).unwrap_or_default()
    }

    fn show(&self, column: Column, users: &HashMap<u32, String>, boot: u64) -> String {
        let ticks = host::clock_ticks();
        let used = (self.field(14) + self.field(15)) / ticks;
        let started = boot + self.field(22) / ticks;
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let share = || {
            let age = now.saturating_sub(started).max(1);
            (self.field(14) + self.field(15)) * 1000 / ticks / age
        };
        let rss = self.rss;
        match column {
            Column::User | Column::Uid => {
                users.get(&self.uid).cloned().unwrap_or_else(|| self.uid.to_string())
            }
            Column::Pid => self.pid.to_string(),
            Column::Ppid => self.field(4).to_string(),
            Column::C => (share() / 10).min(99).to_string(),
            Column::Cpu => format!("{}.{}", share() / 10, share() % 10),
            Column::Memory => {
                let share = rss * 1024 * 1000 / host::memory().max(1);
                format!("{}.{}", share / 10, share % 10)
            }
            Column::Vsz => (self.field(23) / 1024).to_string(),
            Column::Rss => rss.to_string(),
            Column::Tty => terminal(self.field(7)),
            Column::Stat => self.stat.field(3).unwrap_or_default().to_owned(),
            Column::Start => start(started, now),
            Column::Time => {
                format!("{:02}:{:02}:{:02}", used / 3600, used / 60 % 60, used % 60)
            }
            Column::Comm => self.name.clone(),
            Column::Cmd | Column::Args => self.command.clone(),
            Column::Nice => self.stat.field(19).unwrap_or_default().to_owned(),
            Column::Threads => self.field(20).to_string(),
        }
    }
}

/// The name of a terminal by its device number.
fn terminal(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".into(),
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        4 => format!("tty{minor}"),
        _ => "?".into(),
    }
}

/// The hour of today, else the day.
fn start(started: u64, now: u64) -> String {
    let Ok(at) = jiff::Timestamp::from_second(i64::try_from(started).unwrap_or_default()) else {
        return "?".into();
    };
    let zoned = at.to_zoned(jiff::tz::TimeZone::UTC);
    let format = if now.saturating_sub(started) < 86_400 { "%H:%M" } else { "%b%d" };
    zoned.strftime(format).to_string()
}

/// Seconds since 1970 at which the host started.
fn boot_time() -> u64 {
    read::text("/proc/stat", read::LIST)
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
        })
        .unwrap_or_default()
}

/// The host's names of users.
fn users() -> HashMap<u32, String> {
    read::text("/etc/passwd", read::LIST)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ps_arguments_are_understood_or_refused() {
        assert_eq!(columns("").unwrap(), FULL);
        assert_eq!(columns("-ef").unwrap(), FULL);
        assert_eq!(columns("aux").unwrap(), BSD);
        assert_eq!(columns("-o pid,comm").unwrap(), [Column::Pid, Column::Comm]);
        assert_eq!(columns("-eopid -o args").unwrap(), [Column::Pid, Column::Args]);
        for bad in ["-o", "--forest", "-o pid,wat", "; rm -rf /"] {
            assert!(columns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_read_from_proc() {
        let own = Process::read(std::process::id(), COMMAND).unwrap();
        assert_eq!(own.show(Column::Pid, &HashMap::new(), 0), std::process::id().to_string());
        assert!(!own.command.is_empty());
        assert!(Process::read(u32::MAX, COMMAND).is_none());
        // Without room its name alone is shown.
        let short = Process::read(std::process::id(), 0).unwrap();
        assert!(short.command.starts_with('['), "{}", short.command);
    }

    #[test]
    fn limits_replace_and_cpus_are_said_one_way() {
        let mut limits = knarr_model::Resources {
            memory: Some(1 << 30),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            ..knarr_model::Resources::default()
        };
        let change = knarr_model::Resources {
            nano_cpus: Some(500_000_000),
            ..knarr_model::Resources::default()
        };
        merge(&mut limits, &change);
        assert_eq!(limits.memory, Some(1 << 30));
        assert_eq!((limits.nano_cpus, limits.cpu_quota), (Some(500_000_000), None));
    }
}
