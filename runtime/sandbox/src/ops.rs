//! A launch under construction: operations as bytes, descriptors as wishes.

use std::{
    ffi::{CStr, CString},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use knarr_init::wire::{Fd, List, Op, Reader};

use crate::{Error, Failure};

/// A descriptor that the launch needs; opened by the executor in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The root filesystem, as a detached mount.
    Root,
    /// An empty filesystem of this mode, as a detached mount.
    Empty {
        /// Permissions of its root.
        mode: u32,
    },
    /// The file of a namespace.
    Namespace(PathBuf),
    /// The pidfd of the container's first process.
    Container,
    /// A copy of what is at a path of the host, as a detached mount.
    Bind(Bind),
    /// A file of the host, for reading or executing.
    File(PathBuf),
    /// A cgroup's file, for writing.
    Tasks(PathBuf),
    /// A sealed file of this text, in memory.
    Data(String),
    /// What the caller gives the program to inherit, by its place.
    Inherited(u32),
    /// Where the caller lets it wait.
    Listener,
    /// The same as [`Wish::Bind`], with owners mapped, also beneath.
    Mapped(Bind, Owners, bool),
    /// A new tmpfs with what the root filesystem has at its place.
    Copied {
        /// Absolute path in the container.
        target: PathBuf,
        /// MOUNT_ATTR_* bits.
        attributes: u64,
        /// Options of tmpfs.
        options: Vec<String>,
    },
}

/// How a path of the host appears in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Path on the host.
    pub(crate) source: PathBuf,
    /// With the mounts beneath it.
    pub(crate) recursive: bool,
    /// MOUNT_ATTR_* of the mount itself: set, cleared.
    pub(crate) attributes: (u64, u64),
    /// The same for the mounts beneath it too.
    pub(crate) deep_attributes: (u64, u64),
    /// MS_PRIVATE, MS_SLAVE or MS_SHARED, and whether that is so for those beneath.
    pub(crate) propagation: (u64, bool),
}

/// One change of a mount, or of all beneath it too: attributes to set and to clear, and
/// the propagation.
pub(crate) type Change = (bool, (u64, u64), u64);

impl Bind {
    /// What makes of a mere copy what is wanted.
    pub(crate) fn changes(&self) -> [Option<Change>; 2] {
        let (propagation, everywhere) = self.propagation;
        let ((set, clear), (more, less)) = (self.attributes, self.deep_attributes);
        if !self.recursive {
            // One mount: what is for all of them is for it.
            return [Some((false, (set | more, clear | less), propagation)), None];
        }
        let (one, all) = if everywhere { (0, propagation) } else { (propagation, 0) };
        let change = |recursive, attributes, propagation| {
            let nothing = attributes == (0, 0) && propagation == 0;
            (!nothing).then_some((recursive, attributes, propagation))
        };
        [change(true, (more, less), all), change(false, (set, clear), one)]
    }
}

/// Who is who: lines of `inside outside count`, as uid_map and gid_map take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    /// Users.
    pub(crate) users: String,
    /// Groups.
    pub(crate) groups: String,
}

/// Whose numbers the owners of a mount's files are mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Those of these maps.
    Maps(IdMaps),
    /// Those of a user namespace that is there.
    Namespace(PathBuf),
}

/// A launch: pure data until the executor opens the descriptors.
#[derive(Default, Clone, PartialEq, Eq)]
pub(crate) struct Ops {
    pub(crate) bytes: Vec<u8>,
    pub(crate) wishes: Vec<Wish>,
    /// What is opened when it is asked for.
    later: Vec<Wish>,
}

impl Ops {
    pub(crate) fn push(&mut self, op: Op<'_>) {
        op.encode(&mut self.bytes);
    }

    pub(crate) fn wish(&mut self, wish: Wish) -> Fd {
        self.wishes.push(wish);
        Fd(self.wishes.len() as u32 - 1)
    }

