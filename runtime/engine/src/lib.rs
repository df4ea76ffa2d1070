//! The engine: containers, exec, logs, events, recovery.
