//! Who is asked about the system calls of a `SCMP_ACT_NOTIFY` rule.
//!
//! The kernel gives the filter's listener to the process that loaded it. We
//! take it from there and send it, with a description of the container (the
//! specification's "container process state"), to the agent's socket. If the
//! agent is not there, the container does not start.

use std::{
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::Spec;
use rustix::{
    io::IoSlice,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{PidfdGetfdFlags, pidfd_getfd},
};
use serde_json::{Value, json};

use crate::{Child, Error};

/// Where the agent is, and what it is told.
#[derive(Debug)]
pub(crate) struct Teller {
    socket: PathBuf,
    state: Value,
}

impl Teller {
    /// None where no agent is named, as for every container of the engine's.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Option<Arc<Self>> {
        let seccomp = spec.linux().as_ref()?.seccomp().as_ref()?;
        let socket = seccomp.listener_path().clone().filter(|path| !path.as_os_str().is_empty())?;
        let state = json!({
            "ociVersion": spec.version(),
            "fds": ["seccompFd"],
            "metadata": seccomp.listener_metadata().clone().unwrap_or_default(),
            "state": {
                "ociVersion": spec.version(),
                "id": id,
                "status": "creating",
                "bundle": bundle,
                "annotations": spec.annotations().clone().unwrap_or_default(),
            },
        });
        Some(Arc::new(Self { socket, state }))
    }

    /// Hands the listener of a process over.
    pub(crate) fn tell(&self, child: &Child, number: i32) -> Result<(), Error> {
        let failed = |what: &'static str| {
            let socket = self.socket.display();
            move |error: std::io::Error| {
                Error::system(format_args!("seccomp agent {socket}: {what}"), error)
            }
        };
        let listener = pidfd_getfd(child.pidfd(), number, PidfdGetfdFlags::empty())
            .map_err(|errno| failed("take the listener")(errno.into()))?;
        let stream = UnixStream::connect(&self.socket).map_err(|error| {
            // runc's words.
            let socket = self.socket.display();
            Error::system(format_args!("failed to connect with seccomp agent {socket}"), error)
        })?;
        let mut state = self.state.clone();
        state["pid"] = child.pid().into();
        state["state"]["pid"] = child.pid().into();
        let text = state.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg(&stream, &bytes, &mut control, SendFlags::NOSIGNAL)
            .map_err(|errno| failed("send the listener")(errno.into()))?;
        Ok(())
    }
}
