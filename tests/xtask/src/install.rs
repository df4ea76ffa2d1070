//! Puts the programs and a systemd unit in place.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::run::products;

const PROGRAMS: [&str; 5] =
    ["knarr", "knarrd", "containerd-shim-knarr-v1", "knarr-wasm", "knarr-oci"];

/// Installs below `prefix`, as `install(1)` would: to a new file first, then a
/// rename, so that a running engine keeps the program it has.
pub fn install(prefix: &str) -> Result<()> {
    let from = products()?;
    let bin = Path::new(prefix).join("bin");
    fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
    for program in PROGRAMS {
        place(
            &bin.join(program),
            &fs::read(from.join(program)).with_context(|| program.to_owned())?,
            0o755,
        )?;
    }
    let units = Path::new(prefix).join("lib/systemd/system");
    fs::create_dir_all(&units).with_context(|| units.display().to_string())?;
    place(&units.join("knarr.service"), unit(&bin).as_bytes(), 0o644)?;
    println!("hint: systemctl daemon-reload && systemctl enable --now knarr");
    Ok(())
}

fn place(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let new: PathBuf = path.with_extension("new");
    fs::write(&new, content).with_context(|| new.display().to_string())?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path).with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(())
}

/// Containers outlive the daemon, so the unit ends only the daemon itself, and
/// the cgroups below it are Knarr's to make.
fn unit(bin: &Path) -> String {
    format!(
        "[Unit]
Description=Knarr container engine
Documentation=man:knarrd(8)
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={}/knarrd
ExecReload=/bin/kill -s HUP $MAINPID
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
",
        bin.display()
    )
}
