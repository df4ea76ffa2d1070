//! OCI runtime specification to launch plan; spawn, exec, signal, wait; cgroups and seccomp.
