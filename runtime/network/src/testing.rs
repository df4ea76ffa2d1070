//! For tests: network namespaces to play in. The machine's own network is
//! never touched.

use std::{fs::File, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own, where loopback is up.
pub(crate) fn in_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed to make a network namespace");
        crate::link::loopback_up(&crate::netlink::Socket::route().unwrap()).unwrap();
        test()
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A namespace that lives as long as the file.
pub(crate) fn new_netns() -> File {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}
