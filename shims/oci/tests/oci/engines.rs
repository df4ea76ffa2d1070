//! Docker and Podman with knarr-oci under them: their everyday verbs, on a native
//! and a Wasm image. Each engine lives in namespaces and directories of its own.

use std::{fs, process::Command};

use crate::{support::Bundle, wasm::prebuilt};

/// Runs a script in a mount and a network namespace of its own, with busybox's
/// root filesystem and the Wasm example at hand.
fn in_a_world(tool: &str, script: &str) {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
    let found = found.expect("sh").status.success();
    assert!(found, "this test needs {tool} (cargo xtask test installs it)");
    let bundle = Bundle::new(&["/bin/true"]);
    fs::create_dir(bundle.path("wasm")).expect("wasm");
    fs::copy(prebuilt("hello.wasm"), bundle.path("wasm/hello.wasm")).expect("hello.wasm");
    let group = format!("/{}", bundle.id);
    let output = Command::new("unshare")
        .args(["--mount", "--net", "bash", "-c", script])
        .env("DIR", bundle.dir.path())
        .env("OCI", env!("CARGO_BIN_EXE_knarr-oci"))
        .env("GROUP", &group)
        .output()
        .expect("unshare");
    for name in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = name.path().join(&bundle.id);
        let _ = fs::remove_dir(group);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n--- errors\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// What both are asked; `E` is the engine, `RUN` its run.
const VERBS: &str = r#"
is() { [ "$1" = "$2" ] || { echo "expected: $2"; echo "found: $1"; exit 1; }; }
code() { local want=$1 got=0; shift; "$@" >/dev/null 2>$DIR/err || got=$?; is "$got" "$want"; }
is "$($RUN --rm bb echo hello)" hello
is "$(echo through | $RUN --rm -i bb cat)" through
code 7 $RUN --rm bb sh -c 'exit 7'
code 127 $RUN --rm bb nope
grep -q 'executable file not found' $DIR/err
$RUN -d --name c1 bb sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done' >/dev/null
until $E logs c1 | grep -q ready; do sleep 0.05; done
is "$($E exec c1 sh -c 'echo in')" in
is "$($E exec -u 1000:50 -w /tmp -e A=b c1 sh -c 'id -u; id -g; pwd; echo $A' | tr '\n' ' ')" "1000 50 /tmp b "
code 5 $E exec c1 sh -c 'exit 5'
$E pause c1 >/dev/null
$E ps --no-trunc --format '{{.Status}}' --filter status=paused | grep -qi paused || [ "$($E inspect -f '{{.State.Status}}' c1)" = paused ]
$E unpause c1 >/dev/null
$E top c1 | grep -q sleep
$E stop c1 >/dev/null
is "$($E inspect -f '{{.State.ExitCode}} {{.State.Status}}' c1)" "3 exited"
$E start c1 >/dev/null
$E kill c1 >/dev/null
is "$($E wait c1)" 137
$E rm c1 >/dev/null
is "$($RUN --rm -m 32m --pids-limit 50 --read-only --tmpfs /x -v $DIR/wasm:/y:ro --cap-drop ALL \
  --security-opt no-new-privileges bb sh -c 'touch /y/z 2>/dev/null || touch /q 2>/dev/null || { touch /x/a; grep CapEff /proc/self/status; }')" "CapEff:	0000000000000000"
script -qec "$RUN --rm -t bb tty" /dev/null | grep -q /dev/pts/0
$RUN --rm hello > $DIR/hello
[ -s $DIR/hello ]
$RUN -d --name w1 hello >/dev/null
is "$($E wait w1)" 0
$E rm w1 >/dev/null
"#;

/// A `/run` and a loopback interface of its own, for either engine.
const WORLD: &str = "\
set -eux
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
ip link set lo up
";

#[test]
fn docker_runs_its_everyday_verbs_on_it() {
    let start = r#"
export DOCKER_HOST=unix://$DIR/docker.sock KNARR_DATA_ROOT=$DIR/cache HOME=$DIR
dockerd --iptables=false --ip6tables=false --bridge=none --data-root $DIR/data --exec-root $DIR/exec \
  --pidfile $DIR/dockerd.pid -H $DOCKER_HOST --add-runtime knarr=$OCI --cgroup-parent $GROUP >$DIR/log 2>&1 &
D=$!
trap 'kill $D; wait $D || true; [ ! -s $DIR/failed ] || tail -20 $DIR/log' EXIT
until docker version >/dev/null 2>&1; do kill -0 $D || { cat $DIR/log; exit 1; }; sleep 0.1; done
tar -C $DIR/rootfs -c . | docker import - bb >/dev/null
tar -C $DIR/wasm -c . | docker import --change 'ENTRYPOINT ["/hello.wasm"]' - hello >/dev/null
E=docker
RUN="docker run --runtime knarr --network none"
"#;
    in_a_world("dockerd", &format!("{WORLD}{start}{VERBS}"));
}

#[test]
fn podman_runs_its_everyday_verbs_on_it() {
    let start = r#"
export HOME=$DIR
# It clears the environment of its runtimes: the cache is where it is by default.
mount -t tmpfs tmpfs /var/lib
E="podman --root $DIR/store --runroot $DIR/runroot --tmpdir $DIR/tmp --runtime $OCI --cgroup-manager cgroupfs --events-backend file"
tar -C $DIR/rootfs -c . | $E import - bb >/dev/null 2>&1
tar -C $DIR/wasm -c . | $E import --change 'ENTRYPOINT ["/hello.wasm"]' - hello >/dev/null 2>&1
RUN="$E run --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cgroup-parent $GROUP"
trap '$E rm -af -t 0 >/dev/null 2>&1 || true; umount -l $DIR/store/overlay 2>/dev/null || true
    for tree in /sys/fs/cgroup/*$GROUP; do until rmdir $tree/conmon $tree || ! [ -d $tree ]; do :; done; done 2>/dev/null' EXIT
"#;
    in_a_world("podman", &format!("{WORLD}{start}{VERBS}"));
}

#[test]
fn podman_of_a_user_without_privileges_runs_its_everyday_verbs_on_it() {
    // What the user is given of the host's numbers is the test's own word.
    let user = r#"
export HOME=$DIR/home XDG_RUNTIME_DIR=$DIR/home USER=nobody
E="podman --runtime $DIR/knarr-oci --cgroup-manager cgroupfs --storage-driver vfs --events-backend none --log-level error"
RUN="$E run --network none"
is() { [ "$1" = "$2" ] || { echo "expected: $2"; echo "found: $1"; exit 1; }; }
tar -C $DIR/rootfs -c . | $E import - bb >/dev/null
tar -C $DIR/wasm -c . | $E import --change 'ENTRYPOINT ["/hello.wasm"]' - hello >/dev/null
is "$($RUN --rm bb sh -c 'id -u; id -g; head -n 1 /proc/self/uid_map' | tr -s ' \n' ' ')" "0 0 0 65534 1 "
is "$(echo through | $RUN --rm -i bb cat)" through
got=0; $RUN --rm bb sh -c 'exit 7' || got=$?; is $got 7
$RUN -d --name c1 bb sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done' >/dev/null
until $E logs c1 | grep -q ready; do sleep 0.05; done
is "$($E exec -u 7:8 c1 id)" "uid=7 gid=8"
$E top c1 | grep -q sleep
$E stop c1 >/dev/null
is "$($E inspect -f '{{.State.ExitCode}} {{.State.Status}}' c1)" "3 exited"
$E start c1 >/dev/null
$E rm -f -t 0 c1 >/dev/null
is "$($RUN --rm --userns keep-id --read-only --tmpfs /x -v $DIR/wasm:/y:ro bb sh -c 'touch /y/z 2>/dev/null || touch /q 2>/dev/null || { touch /x/a; id -u; }')" 65534
script -qec "$RUN --rm -t bb tty" /dev/null | grep -q /dev/pts/0
$RUN --rm hello | grep -q .
"#;
    let root = r#"
cp $OCI $(dirname $OCI)/knarr-wasm $DIR
printf 'nobody:200000:65536\n' > $DIR/given
mount --bind $DIR/given /etc/subuid
mount --bind $DIR/given /etc/subgid
mkdir $DIR/home
chmod 755 $DIR
chown -R 65534:65534 $DIR/home $DIR/wasm $DIR/rootfs
# It leaves a process to hold its user namespace, which ends with this one of numbers.
unshare --pid --fork --kill-child --mount-proc \
  setpriv --reuid 65534 --regid 65534 --clear-groups bash -euxc "$USER_SCRIPT"
"#;
    let script = format!("export USER_SCRIPT='{}'\n{WORLD}{root}", user.replace('\'', r"'\''"));
    in_a_world("podman", &script);
}
