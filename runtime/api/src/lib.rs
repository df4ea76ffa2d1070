//! The Docker REST API over the engine.
