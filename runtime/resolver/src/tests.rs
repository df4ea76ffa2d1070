//! The resolver against servers of ours, on ports that they choose.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        RData, Record,
        rdata::{A, AAAA, CNAME},
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[test]
fn hosts_files_are_read_line_by_line() {
    let text = b"127.0.0.1 localhost # me\n# 9.9.9.9 web\n10.0.0.2\tWeb web.example.\nfe80::1%eth0 web\n\xff\xfe web\nx web\n10.0.0.2 web\n";
    let found = hosts::find(text, "web");
    assert_eq!(found, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    assert_eq!(hosts::find(text, "WEB.example").len(), 1);
    assert!(hosts::find(text, "me").is_empty());
    let many: String = (0..1000).map(|n| format!("10.0.{}.{} many\n", n / 250, n % 250)).collect();
    assert_eq!(hosts::find(many.as_bytes(), "many").len(), MAX_ADDRESSES);
}

#[test]
fn the_configuration_keeps_to_glibcs_bounds() {
    let config = Config::parse(
        b"nameserver 127.0.0.11\nnameserver fe80::1%eth0\nnameserver x\nnameserver 1.1.1.1\nnameserver 8.8.8.8\noptions ndots:99 timeout:99 attempts:0 use-vc what\n",
    );
    assert_eq!(config.servers.len(), 3);
    assert_eq!(config.servers[0].to_string(), "127.0.0.11:53");
    assert_eq!((config.timeout, config.attempts), (Duration::from_secs(30), 1));
    assert!(config.tcp);
    let bare = Config::parse(b"\xff\n");
    assert_eq!(bare.servers[0].to_string(), "127.0.0.1:53");
    assert_eq!((bare.timeout, bare.attempts, bare.tcp), (Duration::from_secs(5), 2, false));
}

#[test]
fn the_search_list_counts_by_ndots() {
    let config = Config::parse(b"domain old\nsearch a.example b.example. ../x\noptions ndots:2\n");
    let asked = |name: &str| -> Vec<String> {
        let candidates = config.candidates(&parse(name).unwrap(), name.ends_with('.'));
        candidates.iter().map(ToString::to_string).collect()
    };
    assert_eq!(asked("web"), ["web.a.example.", "web.b.example.", "web."]);
    assert_eq!(asked("x.y.z"), ["x.y.z.", "x.y.z.a.example.", "x.y.z.b.example."]);
    assert_eq!(asked("web."), ["web."]);
}

#[test]
fn what_is_no_host_name_is_asked_of_nobody() {
    for bad in ["", ".", "a..b", "a b", "a/b", "ä", "a\0b", &"x".repeat(64), &"x.".repeat(128)] {
        assert_eq!(parse(bad), Err(Error::Invalid), "{bad:?}");
    }
    assert_eq!(host_and_port("[::1]:80"), Ok(("::1", 80)));
    assert_eq!(host_and_port("web:80"), Ok(("web", 80)));
    assert_eq!(host_and_port("web"), Err(Error::Invalid));
}

#[tokio::test]
async fn what_is_in_no_file_is_still_localhost() {
    let resolver = Resolver::of(None, None);
    let found = resolver.lookup("localhost").await.unwrap();
    assert!(found.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)), "{found:?}");
    assert_eq!(resolver.lookup("::1").await.unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
}

#[tokio::test]
async fn a_hosts_file_is_read_anew_and_only_where_it_is_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts");
    fs::write(&path, "10.0.0.1 web\n").unwrap();
    let open = Resolver::of(Some(File::open(&path).unwrap()), None);
    let at = Resolver::at(&path, directory.path().join("none"));
    for resolver in [&open, &at] {
        assert_eq!(resolver.lookup("web").await.unwrap()[0].to_string(), "10.0.0.1");
    }
    fs::write(&path, "10.0.0.22 web\n").unwrap();
    for resolver in [&open, &at] {
        assert_eq!(resolver.lookup("web").await.unwrap()[0].to_string(), "10.0.0.22");
    }
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
    assert!(at.hosts.read().is_empty());
    // A device says what it is asked for, without an end.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let open = Resolver::of(Some(File::open(&path).unwrap()), None);
    for resolver in [&open, &at] {
        assert!(resolver.hosts.read().is_empty());
    }
}

