//! The first process of a container: carries out a launch plan, then execs.
