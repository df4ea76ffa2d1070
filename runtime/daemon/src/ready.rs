//! Telling others that the daemon is there: the service manager
//! (sd_notify(3)), a starter's pipe, a pid file.

use std::{
    fs,
    io::Write,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use knarr_sys::{ProcessStat, read};

/// Tells the service manager, where there is one.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = (|| -> std::io::Result<()> {
        let text = path.to_string_lossy();
        let address = match text.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(Path::new(&path))?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    })();
    if let Err(error) = told {
        tracing::warn!("notify the service manager: {error}");
    }
}

/// Writes a byte to a descriptor that the starter left open.
pub(crate) fn tell(descriptor: i32) -> Result<()> {
    ensure!(descriptor >= 0, "invalid --ready-fd {descriptor}");
    let path = format!("/proc/self/fd/{descriptor}");
    let mut pipe = fs::File::options()
        .write(true)
        .open(&path)
        .with_context(|| format!("--ready-fd {descriptor}"))?;
    // Whoever waited may have gone: then nobody needs to know.
    let _ = pipe.write_all(b"\n");
    Ok(())
}

/// The pid file, for as long as the daemon lives.
#[derive(Debug)]
pub(crate) struct PidFile(PathBuf);

impl PidFile {
    /// Writes it, unless the daemon that it names still runs.
    pub(crate) fn write(path: &Path) -> Result<Self> {
        if let Some(pid) =
            read::text(path, read::SMALL).ok().and_then(|text| text.trim().parse::<u32>().ok())
        {
            ensure!(
                pid == std::process::id() || !is_daemon(pid),
                "failed to start daemon, ensure it is not already running or delete {}: process with PID {pid} is still running",
                path.display()
            );
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, std::process::id().to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

/// A process of that number is one of us: numbers are used again after a crash.
fn is_daemon(pid: u32) -> bool {
    ProcessStat::of(pid).is_ok_and(|stat| stat.name() == b"knarrd")
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a12_a_stale_pid_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        // Process 1 is alive and not a knarrd.
        fs::write(&path, "1\n").unwrap();
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(file);
        assert!(!path.exists());
    }
}
