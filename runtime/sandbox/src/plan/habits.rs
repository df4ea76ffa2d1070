//! What every process of a container has in common beside its namespaces.

use knarr_init::wire::{Bytes, Op};
use oci_spec::runtime::{
    LinuxMemoryPolicy, LinuxPersonalityDomain, MemoryPolicyFlagType, MemoryPolicyModeType, Spec,
};

use crate::{Error, Failure, ops::Ops};

/// More memory nodes than any kernel is built for.
const MAX_NODES: usize = 1024;

/// Execution domain and memory policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Habits {
    persona: Option<u32>,
    /// Mode with flags, and a bit for each node.
    memory: Option<(u32, Vec<u8>)>,
}

impl Habits {
    pub(crate) fn of(spec: &Spec) -> Result<Self, Error> {
        let Some(linux) = spec.linux() else { return Ok(Self::default()) };
        let persona = linux.personality().as_ref().map(|personality| match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        });
        let memory = linux.memory_policy().as_ref().map(memory).transpose()?;
        Ok(Self { persona, memory })
    }

    pub(super) fn push(&self, ops: &mut Ops) {
        if let Some(persona) = self.persona {
            ops.push(Op::Personality { persona });
        }
        if let Some((mode, nodes)) = &self.memory {
            ops.push(Op::MemoryPolicy { mode: *mode, nodes: Bytes(nodes) });
        }
    }
}

/// linux/mempolicy.h
fn memory(policy: &LinuxMemoryPolicy) -> Result<(u32, Vec<u8>), Error> {
    use MemoryPolicyFlagType as Flag;
    use MemoryPolicyModeType as Mode;
    let bad = |text: String| Error::new(Failure::InvalidSpec, text);
    let mode: u32 = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0u32, |bits, flag| {
        bits | match flag {
            Flag::MpolFStaticNodes => 1 << 15,
            Flag::MpolFRelativeNodes => 1 << 14,
            Flag::MpolFNumaBalancing => 1 << 13,
        }
    });
    let text = policy.nodes().as_deref().unwrap_or_default();
    let nodes =
        nodes(text).ok_or_else(|| bad(format!("invalid memory policy node list {text:?}")))?;
    if mode == 0 && !nodes.is_empty() {
        let count: u32 = nodes.iter().map(|byte| byte.count_ones()).sum();
        return Err(bad(format!("invalid memory policy: mode requires 0 nodes but got {count}")));
    }
    Ok((mode | flags, nodes))
}

/// `0-3,7` as a mask of whole words.
fn nodes(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    if list.trim().is_empty() {
        return Some(mask);
    }
    if list.split(',').any(|part| part.trim().contains(char::is_whitespace)) {
        return None;
    }
    for node in crate::ranges::parse(list, MAX_NODES)?.into_iter().flatten() {
        mask.resize(mask.len().max((node / 64 + 1) * 8), 0u8);
        mask[node / 8] |= 1 << (node % 8);
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::nodes;

    #[test]
    fn node_lists_are_masks() {
        assert!(nodes("").expect("none").is_empty());
        assert_eq!(nodes("0-2,8").expect("a list"), [7, 1, 0, 0, 0, 0, 0, 0]);
        for bad in ["x", "2-1", "0-9876543210", "1,,2"] {
            assert!(nodes(bad).is_none(), "{bad}");
        }
    }
}
