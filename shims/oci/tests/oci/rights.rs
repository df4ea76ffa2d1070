//! Who may do something with a container that was made.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Uid, seteuid},
};

use crate::support::Bundle;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o7777
}

/// As nobody, connects to a socket, says go, and hears what comes.
fn say_go_as_nobody(socket: &Path) -> std::io::Result<usize> {
    seteuid(Uid::from_raw(65534)).expect("become nobody");
    let said = UnixStream::connect(socket).and_then(|mut stream| {
        stream.write_all(b"g")?;
        stream.read(&mut [0])
    });
    seteuid(Uid::from_raw(0)).expect("become root again");
    said
}

#[test]
fn a01_nobody_but_its_owner_starts_what_was_created_whatever_the_umask() {
    // For the program, which is started from here.
    umask(Mode::empty());
    let bundle = Bundle::script("true");
    bundle.create().fine();
    let home = bundle.path("state").join(&bundle.id);
    let socket = home.join("start.sock");
    assert_eq!(mode(&socket), 0o600);
    for entry in fs::read_dir(&home).expect("the state").flatten() {
        assert_eq!(mode(&entry.path()) & 0o022, 0, "{}", entry.path().display());
    }
    for directory in [home.clone(), bundle.path("state")] {
        assert_eq!(mode(&directory), 0o711, "{}", directory.display());
    }

    // The directory of this test is private; what is in it is reached.
    fs::set_permissions(bundle.dir.path(), Permissions::from_mode(0o755)).expect("open it");
    let denied = say_go_as_nobody(&socket).expect_err("its mode says no");
    assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);

    // Also where somebody opened the socket: who speaks counts.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("open it");
    let heard = say_go_as_nobody(&socket);
    assert!(matches!(heard, Ok(0) | Err(_)), "nobody was answered: {heard:?}");
    assert_eq!(bundle.status(), "created");

    bundle.verb(&["start"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
}
