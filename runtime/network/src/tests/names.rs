//! Names, from inside containers.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use knarr_model::EndpointSpec;

use crate::testing::{Fake, Host, ask, exchange, in_netns, question};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// The host's name server: knows one address for everything, and counts.
fn upstream() -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    let count = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = question.clone().into_response();
            let name = question.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 1, RData::A(A(OUTSIDE))));
            let _ = socket.send_to(&answer.to_vec().unwrap(), from);
        }
    });
    asked
}

#[test]
fn containers_find_each_other_by_name() {
    in_netns(|| {
        let host = Host::new();
        let asked = upstream();
        host.network("net", false);
        host.network("other", false);
        let (a, b, c) = (Fake::new("a"), Fake::new("b"), Fake::new("c"));
        let spec = EndpointSpec { aliases: vec!["db".into()], ..EndpointSpec::default() };
        let first = host.try_attach(&a, "net", &spec).unwrap().row.ipv4.unwrap();
        let second = host.try_attach(&b, "net", &spec).unwrap().row.ipv4.unwrap();
        host.attach(&c, "other");
        assert_eq!(a.lookup("b"), Ok(vec![second]));
        assert_eq!(a.lookup("B.NET"), Ok(vec![second]));
        assert_eq!(b.lookup(a.id.short()), Ok(vec![first]));
        let both = a.lookup("db").unwrap();
        assert_eq!(both.len(), 2);
        assert_ne!(a.lookup("db").unwrap(), both, "shared names go round");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "names of ours are nobody else's business");
        // No AAAA, and nobody outside is asked for one.
        let six = a.run(|| ask("b", RecordType::AAAA));
        assert_eq!(six.metadata.response_code, ResponseCode::NoError);
        assert!(six.answers.is_empty());
        let [w, x, y, z] = second.octets();
        let pointer = a.run(move || ask(&format!("{z}.{y}.{x}.{w}.in-addr.arpa"), RecordType::PTR));
        assert_eq!(pointer.answers[0].data.to_string(), "b.net.");
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        // Names of other networks are not ours to tell.
        assert_eq!(a.lookup("c"), Ok(vec![OUTSIDE]));
        assert_eq!(a.lookup("example.org"), Ok(vec![OUTSIDE]));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        // New names, and none.
        host.networks.rename(&b.id, &"bee".parse().unwrap()).unwrap();
        assert_eq!(a.lookup("bee"), Ok(vec![second]));
        host.networks.detach(&b.id).unwrap();
        assert_eq!(a.lookup("bee"), Ok(vec![OUTSIDE]));
        // The default bridge has no names.
        let d = Fake::new("d");
        assert!(host.attach(&d, "bridge").dns_names.is_empty());
        let nobody = d.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect("127.0.0.11:53").unwrap();
            let _ = socket.send(&question("a", RecordType::A));
            socket.recv(&mut [0; 512]).unwrap_err().kind()
        });
        assert_eq!(nobody, std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_container_may_be_a_name_server_itself() {
    in_netns(|| {
        let host = Host::new();
        host.network("net", false);
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        let at = host.attach(&a, "net").row.ipv4.unwrap();
        host.attach(&b, "net");
        a.serve(53);
        assert_eq!(b.get(at, 53).as_deref(), Some("a"));
        assert_eq!(a.get([127, 0, 0, 1], 53).as_deref(), Some("a"));
        assert_eq!(a.lookup("a"), Ok(vec![at]));
    });
}

#[test]
fn n06_internal_networks_ask_nobody_outside() {
    in_netns(|| {
        let host = Host::new();
        let asked = upstream();
        host.network("inner", true);
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "inner");
        let at = host.attach(&b, "inner").row.ipv4.unwrap();
        assert_eq!(a.lookup("b"), Ok(vec![at]));
        assert_eq!(a.lookup("data.attacker.example"), Err(ResponseCode::ServFail));
        let pointer = a.run(|| ask("7.113.0.203.in-addr.arpa", RecordType::PTR));
        assert_eq!(pointer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        // With a second network that lets it out, it may.
        host.attach(&a, "bridge");
        assert_eq!(a.lookup("example.org"), Ok(vec![OUTSIDE]));
        host.networks.disconnect(&a.id, "bridge").unwrap();
        assert_eq!(a.lookup("example.org"), Err(ResponseCode::ServFail));
    });
}

#[test]
fn n09_large_answers_go_over_tcp() {
    in_netns(|| {
        let host = Host::new();
        host.network("net", false);
        let fakes: Vec<_> = (0..60).map(|n| Fake::new(&format!("c{n}"))).collect();
        let spec = EndpointSpec { aliases: vec!["all".into()], ..EndpointSpec::default() };
        for fake in &fakes {
            host.try_attach(fake, "net", &spec).unwrap();
        }
        let (cut, whole) = fakes[0].run(|| {
            let bytes = question("all", RecordType::A);
            let cut = exchange(&bytes).unwrap();
            let mut stream = TcpStream::connect("127.0.0.11:53").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut whole = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut whole).unwrap();
            (cut, whole)
        });
        assert!(cut.len() <= 512);
        assert!(Message::from_vec(&cut).unwrap().metadata.truncation);
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 60);
    });
}

#[test]
fn n09_a_flood_is_bounded_and_dead_servers_are_not_waited_for() {
    in_netns(|| {
        let host = Host::new();
        // A server that never answers.
        let dead = UdpSocket::bind("127.0.0.1:53").unwrap();
        host.network("net", false);
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "net");
        let at = host.attach(&b, "net").row.ipv4.unwrap();
        a.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0..2000 {
                let _ = socket
                    .send_to(&question(&format!("x{n}.example"), RecordType::A), "127.0.0.11:53");
                let _ = socket.send_to(&[n as u8; 40], "127.0.0.11:53");
            }
            // Idle connections, more than are allowed at a time.
            let idle: Vec<_> = (0..100).map(|_| TcpStream::connect("127.0.0.11:53")).collect();
            drop(idle);
        });
        // Names of ours are answered at once, here and next door.
        assert_eq!(a.lookup("b"), Ok(vec![at]));
        assert_eq!(b.lookup("b"), Ok(vec![at]));
        // Not more than the cap ever went out.
        dead.set_nonblocking(true).unwrap();
        let mut out = 0;
        while dead.recv(&mut [0; 512]).is_ok() {
            out += 1;
        }
        assert!(out <= 128, "{out} questions in flight");
        // In the end there is an answer, and it is SERVFAIL.
        assert_eq!(b.lookup("example.org"), Err(ResponseCode::ServFail));
    });
}
