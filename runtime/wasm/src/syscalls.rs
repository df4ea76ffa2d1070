//! System calls of `run` and `serve`; see the tests for how they were found.