    /// The same for what is to be younger than everything that was mounted before.
    pub(crate) fn wish_later(&mut self, wish: Wish) -> Fd {
        self.later.push(wish);
        Fd(Fd::LATER | (self.later.len() as u32 - 1))
    }

    /// An operation list that another process has left.
    pub(crate) fn left(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// What an operation was, for the message about its failure.
    pub(crate) fn get(&self, index: u32) -> Option<Op<'_>> {
        self.iter().nth(index as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Op<'_>> {
        let mut reader = Reader(&self.bytes);
        std::iter::from_fn(move || Op::decode(&mut reader))
    }

    /// Whether the program itself waits to be told to go on.
    pub(crate) fn begins_by_itself(&self) -> bool {
        self.iter().any(|op| matches!(op, Op::ReadyAhead {}))
    }

    /// What a descriptor was to be.
    pub(crate) fn wished(&self, fd: Fd) -> Option<&Wish> {
        match fd.later() {
            Some(place) => self.later.get(place),
            None => self.wishes.get(fd.0 as usize),
        }
    }
}

/// The golden form: one line an operation.
impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, wish) in self.wishes.iter().enumerate() {
            writeln!(f, "fd {index}: {wish:?}")?;
        }
        for (index, wish) in self.later.iter().enumerate() {
            writeln!(f, "later {index}: {wish:?}")?;
        }
        for op in self.iter() {
            writeln!(f, "{op:?}")?;
        }
        Ok(())
    }
}

/// Strings one behind the other.
#[derive(Default)]
pub(crate) struct Strings {
    count: u32,
    bytes: Vec<u8>,
}

impl Strings {
    /// `what` names the strings in the error about a zero byte.
    pub(crate) fn new<S: AsRef<[u8]>>(
        what: &str,
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        let mut new = Self::default();
        for string in strings {
            let string = string.as_ref();
            if string.contains(&0) {
                let text = format!("{what} contains a zero byte");
                return Err(Error::new(Failure::InvalidSpec, text));
            }
            new.bytes.extend_from_slice(string);
            new.bytes.push(0);
            new.count += 1;
        }
        Ok(new)
    }

    pub(crate) fn list(&self) -> List<'_> {
        List { count: self.count, bytes: &self.bytes }
    }
}

/// A C string of text from the specification.
pub(crate) fn c_string(what: &str, bytes: impl AsRef<[u8]>) -> Result<CString, Error> {
    CString::new(bytes.as_ref())
        .map_err(|_| Error::new(Failure::InvalidSpec, format!("{what} contains a zero byte")))
}

/// A path in the container: absolute, without `..`, `.` and repeated slashes.
/// Names that lead up are refused rather than resolved: nobody needs them.
pub(crate) fn container_path(path: &Path) -> Result<CString, Error> {
    let bad =
        |why: &str| Error::new(Failure::InvalidSpec, format!("path {:?} {why}", path.display()));
    let mut clean = Vec::new();
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => {
                clean.push(b'/');
                clean.extend_from_slice(name.as_bytes());
            }
            std::path::Component::ParentDir => return Err(bad("contains ..")),
            _ => {}
        }
    }
    if !path.is_absolute() {
        return Err(bad("is not absolute"));
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    if clean.len() > 4095 {
        return Err(bad("is too long"));
    }
    CString::new(clean).map_err(|_| bad("contains a zero byte"))
}

/// For messages.
pub(crate) fn show(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s02_paths_in_the_container_are_absolute_and_lead_nowhere_up() {
        for (given, wanted) in [("/", c"/"), ("//a/./b/", c"/a/b"), ("/a", c"/a")] {
            assert_eq!(container_path(Path::new(given)).expect(given).as_c_str(), wanted);
        }
        for bad in ["", "a", "/a/../b", "/..", "../x", "/a\0b", &format!("/{}", "x/".repeat(3000))]
        {
            assert!(container_path(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
