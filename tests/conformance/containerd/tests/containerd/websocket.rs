//! What `kubectl` speaks to a node's streaming server: a WebSocket whose messages
//! begin with the number of a channel.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// A connection to the server that a URL of the CRI names.
pub struct Channels {
    stream: BufReader<TcpStream>,
    /// What came on each channel so far.
    pub heard: BTreeMap<u8, Vec<u8>>,
}

impl Channels {
    /// `url` as the CRI answered it, perhaps with a query behind it.
    pub fn open(url: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("a URL of http");
        let (host, path) = rest.split_once('/').unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut stream = BufReader::new(stream);
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: a25hcnIga25hcnIga25hcg==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { stream, heard: BTreeMap::new() }
    }

    pub fn send(&mut self, channel: u8, content: &[u8]) {
        assert!(content.len() < 125, "a short message");
        // Final, binary; masked with zeros, as a client must mask.
        let mut frame = vec![0x82, 0x80 | (content.len() + 1) as u8, 0, 0, 0, 0, channel];
        frame.extend(content);
        self.stream.get_mut().write_all(&frame).unwrap();
    }

    /// Takes one message; false at the end.
    pub fn hear(&mut self) -> bool {
        let mut head = [0; 2];
        if self.stream.read_exact(&mut head).is_err() {
            return false;
        }
        let length = match head[1] & 0x7f {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length).unwrap();
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length)
            }
            length => u64::from(length),
        };
        let mut content = vec![0; length as usize];
        self.stream.read_exact(&mut content).unwrap();
        match head[0] & 0x0f {
            8 => return false,
            // Text or binary.
            1 | 2 if !content.is_empty() => {
                self.heard.entry(content[0]).or_default().extend(&content[1..]);
            }
            _ => {}
        }
        true
    }

    /// Everything until the other side ends.
    pub fn hear_all(&mut self) {
        while self.hear() {}
    }

    pub fn text(&self, channel: u8) -> String {
        let content = self.heard.get(&channel).cloned().unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }
}
