//! On which CPUs a foreign process may run: not its maker's, which a caller may
//! have been pinned to, but all that its cpuset has, unless its specification
//! says which.

use oci_spec::runtime::ExecCPUAffinity;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use crate::{Child, Error, Failure};

/// Before it is in its cpuset: the kernel keeps what is asked for here and gives
/// it what both have.
pub(crate) fn set(child: &Child, wanted: Option<&ExecCPUAffinity>) -> Result<(), Error> {
    let wanted = wanted
        .and_then(|wanted| wanted.cpu_affinity_final().as_deref().or(wanted.initial().as_deref()));
    let set = match wanted.filter(|list| !list.is_empty()) {
        Some(list) => parse(list).ok_or_else(|| {
            Error::new(Failure::InvalidSpec, format!("{list:?} is no list of CPUs"))
        })?,
        None => all(),
    };
    match sched_setaffinity(Pid::from_raw(child.pid() as i32), &set) {
        Ok(()) => Ok(()),
        // Nobody asked for it.
        Err(_) if wanted.is_none() => Ok(()),
        Err(errno) => Err(Error::system("set the CPU affinity", errno)),
    }
}

fn all() -> CpuSet {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    set
}

/// `0-3,7`
fn parse(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    crate::ranges::parse(list, CpuSet::MAX_CPU)?.into_iter().flatten().for_each(|cpu| set.set(cpu));
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lists_are_read() {
        let set = parse("0-2,5").expect("a list");
        let cpus: Vec<usize> = (0..8).filter(|cpu| set.is_set(*cpu)).collect();
        assert_eq!(cpus, [0, 1, 2, 5]);
        for bad in ["", "a", "3-1", "0-9999", "1,"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
