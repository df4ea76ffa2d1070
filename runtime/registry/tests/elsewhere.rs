//! Where a registry may send us: judged by addresses, at the moment of connecting.
//!
//! Each test is a machine of its own, in a network namespace whose loopback also
//! has addresses of elsewhere (RFC 5737 and a private network). Needs root.

use std::{collections::HashMap, io, net::IpAddr, process::Command, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use knarr_harness::lying_registry::{LyingRegistry, Reply};
use knarr_model::Reference;
use knarr_registry::{Auth, Client, Config, Error, Lookup, Registry};
use nix::sched::{CloneFlags, unshare};

const PUBLIC: &str = "203.0.113.1";
const STORAGE: &str = "203.0.113.2";
const PRIVATE: &str = "10.9.9.9";
const LINK_LOCAL: &str = "169.254.169.254";

/// Names as a test gives them.
#[derive(Debug, Default, Clone)]
struct Hosts(HashMap<&'static str, Vec<IpAddr>>);

impl Hosts {
    fn of(names: &[(&'static str, &[&str])]) -> Self {
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Self(names.iter().map(|(name, list)| (*name, addresses(list))).collect())
    }
}

impl Lookup for Hosts {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let found = self.0.get(host).cloned();
        async move { found.ok_or_else(|| io::ErrorKind::NotFound.into()) }.boxed()
    }
}

/// Runs a test on such a machine.
fn machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed to make a network namespace");
        let ip = |arguments: &[&str]| {
            let status = Command::new("ip").args(arguments).status().expect("ip");
            assert!(status.success(), "ip {arguments:?}");
        };
        ip(&["link", "set", "lo", "up"]);
        for address in [PUBLIC, STORAGE, PRIVATE, LINK_LOCAL] {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn client(hosts: Hosts) -> Client {
    // Plain HTTP is no reason to refuse any of them.
    let insecure = ["registry.example", "other.example", PUBLIC, LINK_LOCAL, "10.0.0.0/8"];
    Client::new(Config {
        insecure: insecure.iter().map(|host| (*host).to_owned()).collect(),
        lookup: Arc::new(hosts),
        ..Config::default()
    })
    .unwrap()
}

fn port(server: &LyingRegistry) -> String {
    server.host().rsplit(':').next().unwrap().to_owned()
}

/// Asks `registry`, which is at the first address, and sends on to `other`, which
/// is at the second. Answers what came of it, and how often each was asked.
async fn sent(
    hosts: Hosts,
    (registry, at): (&str, &str),
    (other, there): (&str, &str),
) -> (Result<(), Error>, usize) {
    let end =
        LyingRegistry::start_at(there.parse().unwrap(), |_, _| Reply::ok("{}")).await.unwrap();
    let location = format!("http://{other}:{}/there", port(&end));
    let server = LyingRegistry::start_at(at.parse().unwrap(), move |_, _| {
        Reply::status(307).with("location", &location)
    })
    .await
    .unwrap();
    let reference: Reference = format!("{registry}:{}/team/app:1", port(&server)).parse().unwrap();
    let outcome = client(hosts).resolve(&reference, &Auth::Anonymous).await;
    (outcome.map(|_| ()), end.requests().len())
}

/// Whether it is refused because of where it leads, and for no other reason.
fn leads_here(outcome: &Result<(), Error>) -> bool {
    const WHY: &str = "a registry elsewhere has no business on this machine";
    matches!(outcome, Err(Error::Redirect { why, .. }) if *why == WHY)
}

#[test]
fn i14_a_registry_elsewhere_leads_nobody_to_this_machine() {
    machine(|| async {
        for (name, there) in [
            ("other.example", "127.0.0.1"),
            ("other.example", LINK_LOCAL),
            (LINK_LOCAL, LINK_LOCAL),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            let hosts = Hosts::of(&[("registry.example", &[PUBLIC]), ("other.example", &[there])]);
            let from = ("registry.example", PUBLIC);
            let (outcome, asked) = sent(hosts, from, (name, there)).await;
            assert!(leads_here(&outcome), "{name} {there}: {outcome:?}");
            assert_eq!(asked, 0, "{name} {there}");
        }
        // One good address does not make the others good.
        let both = ["127.0.0.1", STORAGE];
        let hosts = Hosts::of(&[("registry.example", &[PUBLIC]), ("other.example", &both)]);
        let (outcome, asked) =
            sent(hosts, ("registry.example", PUBLIC), ("other.example", "127.0.0.1")).await;
        assert!(outcome.is_err());
        assert_eq!(asked, 0);
        // A literal registry elsewhere is no better than a name.
        let hosts = Hosts::of(&[("other.example", &["127.0.0.1"])]);
        let (outcome, asked) = sent(hosts, (PUBLIC, PUBLIC), ("other.example", "127.0.0.1")).await;
        assert!(leads_here(&outcome), "{outcome:?}");
        assert_eq!(asked, 0);
    });
}

#[test]
fn i14_registries_keep_their_blobs_where_they_like() {
    machine(|| async {
        for (at, there) in [
            (PUBLIC, STORAGE),
            (PUBLIC, PRIVATE),
            (PRIVATE, STORAGE),
            // Who is on this machine himself may point to it.
            ("127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", LINK_LOCAL),
        ] {
            let hosts = Hosts::of(&[("registry.example", &[at]), ("other.example", &[there])]);
            let (outcome, asked) =
                sent(hosts, ("registry.example", at), ("other.example", there)).await;
            outcome.unwrap_or_else(|error| panic!("{at} {there}: {error}"));
            assert_eq!(asked, 1, "{at} {there}");
        }
    });
}

#[test]
fn i14_a_token_realm_is_a_place_that_the_registry_sends_us_to() {
    machine(|| async {
        let realm = LyingRegistry::start(|_, _| Reply::ok(r#"{"token":"t"}"#)).await.unwrap();
        let hosts =
            Hosts::of(&[("registry.example", &[PUBLIC]), ("other.example", &["127.0.0.1"])]);
        let challenge = format!("Bearer realm=\"https://other.example:{}/token\"", port(&realm));
        let server = LyingRegistry::start_at(PUBLIC.parse().unwrap(), move |_, _| {
            Reply::status(401).with("www-authenticate", &challenge)
        })
        .await
        .unwrap();
        let reference: Reference =
            format!("registry.example:{}/team/app:1", port(&server)).parse().unwrap();
        let outcome = client(hosts).resolve(&reference, &Auth::Anonymous).await;
        assert!(matches!(outcome, Err(Error::Redirect { .. })), "{outcome:?}");
    });
}
