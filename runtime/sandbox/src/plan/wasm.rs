//! The Wasm jail: the same corridor, a barer room.
//!
//! ```text
//! /                 empty, read-only
//! /rootfs           the image, read-only unless granted
//! /rootfs/<target>  volumes and tmpfs of the specification
//! ```
//!
//! Whatever the specification names is found with the image's root as `/` ([`Op::Within`]), so
//! that a link of the image leads to the image's files and never to the jail's own.
//!
//! No `/proc`, no `/dev`, no `/etc`; nothing on any mount can be executed, has
//! the rights of its owner or is a device. No capabilities, no_new_privs, an
//! allow-list of system calls. The program is `knarr-wasm` by descriptor; 3 is its
//! launch, 4 its code. When it has loaded that, it gives up more (`runtime/wasm`,
//! `confine.rs` and `calls.rs`).
//!
//! It is alone in a user namespace that knows one user and one group: the
//! container's, by the numbers that they have on the host. So what it writes to a
//! volume belongs to whom it would belong in a native container, and what a native
//! container of that user wrote can be read; but neither root of that namespace nor
//! any capability in it is worth anything outside. An own range of numbers for each
//! container would need a mapped mount of the root filesystem, which an overlay
//! cannot have. A container whose engine is in a user namespace itself stays in that.

use std::path::Path;

use knarr_init::wire::{Op, SOCKET_FD};
use knarr_model::{
    WasmAbi,
    task::{WASM_ANNOTATION, WasmLaunch},
};
use oci_spec::runtime::{PosixRlimitType, Process, Spec};
use serde::Serialize;

use super::{
    Context, Namespaces, annotation, enter, join_cgroups, labels, let_go, mounts, names,
    namespaces as kinds, process as steps,
};
use crate::{
    Error, Failure,
    ops::{Ops, Strings, Wish},
};

/// What `knarr-wasm` reads from descriptor 3.
#[derive(Serialize)]
struct Message<'a> {
    launch: &'a WasmLaunch,
    args: &'a [String],
    env: &'a [String],
    cwd: &'a Path,
    terminal: bool,
    /// The most descriptors it is to have, where nobody has said.
    descriptors: Option<u64>,
    /// The socket on which it is told to begin: the host program is started
    /// ahead, so that it is ready when the network is.
    gate: Option<i32>,
}

/// Descriptors of a host whose specification does not limit them: what a thousand
/// connections and their files need, several times.
const DESCRIPTORS: u64 = 16_384;
/// What entering a user namespace and choosing who is in it takes: SETGID, SETUID, SETFCAP.
const CHOOSING: u64 = 1 << 6 | 1 << 7 | 1 << 31;

/// The launch in the annotation, where there is one.
pub(super) fn launch_of(spec: &Spec) -> Result<Option<WasmLaunch>, Error> {
    let Some(text) = annotation(spec, WASM_ANNOTATION) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| {
        let text = format!("annotation {WASM_ANNOTATION} is not a launch: {error}");
        Error::new(Failure::InvalidSpec, text)
    })
}

pub(super) fn create(
    spec: &Spec,
    process: &Process,
    namespaces: &Namespaces,
    launch: &WasmLaunch,
    context: &Context<'_>,
) -> Result<Ops, Error> {
    let mut ops = Ops::default();
    // Executed before its network is there, but where another process starts it.
    let ahead = !context.style.listens;
    let message = serde_json::to_string(&Message {
        launch,
        args: process.args().as_deref().unwrap_or_default(),
        env: process.env().as_deref().unwrap_or_default(),
        cwd: process.cwd(),
        terminal: context.terminal.is_some(),
        descriptors: (!limits_descriptors(process)).then_some(DESCRIPTORS),
        gate: ahead.then_some(SOCKET_FD),
    });
    let message = message.map_err(|error| Error::system("encode the wasm launch", error))?;
    if context.style.inherited > 0 {
        let text = "a wasm container inherits no descriptors";
        return Err(Error::new(Failure::NotSupported, text));
    }
    // The first two descriptors, so that they are 3 and 4.
    ops.wish(Wish::Data(message));
    ops.wish(Wish::File(launch.code.clone()));
    let program = ops.wish(Wish::File(launch.host.clone()));
    let chooses = !context.style.owned(namespaces) && context.available & CHOOSING == CHOOSING;
    let alone = chooses.then(|| ops.wish(Wish::File("/proc".into())));

    if namespaces.shares_mounts || namespaces.has(kinds::USER) {
        let text = "a wasm container needs a mount namespace, and no user namespace, of its own";
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    join_cgroups(&mut ops, context);
    labels(&mut ops, process)?;
    enter(&mut ops, namespaces, None, Wish::Empty { mode: 0o755 }, &context.style, "")?;
    let fd = ops.wish(Wish::Root);
    ops.push(Op::Attach { fd, target: c"/rootfs" });
    let granted =
        launch.preopens.iter().any(|preopen| preopen.path == Path::new("/") && !preopen.read_only);
    ops.push(Op::Within { path: c"/rootfs" });
    mounts(&mut ops, spec, namespaces, context)?;
    if !granted {
        ops.push(Op::ReadOnlyMount { path: c"/" });
    }
    ops.push(Op::Within { path: c"" });
    names(&mut ops, spec, namespaces)?;
    let_go(&mut ops, &context.style, namespaces);
    let attributes =
        knarr_sys::MountAttr::NOSUID | knarr_sys::MountAttr::NODEV | knarr_sys::MountAttr::NOEXEC;
    ops.push(Op::SetMount {
        target: c"/",
        recursive: true,
        set: attributes,
        clear: 0,
        propagation: 0,
    });
    ops.push(Op::ReadOnlyMount { path: c"/" });
    ops.push(Op::Chdir { path: c"/", create: false });
    if context.terminal.is_some() {
        // There is no devpts in the jail: the pair is the host's, by descriptor.
        ops.push(Op::ControllingTerminal {});
    }
    steps::limits(&mut ops, process, &context.style)?;
    if ahead {
        ops.push(Op::ReadyAhead {});
    } else {
        context.style.ready(&mut ops);
        steps::late_limits(&mut ops, process, &context.style);
    }

    // Signals stay blocked: knarr-wasm takes them when it is ready to, and loses none that
    // came before.
    let mut bare = process.clone();
    bare.set_capabilities(None).set_no_new_privileges(Some(true));
    steps::drop_privileges(&mut ops, &bare, context, alone, 2, false)?;
    if ahead {
        ops.push(Op::KeepSocket {});
    }
    let verb = match launch.abi {
        WasmAbi::HttpProxy => "serve",
        WasmAbi::Preview1Command | WasmAbi::ComponentCommand => "run",
    };
    let argv = Strings::new("an argument", ["knarr-wasm", verb])?;
    let env = Strings::default();
    ops.push(Op::ExecFd { fd: program, argv: argv.list(), env: env.list() });
    Ok(ops)
}

fn limits_descriptors(process: &Process) -> bool {
    let mut limits = process.rlimits().iter().flatten();
    limits.any(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
}

/// Binds and tmpfs of the specification in the image's root; what a native container needs for
/// itself (`/proc`, `/dev`, `/sys`) is left out.
fn mounts(
    ops: &mut Ops,
    spec: &Spec,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<(), Error> {
    for mount in spec.mounts().iter().flatten() {
        let destination = mount.destination();
        let system = ["/proc", "/dev", "/sys"].iter().any(|dir| destination.starts_with(dir));
        if !system {
            mounts::one(ops, mount, namespaces, context)?;
        }
    }
    Ok(())
}
