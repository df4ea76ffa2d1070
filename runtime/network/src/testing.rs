//! For tests: network namespaces to play in. The machine's own network is
//! never touched: each test is its own host, in a namespace of its own.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use knarr_model::{ContainerId, EndpointSpec, PortBinding, PortSpec, Transport};
use knarr_netlink::Socket;
use knarr_state::Db;
use nix::sched::{CloneFlags, unshare};

use crate::{Attach, Endpoint, Networks, Options, link};

/// Runs a test in a network namespace of its own, where loopback is up.
pub(crate) fn in_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed to make a network namespace");
        link::loopback_up(&Socket::route().unwrap()).unwrap();
        test()
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An engine's networks, with a directory for its database and `resolv.conf`.
pub(crate) struct Host {
    pub(crate) networks: Networks,
    pub(crate) db: Arc<Db>,
    pub(crate) directory: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With other options than the usual ones.
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let mut options = options(&directory);
        change(&mut options);
        Self::opened(directory, options)
    }

    /// Over a database that is there already, and after a crash.
    pub(crate) fn over(directory: tempfile::TempDir) -> Self {
        let options = options(&directory);
        Self::opened(directory, options)
    }

    fn opened(directory: tempfile::TempDir, options: Options) -> Self {
        let db = Arc::new(Db::open(&directory.path().join("state.db")).unwrap());
        let networks = Networks::open(db.clone(), options).unwrap();
        let errors = networks.reconcile(&[]);
        assert!(errors.is_empty(), "{errors:?}");
        Self { networks, db, directory }
    }

    /// The engine dies and another takes its place.
    pub(crate) fn reopen(self, live: &[&Fake]) -> Self {
        let Self { networks, db, directory } = self;
        drop(networks);
        let networks = Networks::open(db.clone(), options(&directory)).unwrap();
        let live: Vec<_> = live.iter().map(|fake| (fake.id.clone(), fake.tid)).collect();
        let errors = networks.reconcile(&live);
        assert!(errors.is_empty(), "{errors:?}");
        Self { networks, db, directory }
    }

    pub(crate) fn network(&self, name: &str, internal: bool) -> crate::Network {
        let spec = crate::NetworkSpec { name: name.into(), internal, ..Default::default() };
        self.networks.create(&spec).unwrap()
    }

    pub(crate) fn attach(&self, fake: &Fake, network: &str) -> Endpoint {
        self.try_attach(fake, network, &EndpointSpec::default()).unwrap()
    }

    pub(crate) fn try_attach(
        &self,
        fake: &Fake,
        network: &str,
        spec: &EndpointSpec,
    ) -> crate::Result<Endpoint> {
        self.networks.attach(&Attach {
            container: &fake.id,
            name: &fake.name,
            hostname: fake.id.short(),
            netns: &fake.netns(),
            network,
            spec,
            dns: &[],
            any_source: fake.any_source,
        })
    }

    /// Names of the interfaces of the host.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = link::links(&Socket::route().unwrap()).unwrap();
        let mut names: Vec<_> = links.into_iter().map(|link| link.name).collect();
        names.sort();
        names
    }
}

pub(crate) fn options(directory: &tempfile::TempDir) -> Options {
    Options { resolv_conf: directory.path().join("resolv.conf"), ..Options::new("test") }
}

type Job = Box<dyn FnOnce() + Send>;

/// A container: a thread in a namespace.
pub(crate) struct Fake {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) tid: u32,
    /// As a container with CAP_NET_ADMIN.
    pub(crate) any_source: bool,
    jobs: mpsc::Sender<Job>,
}

impl Fake {
    pub(crate) fn new(name: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (say, tid) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            say.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        Self {
            id: ContainerId::from_random(crate::random().unwrap()),
            name: name.into(),
            tid: tid.recv().unwrap(),
            any_source: false,
            jobs,
        }
    }

