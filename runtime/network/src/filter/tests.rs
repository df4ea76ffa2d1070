//! The rule set against the kernel, each test in a namespace of its own.

use std::process::Command;

use super::*;
use crate::testing::in_netns;

fn contents() -> Contents {
    let bridge = |name: &str, internal, subnet: &str| Bridge {
        name: name.into(),
        internal,
        together: true,
        masquerade: (!internal).then(|| subnet.parse().unwrap()),
        closed: internal,
    };
    let forward = |host: Option<[u8; 4]>, port| Forward {
        host: host.map(Into::into),
        transport: Transport::Udp,
        port,
        to: (Ipv4Addr::new(172, 17, 0, 2), 80),
    };
    Contents {
        bridges: [
            bridge("knarr0", false, "172.17.0.0/16"),
            bridge("kn-2", false, "172.18.0.0/16"),
            bridge("kn-1", true, "172.19.0.0/16"),
        ]
        .into(),
        forwards: [forward(None, 8080), forward(Some([127, 0, 0, 1]), 8081)].into(),
        sources: [Source {
            end: "kv0123456789ab".into(),
            mac: [2, 0x42, 172, 17, 0, 2],
            address: Ipv4Addr::new(172, 17, 0, 2),
        }]
        .into(),
        guarded: [2375].into(),
    }
}

/// `nft list table` of both families, without handles and blank lines.
fn listed(table: &str) -> Option<String> {
    let list = |family| {
        let list = ["-s", "list", "table", family, table];
        let output = Command::new("nft").args(list).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    Some(list("inet")? + &list("bridge")?)
}

#[test]
fn what_is_described_is_what_the_kernel_lists() {
    in_netns(|| {
        Filter::load("t", Contents::default()).unwrap();
        let Some(listed) = listed("knarr-t") else {
            eprintln!("skipped: nft is not installed");
            return;
        };
        assert_eq!(listed, describe("t"));
    });
}

#[test]
fn elements_come_and_go() {
    in_netns(|| {
        let mut filter = Filter::load("t", contents()).unwrap();
        let full = listed("knarr-t");
        if let Some(text) = &full {
            for part in [
                "\"kn-1\" . \"kn-1\"",
                "172.17.0.0/16",
                "udp . 8080 : 172.17.0.2 . 80",
                "127.0.0.1 . udp . 8081 : 172.17.0.2 . 80",
                "tcp . 2375",
                "\"kv0123456789ab\" . 02:42:ac:11:00:02 . 172.17.0.2",
            ] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
        filter.update(Contents::default()).unwrap();
        if let Some(text) = listed("knarr-t") {
            assert_eq!(text, describe("t"));
        }
        filter.update(contents()).unwrap();
        let forwards: Vec<_> = contents().forwards.into_iter().collect();
        filter.forward(&forwards, false).unwrap();
        // What is gone already is loaded anew, not an error.
        filter.forward(&forwards, false).unwrap();
        filter.forward(&forwards, true).unwrap();
        assert_eq!(listed("knarr-t"), full);
        let source = contents().sources.pop_first().unwrap();
        assert!(filter.forget_source(&source));
        assert_eq!(listed("knarr-t"), full, "nothing waits for that");
        filter.settle().unwrap();
        if let Some(text) = listed("knarr-t") {
            assert!(!text.contains(&source.end), "{text}");
        }
        filter.source(source.clone()).unwrap();
        // The kernel hears of both at once; what it has already is loaded anew.
        assert!(filter.forget_source(&source));
        filter.source(source.clone()).unwrap();
        filter.source(source).unwrap();
        filter.settle().unwrap();
        assert_eq!(listed("knarr-t"), full);
        assert_eq!(*filter.contents(), contents());
        // Loading over what is there is no error either.
        Filter::load("t", contents()).unwrap();
        assert_eq!(listed("knarr-t"), full);
    });
}
