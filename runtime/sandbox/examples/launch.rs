//! How long a container takes: create, start, exit, delete of `true`.
//!
//! ```text
//! cargo run --release -p knarr-sandbox --example launch -- [iterations]
//! ```
//!
//! Compare with a program of bare system calls on the same machine at the same
//! time, never with a constant.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::Result;

#[path = "../tests/common/mod.rs"]
mod common;

use common::Fixture;
use knarr_sandbox::Stdio;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

fn null() -> Result<Stdio> {
    let open = || File::options().read(true).write(true).open("/dev/null");
    Ok(Stdio::Fds { stdin: open()?.into(), stdout: open()?.into(), stderr: open()?.into() })
}

/// Processor time of this process and its children, which a busy machine does
/// not stretch as it does the clock's.
fn cpu() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::from_micros(time.num_microseconds() as u64);
        }
    }
    Ok(sum)
}

fn main() -> Result<()> {
    let iterations: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let fixture = Fixture::new(&["/bin/true"]);
    let spec = fixture.spec();
    let before = cpu()?;
    let mut phases = [const { Vec::new() }; 5];
    for _ in 0..iterations + 5 {
        let start = Instant::now();
        let created = fixture.create_from(&spec, null()?)?;
        let at_create = start.elapsed();
        let container = created.start()?;
        let at_start = start.elapsed();
        container.init().wait_blocking()?;
        let at_exit = start.elapsed();
        container.delete()?;
        let all = start.elapsed();
        let times = [at_create, at_start - at_create, at_exit - at_start, all - at_exit, all];
        for (phase, time) in phases.iter_mut().zip(times) {
            phase.push(time);
        }
    }
    let count = (iterations + 5) as u32;
    println!("processor time of one: {} us", ((cpu()? - before) / count).as_micros());
    for (name, times) in ["create", "start", "exit", "delete", "total"].iter().zip(&mut phases) {
        let mut times = times.split_off(5);
        times.sort_unstable();
        let (least, median) = (times[0], times[times.len() / 2]);
        println!("{name:8} min {:>6} median {:>6} us", least.as_micros(), median.as_micros());
    }
    Ok(())
}
