//! What a container's processes may ask of the kernel.
//!
//! ```text
//!  Docker's JSON ─┐                    ┌─ intervals of numbers ─ balanced tree ─┐
//!  OCI seccomp   ─┼▶ Policy (by name) ─┤  for each ABI                          ├▶ Filter
//!  wasm.json     ─┘                    └─ blocks of argument comparisons ───────┘
//! ```
//!
//! Compiled filters are kept by what they were made of, so a shim compiles each
//! once. The kernel evaluates a new filter for every system call's number when
//! it is loaded: a tree makes that, and each call, four times quicker than a list.

mod compile;
mod policy;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag, Spec};

use crate::{
    Error, Failure, SECCOMP_ANNOTATION,
    plan::{annotation, is_wasm, mask_of},
};
use policy::{Policy, Profile};

/// Docker's profile: github.com/moby/profiles `seccomp/default.json` (Apache-2.0).
const DOCKER: &str = include_str!("../../data/docker.json");
/// What the Wasm host needs, and nothing else.
const WASM: &str = include_str!("../../data/wasm.json");

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    flags: u32,
    bytes: Vec<u8>,
    notifies: bool,
}

impl Filter {
    /// SECCOMP_FILTER_FLAG_* bits.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// Somebody is asked about some calls.
    pub(crate) fn notifies(&self) -> bool {
        self.notifies
    }

    /// Instructions, eight bytes each.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What the specification wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Everything is allowed.
    Unconfined,
    /// Docker's profile, for the capabilities of the container's own process: what a
    /// later one has beyond them opens nothing (as with runc, whose filter is the
    /// container's).
    Docker { capabilities: u64 },
    /// A profile of the caller's.
    Given(Box<LinuxSeccomp>),
    /// The jail of a Wasm host.
    Wasm,
}

/// What a compiled filter was made of.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Docker { capabilities: u64 },
    Wasm,
    Given(String),
}

static COMPILED: LazyLock<Mutex<HashMap<Key, Arc<Filter>>>> = LazyLock::new(Default::default);
/// More profiles than any pod has; a hostile caller cannot grow us.
const MAX_COMPILED: usize = 64;

impl Choice {
    pub(crate) fn of(spec: &Spec) -> Result<Self, Error> {
        if is_wasm(spec) {
            return Ok(Self::Wasm);
        }
        match annotation(spec, SECCOMP_ANNOTATION) {
            Some("default") => {
                let process = spec.process().as_ref();
                let all = process.and_then(|process| process.capabilities().as_ref());
                let bounding = all.and_then(|all| all.bounding().as_ref());
                return Ok(Self::Docker { capabilities: bounding.map_or(0, mask_of) });
            }
            Some("unconfined") => return Ok(Self::Unconfined),
            Some(other) => {
                let text = format!("annotation {SECCOMP_ANNOTATION}: {other:?} is unknown");
                return Err(Error::new(Failure::InvalidSpec, text));
            }
            None => {}
        }
        let given = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        Ok(given.map_or(Self::Unconfined, |given| Self::Given(Box::new(given))))
    }

    /// The filter of its processes.
    pub(crate) fn filter(&self) -> Result<Option<Arc<Filter>>, Error> {
        let key = match self {
            Self::Unconfined => return Ok(None),
            Self::Wasm => Key::Wasm,
            Self::Docker { capabilities } => Key::Docker { capabilities: *capabilities },
            Self::Given(given) => Key::Given(
                serde_json::to_string(given)
                    .map_err(|error| Error::system("encode the seccomp profile", error))?,
            ),
        };
        let compiled = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = compiled().get(&key) {
            return Ok(Some(filter.clone()));
        }
        let (policy, flags) = match (self, &key) {
            (Self::Given(given), _) => (Policy::from_oci(given)?, flags(given)),
            (_, Key::Docker { capabilities }) => {
                (Profile::parse(DOCKER)?.resolve(*capabilities, kernel()), 0)
            }
            _ => (Profile::parse(WASM)?.resolve(0, kernel()), 0),
        };
        let notifies = policy.rules.iter().any(|rule| rule.action == policy::NOTIFY);
        let filter = Arc::new(Filter { flags, bytes: compile::compile(&policy)?, notifies });
        let mut all = compiled();
        if all.len() >= MAX_COMPILED {
            all.clear();
        }
        all.insert(key, filter.clone());
        Ok(Some(filter))
    }

    /// The filter of a later process: the container's own.
    pub(crate) fn filter_again(
        &self,
        own: Option<&Arc<Filter>>,
    ) -> Result<Option<Arc<Filter>>, Error> {
        match own {
            Some(own) => Ok(Some(own.clone())),
            // One that was found again has not compiled it yet.
            None => self.filter(),
        }
    }
}

fn flags(given: &LinuxSeccomp) -> u32 {
    let notifies = given
        .syscalls()
        .iter()
        .flatten()
        .any(|rule| rule.action() == oci_spec::runtime::LinuxSeccompAction::ScmpActNotify);
    given.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
            // One thread only; and no listener is waited for.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            // Only with a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => match notifies {
                true => 32,
                false => 0,
            },
        }
    })
}

/// The kernel's version, for rules that ask for one.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    policy::version(&release).unwrap_or((0, 0))
}
