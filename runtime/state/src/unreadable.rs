//! Rows that this version cannot read.
//!
//! One bad row keeps nothing from starting and is never taken for something
//! else: every list leaves it out, and it stays where it is until its record
//! mends it or a version that can read it comes (CATALOGUE K05).

use crate::{Db, Result, containers, images, networks, volumes};

/// A row that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What it is of: `container`, `image`, `network` or `volume`.
    pub kind: &'static str,
    /// Its key: an id, or a volume's name.
    pub key: String,
    /// Why.
    pub why: String,
}

impl Db {
    /// All rows of these kinds that cannot be read.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub fn unreadable(&self, kinds: &[&str]) -> Result<Vec<Unreadable>> {
        self.read(|db| {
            let mut all = Vec::new();
            for kind in kinds {
                all.extend(match *kind {
                    "container" => containers::unreadable(db)?,
                    "image" => images::unreadable(db)?,
                    "network" => networks::unreadable(db)?,
                    "volume" => volumes::unreadable(db)?,
                    _ => Vec::new(),
                });
            }
            Ok(all)
        })
    }
}
