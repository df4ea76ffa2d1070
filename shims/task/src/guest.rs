//! What a container of containerd's is, decided by its specification.
//!
//! Annotations come from pods and images there: those that are knarrd's own words
//! are left out, whoever wrote them (RELIABILITY R18).

use knarr_model::task::WASM_ANNOTATION;
use oci_spec::runtime as oci;

use crate::error::Result;

/// knarrd's own annotations.
const OWN: [&str; 3] =
    [WASM_ANNOTATION, knarr_sandbox::SECCOMP_ANNOTATION, knarr_sandbox::INIT_ANNOTATION];

/// Prepares a specification that did not come from knarrd.
pub(crate) fn dispatch(spec: &mut oci::Spec) -> Result<()> {
    if let Some(annotations) = spec.annotations_mut() {
        annotations.retain(|name, _| !OWN.contains(&name.as_str()));
    }
    Ok(())
}
