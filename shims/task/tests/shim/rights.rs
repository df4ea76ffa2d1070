//! Who may speak to a shim and to the streams of its containers.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Uid, seteuid},
};

use crate::support::{PATIENCE, Shim, sh};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// As nobody, connects to a socket, says something, and hears what comes.
fn speak_as_nobody(socket: &Path, words: &[u8]) -> std::io::Result<Vec<u8>> {
    seteuid(Uid::from_raw(65534)).unwrap();
    let stream = UnixStream::connect(socket);
    seteuid(Uid::from_raw(0)).unwrap();
    let mut stream = stream?;
    // Whoever is not heard meets the end at once.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut heard = Vec::new();
    // It may be closed before everything was said.
    let _ = stream.write_all(words);
    let end = stream.read_to_end(&mut heard);
    let waited = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!end.as_ref().is_err_and(waited), "it stays open: {heard:?}");
    Ok(heard)
}

/// A request without parameters, as ttrpc sends it: length, stream, type, flags, and then a
/// message of two strings.
fn ttrpc_request(service: &str, method: &str) -> Vec<u8> {
    let mut message = Vec::new();
    for (tag, text) in [(0x0a, service), (0x12, method)] {
        message.extend([tag, text.len() as u8]);
        message.extend(text.as_bytes());
    }
    let length = message.len() as u32;
    [&length.to_be_bytes()[..], &1u32.to_be_bytes(), &[1, 0], &message[..]].concat()
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
    // A request that the shim answers, and one for all of the streams.
    let connect = ttrpc_request("containerd.task.v2.Task", "Connect");
    let attach = b"{\"exec\":\"\",\"stdin\":true,\"stdout\":true,\"stderr\":true}\n";
    for (socket, request) in [(&shim.socket, &connect[..]), (&streams, &attach[..])] {
        assert_eq!(mode(socket), 0o600, "{}", socket.display());
        let denied = speak_as_nobody(socket, request).expect_err("its mode says no");
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
        // Also where somebody opened the socket: who speaks counts.
        fs::set_permissions(socket, Permissions::from_mode(0o666)).unwrap();
        assert_eq!(speak_as_nobody(socket, request).unwrap(), b"", "{}", socket.display());
    }
    // To its owner it is a request: a response, type 2, on the same stream.
    let mut owner = UnixStream::connect(&shim.socket).unwrap();
    owner.set_read_timeout(Some(PATIENCE)).unwrap();
    owner.write_all(&connect).unwrap();
    let mut head = [0; 10];
    owner.read_exact(&mut head).unwrap();
    assert_eq!(head[4..9], [0, 0, 0, 1, 2]);
    drop(owner);
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
