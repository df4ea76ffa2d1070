//! The client against a server that breaks, lies and steals.

use std::{net::Ipv4Addr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use knarr_harness::lying_registry::{LoggedRequest, LyingRegistry, Reply, ReplyBody, digest_of};
use knarr_model::{ErrorKind, Kinded, Reference};
use knarr_registry::{
    Auth, Chunk, Client, Config, Descriptor, Error, MANIFEST_LIMIT, Registry, Timing,
};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

fn client(config: Config) -> Client {
    let timing = Timing {
        stall: Duration::from_millis(300),
        backoff: Duration::from_millis(1),
        backoff_limit: Duration::from_millis(20),
        ..Timing::default()
    };
    Client::new(Config { timing, ..config }).unwrap()
}

fn reference(server: &LyingRegistry) -> Reference {
    format!("{}/team/app:1", server.host()).parse().unwrap()
}

fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: digest_of(content).parse().unwrap(),
        size: content.len() as u64,
    }
}

/// Deterministic bytes that differ everywhere.
fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// What a store does with a stream: keep, void, count restarts.
async fn receive(
    server: &LyingRegistry,
    client: &Client,
    content: &[u8],
    stored: &[u8],
) -> (Vec<u8>, usize, Option<Error>) {
    let mut blob = client.blob(
        &reference(server),
        &descriptor(content),
        stored.len() as u64,
        &Auth::Anonymous,
    );
    let (mut got, mut restarts) = (stored.to_vec(), 0);
    while let Some(chunk) = blob.next().await {
        match chunk {
            Ok(Chunk::Data(bytes)) => got.extend_from_slice(&bytes),
            Ok(Chunk::Restart) => {
                restarts += 1;
                got.clear();
            }
            Err(error) => return (got, restarts, Some(error)),
        }
    }
    (got, restarts, None)
}

#[tokio::test]
async fn a_tag_resolves_to_a_verified_manifest() {
    let manifest = br#"{"schemaVersion":2}"#;
    let server = LyingRegistry::start(move |_, _| {
        Reply::ok(*manifest).with("content-type", format!("{OCI}; charset=utf-8"))
    })
    .await
    .unwrap();
    let got =
        client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await.unwrap();
    assert_eq!(got.bytes, manifest.as_slice());
    assert_eq!(got.descriptor.media_type, OCI);
    assert_eq!(got.descriptor.digest.to_string(), digest_of(manifest));
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "one round trip");
    assert_eq!(requests[0].path, "/v2/team/app/manifests/1");
    assert!(requests[0].header("authorization").is_none());
}

#[tokio::test]
async fn i09_a_manifest_that_is_not_its_digest_is_refused() {
    let want = digest_of(b"what was asked for");
    let server = LyingRegistry::start(|_, _| Reply::ok("something else")).await.unwrap();
    let pinned: Reference = format!("{}/team/app@{want}", server.host()).parse().unwrap();
    let error = client(Config::default()).resolve(&pinned, &Auth::Anonymous).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { what: "manifest digest", .. }), "{error}");

    // A tag whose header says something else than its body.
    let server = LyingRegistry::start(move |_, _| {
        Reply::ok("something else").with("docker-content-digest", &want)
    })
    .await
    .unwrap();
    let outcome = client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
    assert!(matches!(outcome, Err(Error::Mismatch { .. })));

    // A descriptor whose size is a lie.
    let server = LyingRegistry::start(|_, _| Reply::ok("four")).await.unwrap();
    let lie = Descriptor { size: 5, ..descriptor(b"four") };
    let outcome =
        client(Config::default()).manifest(&reference(&server), &lie, &Auth::Anonymous).await;
    assert!(matches!(outcome, Err(Error::Mismatch { what: "manifest size", .. })));
}

#[tokio::test]
async fn i11_a_manifest_larger_than_4_mib_is_not_read() {
    let big = vec![b' '; MANIFEST_LIMIT as usize + 1];
    for body in [
        ReplyBody::Length(b"{}".to_vec(), 100 << 20),
        ReplyBody::Whole(big.clone()),
        ReplyBody::Chunked(big),
        ReplyBody::Endless(vec![b' '; 1 << 16]),
    ] {
        let server = LyingRegistry::start(move |_, _| Reply::new(200, body.clone())).await.unwrap();
        let outcome =
            client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
        assert!(matches!(outcome, Err(Error::TooLarge { .. })), "{outcome:?}");
        assert_eq!(server.requests().len(), 1, "not tried again");
    }
}

