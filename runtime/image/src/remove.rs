//! Untagging and deleting, as Docker does it (moby `daemon/images/image_delete.go`).
//!
//! ```text
//!   by name   the name goes; with the last one, the image, unless a container has it
//!   by id     every name of one repository goes, and the image
//! ```
//!
//! The row goes first, in one transaction with its names; a container's row
//! that names it forbids that, whatever was known before. What nothing names
//! any more is swept afterwards.

use std::collections::BTreeSet;

use knarr_model::{Digest, Reference};
use knarr_state::images::ImageRow;

use crate::{
    Error, Image, ImageUser, Pruned, RemoveOptions, Removed, Result, images::Inner, progress::short,
};

type Users<'a> = &'a dyn Fn(&Digest) -> Vec<ImageUser>;

pub(crate) fn remove(
    inner: &Inner,
    name: &str,
    options: RemoveOptions,
    users: Users<'_>,
) -> Result<Vec<Removed>> {
    let (mut removed, image) = names_of(inner, name, options, users)?;
    if let Some(image) = image
        && inner.contents.db.image_remove(&image)?
    {
        inner.contents.record([image]);
        removed.push(Removed::Deleted(image));
        removed.extend(inner.sweep_now()?.removed);
    }
    Ok(removed)
}

/// Takes names away; answers the image where it is to be deleted too.
fn names_of(
    inner: &Inner,
    name: &str,
    options: RemoveOptions,
    users: Users<'_>,
) -> Result<(Vec<Removed>, Option<Digest>)> {
    let row = inner.row(name)?;
    let using = users(&row.id);
    let all: Vec<Reference> = row.tags.iter().chain(&row.digests).cloned().collect();
    if !is_id(name, &row) {
        let reference = named(name)?;
        if !options.force
            && is_single(&row)
            && let Some(user) = using.first()
        {
            return Err(Error::Conflict {
                action: "remove repository reference",
                name: format!("{name:?}"),
                how: "must force",
                why: format!(
                    "container {} is using its referenced image {}",
                    user.container,
                    short(&row.id)
                ),
            });
        }
        let gone = with_orphans(&reference, &row);
        inner.contents.db.image_unname(&gone)?;
        inner.contents.record([row.id]);
        let removed = untagged(&gone);
        // Other names remain, or a container has it: that was all.
        let last = all.iter().all(|other| gone.contains(other));
        return Ok((removed, (last && using.is_empty()).then_some(row.id)));
    }
    let conflict =
        |how, why| Err(Error::Conflict { action: "delete", name: short(&row.id), how, why });
    if let Some(user) = using.iter().find(|user| user.running) {
        let why = format!("image is being used by running container {}", user.container);
        return conflict("cannot be forced", why);
    }
    if !options.force {
        if !is_single(&row) {
            return conflict(
                "must be forced",
                "image is referenced in multiple repositories".into(),
            );
        }
        if let Some(user) = using.first() {
            let why = format!("image is being used by stopped container {}", user.container);
            return conflict("must be forced", why);
        }
    }
    inner.contents.db.image_unname(&all)?;
    inner.contents.record([row.id]);
    Ok((untagged(&all), Some(row.id)))
}

/// Whether the user gave the image's id or its first digits.
fn is_id(name: &str, row: &ImageRow) -> bool {
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    row.id.hex().starts_with(digits)
}

fn named(name: &str) -> Result<Reference> {
    let reference: Reference = name.parse()?;
    Ok(match reference.digest() {
        Some(digest) => reference.with_digest(digest),
        None => reference,
    })
}

fn repository(name: &Reference) -> (String, String) {
    (name.domain().to_owned(), name.path().to_owned())
}

/// At most one tag, and all names in one repository.
fn is_single(row: &ImageRow) -> bool {
    let repositories: BTreeSet<_> = row.tags.iter().chain(&row.digests).map(repository).collect();
    row.tags.len() <= 1 && repositories.len() <= 1
}

/// A name, and the digests of its repository where no tag of it remains.
fn with_orphans(reference: &Reference, row: &ImageRow) -> Vec<Reference> {
    let mut gone = vec![reference.clone()];
    let same = |other: &&Reference| repository(other) == repository(reference);
    if reference.tag().is_some() && !row.tags.iter().filter(same).any(|tag| tag != reference) {
        gone.extend(row.digests.iter().filter(same).cloned());
    }
    gone
}

fn untagged(names: &[Reference]) -> Vec<Removed> {
    names.iter().map(|name| Removed::Untagged(name.familiar())).collect()
}

pub(crate) fn prune(
    inner: &Inner,
    images: Vec<Image>,
    all: bool,
    wanted: &dyn Fn(&Image) -> bool,
    users: Users<'_>,
) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    for image in images {
        let dangling = image.row.tags.is_empty();
        if !(all || dangling) || !wanted(&image) || !users(&image.row.id).is_empty() {
            continue;
        }
        if inner.contents.db.image_remove(&image.row.id)? {
            inner.contents.record([image.row.id]);
            let names: Vec<Reference> =
                image.row.tags.iter().chain(&image.row.digests).cloned().collect();
            pruned.removed.extend(untagged(&names));
            pruned.removed.push(Removed::Deleted(image.row.id));
        }
    }
    let swept = inner.sweep_all()?;
    pruned.removed.extend(swept.removed);
    pruned.reclaimed = swept.reclaimed;
    Ok(pruned)
}
