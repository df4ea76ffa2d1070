//! The native half of the hybrid example: a small HTTP service.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a greeting and the number of visits, kept in `/data/visits` |
//! | `/wasm` | what the Wasm service answers, fetched by its name on the network |
//!
//! Ends at once on SIGTERM (a process without handlers, run with `--init`).

#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:8000")?;
    println!("native: listening on 8000");
    for stream in listener.incoming() {
        match stream.and_then(serve) {
            Ok(path) => println!("native: GET {path}"),
            Err(error) => eprintln!("native: {error}"),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?).take(16 * 1024);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = match path.as_str() {
        "/" => ("200 OK", format!("hello from a native program, visit {}\n", visit()?)),
        "/wasm" => match fetch(&env::var("PEER").unwrap_or_else(|_| "web:8080".into())) {
            Ok(answer) => ("200 OK", format!("the Wasm service says: {answer}")),
            Err(error) => {
                ("502 Bad Gateway", format!("the Wasm service does not answer: {error}\n"))
            }
        },
        _ => ("404 Not Found", "no such page\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(path)
}

/// Counts a visit in the file that both services share.
fn visit() -> io::Result<u64> {
    let path = "/data/visits";
    let before = fs::read_to_string(path).unwrap_or_default();
    let count = before.trim().parse::<u64>().unwrap_or(0) + 1;
    fs::write(path, count.to_string())?;
    Ok(count)
}

fn fetch(peer: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(peer)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {peer}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned()))
}
