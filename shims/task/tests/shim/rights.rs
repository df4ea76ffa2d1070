//! Who may speak to a shim and to the streams of its containers.

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

use crate::support::{Shim, sh};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// As nobody, connects to a socket, says something, and hears what comes.
fn speak_as_nobody(socket: &Path, words: &[u8]) -> std::io::Result<Vec<u8>> {
    seteuid(Uid::from_raw(65534)).unwrap();
    let stream = UnixStream::connect(socket);
    seteuid(Uid::from_raw(0)).unwrap();
    let mut stream = stream?;
    let mut heard = Vec::new();
    // It may be closed before everything was said.
    let _ = stream.write_all(words);
    let _ = stream.read_to_end(&mut heard);
    Ok(heard)
}

#[tokio::test]
async fn a01_a_shim_listens_to_its_owner_alone_whatever_the_umask() {
    // For the shim, which is started from here.
    umask(Mode::empty());
    let mut shim = Shim::start().await;
    let task = shim.run(&sh("cat").with_stdin()).await;
    let streams = task.bundle.join("attach.sock");
    // The directories of this test are open, so that the sockets alone decide.
    for directory in [shim.dir.path(), &task.bundle] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    // A request for all of the streams; nothing that ttrpc understands.
    let request = b"{\"exec\":\"\",\"stdin\":true,\"stdout\":true,\"stderr\":true}\n";
    for socket in [&shim.socket, &streams] {
        assert_eq!(mode(socket), 0o600, "{}", socket.display());
        let denied = speak_as_nobody(socket, request).expect_err("its mode says no");
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
        // Also where somebody opened the socket: who speaks counts.
        fs::set_permissions(socket, Permissions::from_mode(0o666)).unwrap();
        assert_eq!(speak_as_nobody(socket, request).unwrap(), b"", "{}", socket.display());
    }
    for name in ["json.log", "init.json"] {
        assert_eq!(mode(&task.bundle.join(name)) & 0o022, 0, "{name}");
    }
    // Its owner is served on.
    let mut attached = task.attach("");
    attached.send(b"echoed\n");
    attached.half_close();
    assert_eq!(task.wait().await, 0);
    assert_eq!(attached.read_frames().0, b"echoed\n");
}