/// A server that answers with what `answer` makes of a question.
async fn server(
    answer: impl Fn(&Message, bool) -> Vec<Message> + Send + Sync + 'static,
) -> SocketAddr {
    let answer = Arc::new(answer);
    let udp = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = tokio::net::TcpListener::bind(address).await.unwrap();
    let by_tcp = Arc::clone(&answer);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            for message in answer(&Message::from_vec(&buffer[..length]).unwrap(), false) {
                let _ = udp.send_to(&message.to_vec().unwrap(), from).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut question).await.unwrap();
            for message in by_tcp(&Message::from_vec(&question).unwrap(), true) {
                let bytes = message.to_vec().unwrap();
                stream.write_u16(bytes.len() as u16).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        }
    });
    address
}

fn reply(question: &Message) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.queries = question.queries.clone();
    message
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), 1, data)
}

fn asking(servers: Vec<SocketAddr>) -> Config {
    let mut config = Config::parse(b"options attempts:2");
    config.servers = servers;
    config.timeout = Duration::from_secs(20);
    config
}

#[tokio::test]
async fn forged_answers_are_ignored_and_names_of_names_followed() {
    let address = server(|question, _| {
        let name = question.queries[0].name();
        let other = Name::from_ascii("other.example.").unwrap();
        let wrong = Name::from_ascii("wrong.example.").unwrap();
        let with = |address: [u8; 4]| {
            let mut message = reply(question);
            message.add_answer(record(name, RData::A(A(address.into()))));
            message
        };
        let mut id = with([6, 6, 6, 1]);
        id.metadata.id ^= 1;
        let mut query = with([6, 6, 6, 2]);
        query.metadata.message_type = MessageType::Query;
        let mut about = with([6, 6, 6, 3]);
        about.queries[0].set_name(wrong.clone());
        let mut good = reply(question);
        good.add_answer(record(&wrong, RData::A(A([6, 6, 6, 4].into()))));
        good.add_answer(record(&other, RData::A(A([10, 0, 0, 9].into()))));
        good.add_answer(record(name, RData::CNAME(CNAME(other.clone()))));
        vec![id, query, about, good]
    })
    .await;
    let name = Name::from_ascii("web.example.").unwrap();
    let found = query::ask(&asking(vec![address]), &name, RecordType::A).await.unwrap();
    assert_eq!(found, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_cut_answer_is_asked_for_again_by_tcp() {
    let address = server(|question, tcp| {
        let mut message = reply(question);
        message.metadata.truncation = !tcp;
        for last in 0..if tcp { 200 } else { 1 } {
            let data = RData::AAAA(AAAA(Ipv6Addr::from(last + 1)));
            message.add_answer(record(question.queries[0].name(), data));
        }
        vec![message]
    })
    .await;
    let name = Name::from_ascii("many.example.").unwrap();
    let found = query::ask(&asking(vec![address]), &name, RecordType::AAAA).await.unwrap();
    assert_eq!(found.len(), MAX_ADDRESSES);
}

#[tokio::test]
async fn a_server_that_fails_is_not_the_last_word() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let broken = server(move |question, _| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut message = reply(question);
        message.metadata.response_code = ResponseCode::ServFail;
        vec![message]
    })
    .await;
    let none = server(|question, _| {
        let mut message = reply(question);
        message.metadata.response_code = ResponseCode::NXDomain;
        vec![message]
    })
    .await;
    let name = Name::from_ascii("web.example.").unwrap();
    let found = query::ask(&asking(vec![broken, none]), &name, RecordType::A).await;
    assert!(found.unwrap().is_empty());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(query::ask(&asking(vec![broken]), &name, RecordType::A).await.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_circle_of_names_ends() {
    let address = server(|question, _| {
        let name = question.queries[0].name();
        let mut message = reply(question);
        message.add_answer(record(name, RData::CNAME(CNAME(name.clone()))));
        vec![message]
    })
    .await;
    let name = Name::from_ascii("circle.example.").unwrap();
    let found = query::ask(&asking(vec![address]), &name, RecordType::A).await.unwrap();
    assert!(found.is_empty());
}
