//! What a pod's containers share and what they may: namespaces, users, roots to be
//! read, system calls; and the streams that `kubectl` opens.

use std::fs;

use protobuf::{EnumOrUnknown, MessageField};

use crate::{
    pod::{Cri, RUNC, handlers},
    proto::cri::*,
    support::{BUSYBOX, with_cri},
    websocket::Channels,
};

fn link(path: &str) -> String {
    fs::read_link(path).unwrap().display().to_string()
}

fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default()
}

/// Pods' options are said twice: for the sandbox and for each container.
fn namespaces(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: EnumOrUnknown::new(network),
        pid: EnumOrUnknown::new(pid),
        ipc: EnumOrUnknown::new(ipc),
        ..Default::default()
    }
}

#[test]
fn cri_namespaces_are_the_pods_or_the_nodes() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        let hello = cri.import_guest("hello");
        let web = cri.import_guest("web");
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            use NamespaceMode::{CONTAINER, NODE, POD};
            for (network, pid, ipc) in
                [(POD, CONTAINER, POD), (NODE, CONTAINER, NODE), (POD, POD, POD), (POD, NODE, POD)]
            {
                let options = namespaces(network, pid, ipc);
                let pod = cri.run_pod(handler, |config| {
                    let linux = config.linux.mut_or_insert_default();
                    let context = linux.security_context.mut_or_insert_default();
                    context.namespace_options = Some(options.clone()).into();
                    if network == NODE {
                        config.hostname = String::new();
                    }
                });
                let run = || {
                    let mut config = pod.container(BUSYBOX, &["sleep", "1000"]);
                    context(&mut config).namespace_options = Some(options.clone()).into();
                    pod.run(&config)
                };
                let [one, two] = [run(), run()];
                let of = |id: &str, kind: &str| {
                    cri.exec(id, &["readlink", &format!("/proc/self/ns/{kind}")])
                };
                for (kind, mode) in [("net", network), ("pid", pid), ("ipc", ipc)] {
                    let ours = link(&format!("/proc/thread-self/ns/{kind}"));
                    let [a, b] = [of(&one, kind), of(&two, kind)];
                    assert_eq!(a == b, mode != CONTAINER, "{kind} {mode:?}: {a} {b}");
                    assert_eq!(a == ours, mode == NODE, "{kind} {mode:?}: {a} {ours}");
                }
                let processes = cri.exec(&one, &["ps", "-o", "args"]);
                let sleepers = processes.matches("sleep 1000").count();
                match pid {
                    POD => assert_eq!(sleepers, 2, "{processes}"),
                    CONTAINER => assert_eq!(sleepers, 1, "{processes}"),
                    _ => assert!(sleepers >= 2, "{processes}"),
                }
                if handler != RUNC {
                    // A Wasm program goes where the others are.
                    let mut config = pod.container(&hello, &[]);
                    context(&mut config).namespace_options = Some(options.clone()).into();
                    let ended = cri.await_end(&pod.run(&config));
                    assert_eq!(ended.exit_code, 0, "{ended:?}");
                    let mut config = pod.container(&web, &[]);
                    context(&mut config).namespace_options = Some(options.clone()).into();
                    let served = pod.run(&config);
                    let ip = pod.status().network.ip.clone();
                    let ip = if network == NODE { "127.0.0.1" } else { &ip };
                    let answer = crate::cri::get(&format!("{ip}:8080"), "/");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    assert_eq!(cri.stop(&served, 20).exit_code, 0);
                }
                // What shares a number space with others ends alone.
                assert_eq!(cri.stop(&two, 0).exit_code, 137);
                assert_eq!(cri.status(&one).state, 1);
                pod.stop();
                pod.remove();
                cri.assert_clean();
            }
        }
    });
}

