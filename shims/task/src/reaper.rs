//! Orphans: descendants of a container's processes that became our children.
//!
//! With a pid namespace of its own, a container's orphans go to its own first
//! process; without (`--pid=host`), or when an exec's helper dies first, they
//! come to us, because we are a subreaper. Children that a task started are left
//! to the task, which alone may reap them.

use std::{future::Future, sync::Arc, time::Duration};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::signal::unix::{SignalKind, signal};

use crate::service::Tasks;

/// Reaps whatever nobody else does.
pub(crate) fn reap_strangers(
    tasks: Arc<Tasks>,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut children = signal(SignalKind::child())?;
    Ok(async move {
        loop {
            if children.recv().await.is_none() {
                return;
            }
            // One of a task's own hides those behind it until the task has
            // reaped it, without another signal.
            while !sweep(&tasks) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    })
}

/// Reaps strangers; false when a task's own child stands before the rest.
fn sweep(tasks: &Tasks) -> bool {
    loop {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let Ok(status) = waitid(Id::All, look | WaitPidFlag::WNOWAIT) else { return true };
        let Some(pid) = status.pid() else { return true };
        if tasks.owns(pid.as_raw().unsigned_abs()) {
            return false;
        }
        if waitid(Id::Pid(pid), look).is_err() {
            return true;
        }
    }
}
