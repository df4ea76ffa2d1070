//! What `run` and `serve` give up themselves, beside what the jail never gave them.
//!
//! ```text
//!  launch, directories opened ─ limits ─ Landlock ─┬─ threads ─ code mapped ─ calls.rs ─ gate ─ guest
//!                                                  │
//!                     one thread until here: it is for those that come after
//! ```
//!
//! The mounts, namespaces and filter of `knarr-sandbox` hold without this; it is
//! there for the day on which one of them does not.

use std::os::fd::{AsFd as _, OwnedFd};

use knarr_sys::landlock::{Ruleset, Tcp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wasmtime::{Result, error::Context as _};

/// Lowers limits to these, where they are not lower already.
pub(crate) fn limit(limits: &[(Resource, u64)]) -> Result<()> {
    for (resource, most) in limits {
        let inherited = getrlimit(*resource);
        let lower = |limit: Option<u64>| Some(limit.unwrap_or(u64::MAX).min(*most));
        let wanted =
            Rlimit { current: lower(inherited.current), maximum: lower(inherited.maximum) };
        setrlimit(*resource, wanted).with_context(|| format!("cannot limit {resource:?}"))?;
    }
    Ok(())
}

/// Confines this thread, and those that it starts, to the files and ports that were
/// granted: directories, and whether they may be written. `ports` are those of TCP, where
/// there is a network; `descriptors` is how many it may have, where nobody chose that.
pub(crate) fn confine(
    trees: &[(OwnedFd, bool)],
    ports: Option<&[u16]>,
    descriptors: Option<u64>,
) -> Result<()> {
    // Nothing here leaves a core, sends POSIX messages or pins memory.
    limit(&[(Resource::Core, 0), (Resource::Msgqueue, 0), (Resource::Memlock, 0)])?;
    if let Some(most) = descriptors {
        limit(&[(Resource::Nofile, most)])?;
    }
    rustix::thread::set_no_new_privs(true).context("cannot give up new privileges")?;
    let tcp = if ports.is_some() { Tcp::BindsGranted } else { Tcp::Denied };
    let Some(rules) = Ruleset::new(tcp).context("cannot use Landlock")? else { return Ok(()) };
    for (directory, write) in trees {
        rules.allow_tree(directory.as_fd(), *write).context("cannot grant a directory")?;
    }
    // 0 is the kernel's choice, for who connects.
    for port in ports.iter().flat_map(|ports| [0].iter().chain(*ports)) {
        rules.allow_port(*port).context("cannot grant a port")?;
    }
    rules.restrict().context("cannot use Landlock")
}