#[test]
fn cri_a_containers_rights_are_those_of_its_context() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        let hello = cri.import_guest("hello");
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            let pod = cri.run_pod(handler, |config| {
                let linux = config.linux.mut_or_insert_default();
                linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
            });
            let hold = containerd.path(&format!("hold-{handler}"));
            fs::create_dir(&hold).unwrap();
            let mut config = pod.container(BUSYBOX, &["sleep", "1000"]);
            config.mounts.push(Mount {
                container_path: "/data".into(),
                host_path: hold.display().to_string(),
                readonly: true,
                ..Default::default()
            });
            let rights = context(&mut config);
            rights.run_as_user =
                MessageField::some(Int64Value { value: 1000, ..Default::default() });
            rights.run_as_group =
                MessageField::some(Int64Value { value: 1000, ..Default::default() });
            rights.supplemental_groups = vec![2000];
            rights.readonly_rootfs = true;
            rights.no_new_privs = true;
            rights.seccomp = MessageField::some(SecurityProfile::new());
            rights.masked_paths = vec!["/proc/kcore".into(), "/proc/timer_list".into()];
            rights.readonly_paths = vec!["/proc/sys".into()];
            rights.capabilities.mut_or_insert_default().drop_capabilities = vec!["ALL".into()];
            let id = pod.run(&config);
            let ids = ["id -u", "id -g", "id -G"].map(|line| cri.exec(&id, &["sh", "-c", line]));
            assert_eq!((ids[0].as_str(), ids[1].as_str()), ("1000", "1000"));
            assert!(ids[2].split(' ').any(|group| group == "2000"), "{ids:?}");
            let status = cri.exec(&id, &["cat", "/proc/1/status"]);
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.trim().to_owned()
            };
            assert_eq!(field("Seccomp:"), "2");
            assert_eq!(field("NoNewPrivs:"), "1");
            assert_eq!(field("CapBnd:"), "0000000000000000");
            assert_eq!(field("CapEff:"), "0000000000000000");
            for refused in
                ["touch /x", "touch /data/x", "cat /proc/timer_list | grep .", "unshare -U true"]
            {
                let said = cri.try_exec(&id, &["sh", "-c", refused]).unwrap();
                assert_ne!(said.exit_code, 0, "{refused}: {said:?}");
            }
            let port = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"];
            assert_eq!(cri.exec(&id, &port), "80");

            // Root again, with the usual set and one more; what is to be read is.
            let mut config = pod.container(BUSYBOX, &["sleep", "1000"]);
            let rights = context(&mut config);
            rights.capabilities.mut_or_insert_default().add_capabilities = vec!["NET_ADMIN".into()];
            rights.readonly_paths = vec!["/proc/sys".into()];
            let id = pod.run(&config);
            let set = cri.exec(&id, &["grep", "CapEff", "/proc/1/status"]);
            let set = u64::from_str_radix(set.split_whitespace().nth(1).unwrap(), 16).unwrap();
            assert_ne!(set & 1 << 12, 0, "NET_ADMIN");
            assert_eq!(set & 1 << 21, 0, "SYS_ADMIN");
            cri.exec(&id, &["touch", "/x"]);
            let port = "echo 1 > /proc/sys/net/ipv4/ip_unprivileged_port_start";
            assert_ne!(cri.try_exec(&id, &["sh", "-c", port]).unwrap().exit_code, 0);
            let mut config = pod.container(BUSYBOX, &["sleep", "1000"]);
            let rights = context(&mut config);
            rights.privileged = true;
            // A privileged container asks for a privileged pod.
            let refused = pod.try_create(&config).unwrap_err();
            assert!(refused.message.contains("privileged"), "{refused:?}");

            if handler != RUNC {
                for user in [0, 1000] {
                    let mut config = pod.container(&hello, &[]);
                    let rights = context(&mut config);
                    rights.run_as_user =
                        MessageField::some(Int64Value { value: user, ..Default::default() });
                    rights.readonly_rootfs = true;
                    rights.no_new_privs = true;
                    rights.seccomp = MessageField::some(SecurityProfile::new());
                    rights.readonly_paths = vec!["/proc/sys".into()];
                    rights.capabilities.mut_or_insert_default().drop_capabilities =
                        vec!["ALL".into()];
                    let id = pod.run(&config);
                    let ended = cri.await_end(&id);
                    assert_eq!(ended.exit_code, 0, "{ended:?}");
                }
            }
            pod.stop();
            pod.remove();
            cri.assert_clean();
        }
    });
}

#[test]
fn cri_streams_are_those_of_kubectl() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        let web = cri.import_guest("web");
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            let pod = cri.run_pod(handler, |_| {});
            let mut config =
                pod.container(BUSYBOX, &["sh", "-c", "while read x; do echo got $x; done"]);
            config.stdin = true;
            let id = pod.run(&config);
            let ask = |tty: bool, script: &str| ExecRequest {
                container_id: id.clone(),
                cmd: vec!["sh".into(), "-c".into(), script.into()],
                tty,
                stdin: true,
                stdout: true,
                stderr: !tty,
                ..Default::default()
            };
            // Channels: input, output, errors, how it ended, size.
            let script = "read x; echo got $x; echo talk >&2; exit 5";
            let mut exec = Channels::open(&cri.url("Exec", &ask(false, script)));
            exec.send(0, b"grain\n");
            exec.hear_all();
            assert_eq!((exec.text(1).as_str(), exec.text(2).as_str()), ("got grain\n", "talk\n"));
            assert!(
                exec.text(3).contains("ExitCode") && exec.text(3).contains('5'),
                "{}",
                exec.text(3)
            );
            // containerd passes sizes and input on side by side.
            let script = "read x; until stty size 2>/dev/null | grep 31; do :; done; tty";
            let mut exec = Channels::open(&cri.url("Exec", &ask(true, script)));
            exec.send(4, br#"{"Width":101,"Height":31}"#);
            exec.send(0, b"go\n");
            exec.hear_all();
            assert!(exec.text(1).contains("31 101\r\n/dev/pts/0"), "{}", exec.text(1));
            assert!(exec.text(3).contains("Success"), "{}", exec.text(3));

            let attach = AttachRequest {
                container_id: id.clone(),
                stdin: true,
                stdout: true,
                stderr: true,
                ..Default::default()
            };
            let mut attached = Channels::open(&cri.url("Attach", &attach));
            attached.send(0, b"salt\n");
            while !attached.text(1).contains("got salt\n") {
                assert!(attached.hear());
            }
            drop(attached);

            if handler != RUNC {
                pod.run(&pod.container(&web, &[]));
                crate::cri::get(&format!("{}:8080", pod.status().network.ip), "/");
                let forward = PortForwardRequest {
                    pod_sandbox_id: pod.id.clone(),
                    port: vec![8080],
                    ..Default::default()
                };
                let url = format!("{}?port=8080", cri.url("PortForward", &forward));
                let mut forwarded = Channels::open(&url);
                forwarded.send(0, b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
                while !forwarded.text(0).contains("HTTP/1.1 200") {
                    assert!(forwarded.hear(), "{:?}", forwarded.heard);
                }
            }
            pod.stop();
            pod.remove();
            cri.assert_clean();
        }
    });
}