#[tokio::test]
async fn i09_a_blob_of_another_length_is_refused() {
    let data = content(100_000);
    let longer = [data.clone(), b"x".to_vec()].concat();
    for body in [
        ReplyBody::Whole(data[..99_999].to_vec()),
        ReplyBody::Whole(longer.clone()),
        ReplyBody::Chunked(longer),
        ReplyBody::Endless(data.clone()),
    ] {
        let server = LyingRegistry::start(move |_, _| Reply::new(200, body.clone())).await.unwrap();
        let (got, _, error) = receive(&server, &client(Config::default()), &data, b"").await;
        assert!(matches!(error, Some(Error::Mismatch { .. })), "{error:?}");
        assert!(got.len() <= data.len());
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn i16_a_broken_transfer_resumes_where_it_broke() {
    let data = content(1 << 20);
    let copy = data.clone();
    let cut = move |request: &LoggedRequest, before: usize| {
        let whole = Reply::ranged(request, &copy, "\"v1\"");
        let first = request.range().unwrap_or(0) as usize;
        let rest = &copy[first..];
        let sick = |body| match first {
            0 => Reply::new(200, body).with("etag", "\"v1\""),
            _ => Reply::new(206, body)
                .with("etag", "\"v1\"")
                .with("content-range", format!("bytes {first}-{}/{}", copy.len() - 1, copy.len())),
        };
        let part = rest[..rest.len() / 3].to_vec();
        match before {
            0 => sick(ReplyBody::Length(part, rest.len() as u64)),
            1 => Reply::status(503).with("retry-after", 0),
            2 => sick(ReplyBody::Stall(part, rest.len() as u64)),
            3 => Reply::error(429, "TOOMANYREQUESTS", "slow down"),
            4 => sick(ReplyBody::Reset(part, rest.len() as u64)),
            _ => whole,
        }
    };
    let server = LyingRegistry::start(cut).await.unwrap();
    let (got, restarts, error) = receive(&server, &client(Config::default()), &data, b"").await;
    assert!(error.is_none(), "{error:?}");
    assert!(got == data && restarts == 0);
    let requests = server.requests();
    assert_eq!(requests.len(), 6);
    assert_eq!(requests[1].range(), Some(data.len() as u64 / 3));
    assert_eq!(requests[1].header("if-range"), Some("\"v1\""));
}

#[tokio::test]
async fn i16_resuming_costs_no_more_than_the_blob() {
    let data = content(4 << 20);
    let copy = data.clone();
    let server = LyingRegistry::start(move |request, before| {
        let first = request.range().unwrap_or(0) as usize;
        let rest = &copy[first..];
        if before >= 10 || rest.len() < 1000 {
            return Reply::ranged(request, &copy, "\"v\"");
        }
        // Every connection breaks just before its end.
        let part = ReplyBody::Length(rest[..rest.len() * 9 / 10].to_vec(), rest.len() as u64);
        match first {
            0 => Reply::new(200, part),
            _ => Reply::new(206, part)
                .with("content-range", format!("bytes {first}-{}/{}", copy.len() - 1, copy.len())),
        }
    })
    .await
    .unwrap();
    let (got, _, error) = receive(&server, &client(Config::default()), &data, b"").await;
    assert!(error.is_none() && got == data, "{error:?}");
    assert!(server.bytes_sent() as f64 <= data.len() as f64 * 1.05, "{}", server.bytes_sent());
}

#[tokio::test]
async fn i16_what_an_earlier_daemon_stored_is_not_fetched_again() {
    let data = content(1 << 20);
    let copy = data.clone();
    let server = LyingRegistry::start(move |request, _| Reply::ranged(request, &copy, "\"v\""))
        .await
        .unwrap();
    let stored = &data[..900_000];
    let (got, _, error) = receive(&server, &client(Config::default()), &data, stored).await;
    assert!(error.is_none() && got == data, "{error:?}");
    assert_eq!(server.bytes_sent(), data.len() as u64 - 900_000);

    // All of it was there: nobody is asked.
    let (got, _, error) = receive(&server, &client(Config::default()), &data, &data).await;
    assert!(error.is_none() && got == data);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn i16_a_server_that_ignores_ranges_is_skipped_through() {
    let data = content(300_000);
    let copy = data.clone();
    let server = LyingRegistry::start(move |_, before| match before {
        0 => Reply::new(200, ReplyBody::Length(copy[..100_000].to_vec(), copy.len() as u64)),
        _ => Reply::ok(copy.clone()),
    })
    .await
    .unwrap();
    let (got, restarts, error) = receive(&server, &client(Config::default()), &data, b"").await;
    assert!(error.is_none() && got == data && restarts == 0, "{error:?}");
}

#[tokio::test]
async fn i16_content_that_changes_between_ranges_starts_over() {
    let (old, new) = (content(300_000), content(600_000)[300_000..].to_vec());
    for honest_about_ranges in [true, false] {
        let (old, copy) = (old.clone(), new.clone());
        let server = LyingRegistry::start(move |request, before| match before {
            0 => Reply::new(200, ReplyBody::Length(old[..100_000].to_vec(), old.len() as u64))
                .with("etag", "\"old\""),
            1 if !honest_about_ranges => {
                // Ignores If-Range and goes on with other content.
                let first = request.range().unwrap_or(0) as usize;
                let range = format!("bytes {first}-{}/{}", copy.len() - 1, copy.len());
                Reply::new(206, ReplyBody::Whole(copy[first..].to_vec()))
                    .with("content-range", range)
                    .with("etag", "\"new\"")
            }
            _ => Reply::ranged(request, &copy, "\"new\""),
        })
        .await
        .unwrap();
        let (got, restarts, error) = receive(&server, &client(Config::default()), &new, b"").await;
        assert!(error.is_none() && got == new && restarts == 1, "{error:?}");
    }
}

#[tokio::test]
async fn i16_content_that_always_changes_is_given_up() {
    let data = content(300_000);
    let copy = data.clone();
    let server = LyingRegistry::start(move |_, before| {
        Reply::new(200, ReplyBody::Length(copy[..100_000].to_vec(), copy.len() as u64))
            .with("etag", format!("\"{before}\""))
    })
    .await
    .unwrap();
    let (_, _, error) = receive(&server, &client(Config::default()), &data, b"").await;
    assert!(matches!(error, Some(Error::Mismatch { what: "validator", .. })), "{error:?}");
}

#[tokio::test]
async fn i16_a_registry_that_stays_broken_is_given_up_and_what_came_is_kept() {
    let data = content(100_000);
    let copy = data.clone();
    let server = LyingRegistry::start(move |_, before| match before {
        0 => Reply::new(200, ReplyBody::Length(copy[..50_000].to_vec(), copy.len() as u64)),
        _ => Reply::status(502),
    })
    .await
    .unwrap();
    let (got, _, error) = receive(&server, &client(Config::default()), &data, b"").await;
    let error = error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(got, &data[..50_000]);
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn i16_a_drip_counts_as_stalled() {
    let data = content(100_000);
    let copy = data.clone();
    let server = LyingRegistry::start(move |_, _| {
        Reply::new(200, ReplyBody::Stall(copy[..1].to_vec(), copy.len() as u64))
    })
    .await
    .unwrap();
    let (_, _, error) = receive(&server, &client(Config::default()), &data, b"").await;
    assert!(error.unwrap().to_string().contains("stalled"));
}

fn ann() -> Auth {
    Auth::Basic { username: "ann".into(), password: "secret".into() }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("ann:secret"))
}

#[tokio::test]
async fn basic_credentials_answer_a_challenge_and_are_kept() {
    let server = LyingRegistry::start(|request, _| match request.header("authorization") {
        Some(_) => Reply::ok("{}"),
        None => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
    })
    .await
    .unwrap();
    let client = client(Config::default());
    for _ in 0..2 {
        client.resolve(&reference(&server), &ann()).await.unwrap();
    }
    let sent: Vec<_> =
        server.requests().iter().map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(basic()), Some(basic())]);

    let denied = client.resolve(&reference(&server), &Auth::Anonymous).await.unwrap_err();
    let text = denied.to_string();
    assert!(text.starts_with("pull access denied for 127.0.0.1:"), "{text}");
    assert!(text.contains("no basic auth credentials"), "{text}");
}

#[tokio::test]
async fn a_token_is_fetched_once_a_scope_and_again_when_it_is_refused() {
    let server = LyingRegistry::start(|request, before| {
        if request.path.starts_with("/token") {
            return Reply::ok(format!("{{\"token\":\"t{before}\",\"expires_in\":300}}"));
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
        match request.header("authorization") {
            Some("Bearer t0") if before < 3 => Reply::ok("{}"),
            Some("Bearer t1") => Reply::ok("{}"),
            _ => Reply::status(401).with("www-authenticate", challenge),
        }
    })
    .await
    .unwrap();
    let client = client(Config::default());
    for _ in 0..3 {
        client.resolve(&reference(&server), &ann()).await.unwrap();
    }
    let requests = server.requests();
    let tokens: Vec<_> = requests.iter().filter(|r| r.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 2);
    assert!(tokens[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull"), "{}", tokens[0].path);
    assert!(tokens[0].path.contains("service=reg") && tokens[0].path.contains("account=ann"));
    assert_eq!(tokens[0].header("authorization"), Some(basic().as_str()));
    let others = requests.iter().filter(|r| !r.path.starts_with("/token"));
    assert!(
        others.clone().all(|r| !r.header("authorization").is_some_and(|a| a.contains("Basic")))
    );

    let identity = Auth::Identity("refresh".into());
    client.resolve(&reference(&server), &identity).await.unwrap_err();
    let posted = server.requests().into_iter().find(|r| r.method == "POST").unwrap();
    let body = String::from_utf8(posted.body).unwrap();
    assert!(body.contains("grant_type=refresh_token") && body.contains("refresh_token=refresh"));
}

#[tokio::test]
async fn i14_credentials_do_not_follow_a_redirect_to_another_host() {
    let data = content(1000);
    let copy = data.clone();
    let thief = LyingRegistry::start_at(Ipv4Addr::new(127, 0, 0, 2).into(), move |request, _| {
        Reply::ranged(request, &copy, "\"v\"")
    })
    .await
    .unwrap();
    let target = format!("http://{}/stolen", thief.host());
    let server = LyingRegistry::start(move |request, _| match request.header("authorization") {
        Some(_) => Reply::status(307).with("location", &target),
        None => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
    })
    .await
    .unwrap();
    let mut blob =
        client(Config::default()).blob(&reference(&server), &descriptor(&data), 0, &ann());
    let mut got = Vec::new();
    while let Some(chunk) = blob.next().await {
        let Chunk::Data(bytes) = chunk.unwrap() else { panic!("restart") };
        got.extend_from_slice(&bytes);
    }
    assert_eq!(got, data);
    assert_eq!(thief.requests().len(), 1);
    assert!(thief.requests()[0].header("authorization").is_none());
    assert_eq!(server.requests()[1].header("authorization"), Some(basic().as_str()));
}

#[tokio::test]
async fn i14_the_challenge_of_a_redirects_target_is_not_answered() {
    let thief = LyingRegistry::start_at(Ipv4Addr::new(127, 0, 0, 2).into(), |_, _| {
        Reply::status(401).with("www-authenticate", "Basic realm=\"give\"")
    })
    .await
    .unwrap();
    let target = format!("http://{}/x", thief.host());
    let server = LyingRegistry::start(move |_, _| Reply::status(302).with("location", &target))
        .await
        .unwrap();
    let outcome = client(Config::default()).resolve(&reference(&server), &ann()).await;
    assert!(matches!(outcome, Err(Error::Denied { .. })), "{outcome:?}");
    assert!(thief.requests().iter().all(|r| r.header("authorization").is_none()));
    assert_eq!(thief.requests().len(), 1);
}

#[tokio::test]
async fn i14_a_realm_elsewhere_gets_no_credentials() {
    for realm in ["https://evil.example/token", "http://evil.example/token"] {
        let server = LyingRegistry::start(move |_, _| {
            Reply::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        })
        .await
        .unwrap();
        let outcome = client(Config::default()).resolve(&reference(&server), &ann()).await;
        assert!(matches!(outcome, Err(Error::CredentialTheft { .. })), "{outcome:?}");
        assert_eq!(server.requests().len(), 1);
    }
    for realm in ["http://evil.example/token", "file:///etc/passwd", "https://a:b@x/", "nonsense"] {
        let server = LyingRegistry::start(move |_, _| {
            Reply::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        })
        .await
        .unwrap();
        let outcome =
            client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
        let refused = matches!(outcome, Err(Error::PlainHttp { .. } | Error::Protocol { .. }));
        assert!(refused, "{realm}: {outcome:?}");
    }
}

#[tokio::test]
async fn i14_redirects_that_lead_astray_are_refused() {
    for location in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:password@127.0.0.1/x",
        "http://public.example/x",
        "",
    ] {
        let server =
            LyingRegistry::start(move |_, _| Reply::status(302).with("location", location))
                .await
                .unwrap();
        let outcome =
            client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
        assert!(matches!(outcome, Err(Error::Redirect { .. })), "{location}: {outcome:?}");
    }
    let server =
        LyingRegistry::start(|_, _| Reply::status(302).with("location", "/again")).await.unwrap();
    let outcome = client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
    assert!(matches!(outcome, Err(Error::Redirect { why: "too many redirects", .. })));
}

#[tokio::test]
async fn i14_a_mirror_is_asked_first_and_never_sees_credentials() {
    let mirror = LyingRegistry::start(|request, _| {
        if request.path.contains("/manifests/") {
            Reply::ok("{}")
        } else {
            Reply::status(401).with("www-authenticate", "Basic realm=\"give\"")
        }
    })
    .await
    .unwrap();
    let config =
        Config { mirrors: vec![format!("http://{}/hub", mirror.host())], ..Config::default() };
    let busybox: Reference = "busybox".parse().unwrap();
    let client = client(config);
    client.resolve(&busybox, &ann()).await.unwrap();
    let requests = mirror.requests();
    assert_eq!(requests[0].path, "/hub/v2/library/busybox/manifests/latest");
    assert!(requests.iter().all(|r| r.header("authorization").is_none()));

    // Other registries' repositories are none of a mirror's business.
    let server = LyingRegistry::start(|_, _| Reply::ok("{}")).await.unwrap();
    client.resolve(&reference(&server), &Auth::Anonymous).await.unwrap();
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn who_cannot_be_reached_is_said_at_once() {
    let gone = LyingRegistry::start(|_, _| Reply::status(500)).await.unwrap();
    let reference = reference(&gone);
    drop(gone);
    let patient = Timing { backoff: Duration::from_secs(3600), ..Timing::default() };
    let client = Client::new(Config { timing: patient, ..Config::default() }).unwrap();
    let error = client.resolve(&reference, &Auth::Anonymous).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().ends_with("connection refused"), "{error}");
}

#[tokio::test]
async fn credentials_are_checked_without_a_repository() {
    let server = LyingRegistry::start(|request, _| match request.header("authorization") {
        Some(header) if header == basic() => Reply::ok(""),
        _ => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
    })
    .await
    .unwrap();
    let client = client(Config::default());
    client.check(&server.host(), &ann()).await.unwrap();
    let wrong = Auth::Basic { username: "ann".into(), password: "wrong".into() };
    let refused = client.check(&server.host(), &wrong).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    assert!(server.requests().iter().all(|request| request.path == "/v2/"));
}

#[tokio::test]
async fn failures_speak_dockers_words() {
    for (reply, want) in [
        (
            Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            "not found: manifest unknown: manifest unknown",
        ),
        (
            Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry"),
            "team/app not found: name unknown: repository name not known to registry",
        ),
        (
            Reply::error(403, "DENIED", "requested access to the resource is denied"),
            "repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
        ),
        (Reply::new(500, ReplyBody::Whole(b"<html>secret</html>".to_vec())), "answered 500"),
    ] {
        let server = LyingRegistry::start(move |_, _| reply.clone()).await.unwrap();
        let outcome =
            client(Config::default()).resolve(&reference(&server), &Auth::Anonymous).await;
        let text = outcome.unwrap_err().to_string();
        assert!(text.ends_with(want), "{text}");
    }
}
