//! A TCP service and its client, in one program.
//!
//! | arguments | what it does |
//! |---|---|
//! | none | listens on `PORT` (7000), reads a line from each client, greets it |
//! | `HOST:PORT NAME` | says a name to such a service, prints the greeting |

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use wasip2::sockets::{instance_network::instance_network, ip_name_lookup, network::IpAddress};
use wstd::{
    io::{self, AsyncRead as _, AsyncWrite as _},
    iter::AsyncIterator as _,
    net::{TcpListener, TcpStream},
};

/// The longest name that is greeted, in bytes.
const LONGEST: usize = 200;

#[wstd::main]
async fn main() -> io::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.as_slice() {
        [] => serve().await,
        [peer, name] => ask(peer, name).await,
        _ => Err(io::Error::other("usage: greeter [HOST:PORT NAME]")),
    }
}

async fn serve() -> io::Result<()> {
    let port = env::var("PORT").unwrap_or_else(|_| "7000".to_owned());
    let listener = TcpListener::bind(&format!("0.0.0.0:{port}")).await?;
    println!("greeter: listening on {port}");
    let mut clients = listener.incoming();
    while let Some(client) = clients.next().await {
        let client = client?;
        wstd::runtime::spawn(async move {
            if let Err(error) = greet(client).await {
                eprintln!("greeter: {error}");
            }
        })
        .detach();
    }
    Ok(())
}

async fn greet(mut client: TcpStream) -> io::Result<()> {
    let mut name = Vec::new();
    let mut buffer = [0; 64];
    while !name.contains(&b'\n') && name.len() < LONGEST {
        match client.read(&mut buffer).await? {
            0 => break,
            count => name.extend_from_slice(&buffer[..count]),
        }
    }
    let name = String::from_utf8_lossy(&name);
    client.write_all(format!("hello {}\n", name.trim()).as_bytes()).await?;
    client.flush().await
}

async fn ask(peer: &str, name: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_addr(find(peer)?).await?;
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    stream.flush().await?;
    let mut greeting = Vec::new();
    stream.read_to_end(&mut greeting).await?;
    print!("{}", String::from_utf8_lossy(&greeting));
    Ok(())
}

/// An address by name, asked of the container's own name service.
fn find(peer: &str) -> io::Result<SocketAddr> {
    if let Ok(address) = peer.parse() {
        return Ok(address);
    }
    let fail = |code| io::Error::other(format!("{peer}: {code}"));
    let (host, port) = peer.rsplit_once(':').ok_or_else(|| fail("no port".to_owned()))?;
    let port = port.parse().map_err(|_| fail("no port".to_owned()))?;
    let answers = ip_name_lookup::resolve_addresses(&instance_network(), host)
        .map_err(|code| fail(code.to_string()))?;
    answers.subscribe().block();
    let mut found = None;
    while let Some(address) =
        answers.resolve_next_address().map_err(|code| fail(code.to_string()))?
    {
        match address {
            IpAddress::Ipv4((a, b, c, d)) => {
                return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port));
            }
            IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => {
                let address = IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h));
                found = Some(SocketAddr::new(address, port));
            }
        }
    }
    found.ok_or_else(|| fail("no address".to_owned()))
}
