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

/// A list of CPUs as the kernel's tools write it: a bit each, in hexadecimal digits. None
/// where it is no list.
pub fn cpu_mask(list: &str) -> Option<String> {
    let set = parse(list)?;
    let digits = (0..CpuSet::MAX_CPU / 4).rev().map(|digit| {
        let bits = (0..4).filter(|bit| set.is_set(digit * 4 + bit));
        bits.fold(0u32, |value, bit| value | 1 << bit)
    });
    let digits = digits.skip_while(|digit| *digit == 0);
    Some(digits.filter_map(|digit| char::from_digit(digit, 16)).collect())
}

#[cfg(test)]
mod tests {
    use super::{cpu_mask, parse};

    #[test]
    fn masks_are_hexadecimal() {
        assert_eq!(cpu_mask("0,1,5").as_deref(), Some("23"));
        assert_eq!(cpu_mask("64").as_deref(), Some("10000000000000000"));
        assert_eq!(cpu_mask("x"), None);
    }

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
