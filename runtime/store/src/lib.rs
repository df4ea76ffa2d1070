//! Content-addressed blobs and overlay snapshots.
