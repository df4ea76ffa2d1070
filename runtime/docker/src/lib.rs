//! The Docker REST vocabulary: types only.
