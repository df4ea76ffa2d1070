//! What capabilities a container's processes have: Docker's defaults, what is added and
//! dropped, and what this host can give.

use std::collections::BTreeSet;

use knarr_model::{
    ContainerSpec,
    capability::{ALL, DEFAULT},
};
use serde_json::{Value, json};

use crate::{Error, Result, oci::Host};

/// Those of a process with this list, as its user has them.
pub(crate) fn sets(capabilities: &[String], spec: &ContainerSpec) -> Value {
    let root = spec.user.as_deref().is_none_or(|user| {
        let name = user.split(':').next().unwrap_or_default();
        matches!(name, "" | "0" | "root")
    });
    // The kernel itself takes them from a user that is not root at exec; Docker
    // leaves them in the bounding set only.
    let held: &[String] = if root { capabilities } else { &[] };
    json!({"bounding": capabilities, "permitted": held, "effective": held})
}

/// What capabilities an exec gets.
pub(crate) fn of_exec(
    spec: &ContainerSpec,
    privileged: bool,
    user: Option<&str>,
    host: &Host,
) -> Result<Value> {
    let list = if privileged { known(host) } else { of(spec, host)? };
    let with_user = ContainerSpec { user: user.map(str::to_owned), ..ContainerSpec::default() };
    Ok(sets(&list, &with_user))
}

/// Whether a container may change its own network: its packets may then come from
/// addresses that the engine did not give it.
pub(crate) fn may_set_addresses(spec: &ContainerSpec, host: &Host) -> bool {
    of(spec, host).is_ok_and(|list| list.iter().any(|name| name == "CAP_NET_ADMIN"))
}

fn known(host: &Host) -> Vec<String> {
    let count = if host.last_capability == 0 { ALL.len() } else { host.last_capability + 1 };
    ALL.iter()
        .take(count)
        .enumerate()
        .filter(|(bit, _)| host.lacking >> bit & 1 == 0)
        .map(|(_, &name)| name.to_owned())
        .collect()
}

/// Docker's arithmetic (moby `daemon/pkg/oci/caps/utils.go`).
pub(crate) fn of(spec: &ContainerSpec, host: &Host) -> Result<Vec<String>> {
    if spec.security.privileged {
        return Ok(known(host));
    }
    let normal = |name: &String, verb: &str| -> Result<String> {
        let upper = name.to_ascii_uppercase();
        let full = if upper == "ALL" || upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        };
        if full == "ALL" || ALL.contains(&full.as_str()) {
            Ok(full)
        } else {
            Err(Error::invalid(format!("invalid Cap{verb}: unknown capability: {name:?}")))
        }
    };
    let add: Vec<String> =
        spec.security.cap_add.iter().map(|name| normal(name, "Add")).collect::<Result<_>>()?;
    let drop: Vec<String> =
        spec.security.cap_drop.iter().map(|name| normal(name, "Drop")).collect::<Result<_>>()?;
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut held: Vec<String> = if all(&add) {
        known(host)
    } else if all(&drop) {
        Vec::new()
    } else {
        DEFAULT.iter().map(|&name| name.to_owned()).collect()
    };
    if !all(&drop) {
        held.retain(|name| !drop.contains(name));
    }
    if !all(&add) {
        held.extend(add.into_iter().filter(|name| !drop.contains(name)));
    }
    let mut seen = BTreeSet::new();
    held.retain(|name| seen.insert(name.clone()));
    Ok(held)
}

/// Whether a list of capabilities means something.
pub(crate) fn check(spec: &ContainerSpec, host: &Host) -> Result<()> {
    of(spec, host).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n07_only_who_may_set_addresses_is_believed_about_them() {
        const NET_ADMIN: u32 = 12;
        let whole = Host { last_capability: 40, ..Host::default() };
        let poor = Host { lacking: 1 << NET_ADMIN, ..whole.clone() };
        let may = |host: &Host, privileged: bool, add: &[&str], drop: &[&str]| {
            let mut spec = ContainerSpec::default();
            spec.security.privileged = privileged;
            spec.security.cap_add = add.iter().map(|&name| name.into()).collect();
            spec.security.cap_drop = drop.iter().map(|&name| name.into()).collect();
            may_set_addresses(&spec, host)
        };
        let none: &[&str] = &[];
        for (privileged, add, drop, wanted) in [
            (false, none, none, false),
            (false, &["NET_RAW", "SYS_ADMIN"], &[], false),
            (false, &["NET_ADMIN"], &[], true),
            (false, &["cap_net_admin"], &[], true),
            (false, &["NET_ADMIN"], &["NET_ADMIN"], false),
            (false, &["NET_ADMIN"], &["ALL"], true),
            (false, &["ALL"], &[], true),
            (false, &["ALL"], &["NET_ADMIN"], false),
            (false, &[], &["ALL"], false),
            (true, &[], &[], true),
        ] {
            let case = (privileged, add, drop);
            assert_eq!(may(&whole, privileged, add, drop), wanted, "{case:?}");
        }
        // What the engine does not have, nobody has from it.
        assert!(!may(&poor, true, none, none) && !may(&poor, false, &["ALL"], none));
    }
}
