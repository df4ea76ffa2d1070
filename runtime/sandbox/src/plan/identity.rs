//! Who a process runs as.

/// A user as numbers; names were resolved in the container's own files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, as they are to be; none where the user namespace lets nobody
    /// choose.
    pub(crate) groups: Option<Vec<u32>>,
    /// Home directory, for an environment without `HOME`.
    pub(crate) home: Option<String>,
}