    pub(crate) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.tid).into()
    }

    /// Does something inside.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, answer) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(say.send(job())))).unwrap();
        answer.recv().unwrap()
    }

    /// Listens inside on TCP and UDP and answers with the container's name.
    pub(crate) fn serve(&self, port: u16) {
        let name = self.name.clone();
        self.run(move || serve(port, name));
    }

    /// What a TCP service says, from inside.
    pub(crate) fn get(&self, address: impl Into<IpAddr>, port: u16) -> Option<String> {
        let address = SocketAddr::new(address.into(), port);
        self.run(move || get(address))
    }

    /// Whether something answers soon, from inside.
    pub(crate) fn knock(&self, address: impl Into<IpAddr>, port: u16) -> bool {
        let address = SocketAddr::new(address.into(), port);
        self.run(move || knock(address))
    }

    /// What a name means inside; the response code where it means nothing.
    pub(crate) fn lookup(&self, name: &str) -> Result<Vec<Ipv4Addr>, ResponseCode> {
        let name = name.to_owned();
        let answer = self.run(move || ask(&name, RecordType::A));
        if answer.metadata.response_code != ResponseCode::NoError {
            return Err(answer.metadata.response_code);
        }
        let addresses = answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

/// Asks the name server of this namespace.
pub(crate) fn ask(name: &str, kind: RecordType) -> Message {
    let answer = exchange(&question(name, kind)).expect("an answer");
    Message::from_vec(&answer).unwrap()
}

pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message.to_vec().unwrap()
}

/// As a resolver does: asks again when a datagram was lost.
pub(crate) fn exchange(question: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let mut buffer = vec![0; 4096];
    let length = (0..5).find_map(|_| {
        socket.send_to(question, (crate::dns::ADDRESS, 53)).unwrap();
        socket.recv(&mut buffer).ok()
    })?;
    buffer.truncate(length);
    Some(buffer)
}

pub(crate) fn serve(port: u16, name: String) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let answer = name.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(name.as_bytes());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(answer.as_bytes(), from);
        }
    });
}

/// What a TCP service says; none when it cannot be reached.
pub(crate) fn get(address: SocketAddr) -> Option<String> {
    get_within(address, Duration::from_secs(10))
}

/// Whether something answers soon.
pub(crate) fn knock(address: SocketAddr) -> bool {
    get_within(address, Duration::from_millis(400)).is_some()
}

fn get_within(address: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// What a UDP service says.
pub(crate) fn get_udp(address: SocketAddr) -> Option<String> {
    let local: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() };
    let socket = UdpSocket::bind((local, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"?", address).ok()?;
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, address, "an answer from somebody else");
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// `-p host_ip:host_port:port/transport`.
pub(crate) fn binding(
    host_ip: Option<&str>,
    host_port: Option<u16>,
    port: u16,
    transport: Transport,
) -> PortBinding {
    PortBinding {
        container: PortSpec { port, transport },
        host_ip: host_ip.map(|address| address.parse().unwrap()),
        host_port,
        host_port_end: None,
    }
}

/// Another machine on a LAN with the host: 192.0.2.2, the host is 192.0.2.1.
pub(crate) fn lan() -> Fake {
    let stranger = Fake::new("stranger");
    let socket = Socket::route().unwrap();
    let address = |n| Ipv4Addr::new(192, 0, 2, n);
    let subnet = "192.0.2.0/24".parse().unwrap();
    link::create_bridge(&socket, "lan0", link::mac_of(address(1)), 1500).unwrap();
    let bridge = link::index("lan0").unwrap();
    link::configure_bridge(&socket, bridge, "lan", Some((address(1), subnet))).unwrap();
    let netns = std::fs::File::open(stranger.netns()).unwrap();
    let veth = link::Veth {
        host: "lan1",
        container: "eth0",
        mac: link::mac_of(address(2)),
        bridge,
        mtu: 1500,
    };
    link::create_veth(&socket, &veth, &netns).unwrap();
    stranger.run(move || {
        let inside = link::Inside {
            name: "eth0",
            ipv6: true,
            address: address(2),
            subnet,
            gateway: Some(address(1)),
        };
        link::configure_inside(&Socket::route().unwrap(), &inside).unwrap();
    });
    stranger
}
