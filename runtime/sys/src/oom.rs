//! Whom the kernel kills first when memory runs out (proc_pid_oom_score_adj(5)).

use std::{fs, io};

use crate::read;

/// Makes this process less likely to be killed, unless it is so already. What it starts
/// from then on inherits that, see [`usual_oom_score`].
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without CAP_SYS_RESOURCE.
pub fn lower_oom_score(score: i32) -> io::Result<()> {
    if current("self")? > score { write("self", score) } else { Ok(()) }
}

/// Makes a child as likely to be killed as any other process, where it has inherited
/// less than that.
///
/// # Errors
/// When it has ended already.
pub fn usual_oom_score(pid: u32) -> io::Result<()> {
    let pid = pid.to_string();
    if current(&pid)? < 0 { write(&pid, 0) } else { Ok(()) }
}

fn current(pid: &str) -> io::Result<i32> {
    let text = read::text(format!("/proc/{pid}/oom_score_adj"), read::SMALL)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn write(pid: &str, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}
