//! As much of D-Bus as it takes to call the service manager and hear that its
//! jobs are done: one connection, one call at a time, blocking.
//!
//! ```text
//!  connect ─▶ \0AUTH EXTERNAL … OK … BEGIN ─▶ (Hello, where a bus is between) ─▶ call, call, …
//! ```
//!
//! The format is that of the D-Bus specification ("Message Protocol"), in little
//! endian. It fails with the name of the socket; what the manager answers as an
//! error is [`Refused`] with the error's name, for callers who know what to do.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Error, Failure};

/// Longer than any job of ours should take (runc waits as long).
const PATIENCE: Duration = Duration::from_secs(30);
/// Far more than any answer has.
const LARGEST: usize = 1 << 20;

const MANAGER: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const PROPERTIES: Target = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
const DAEMON: Target = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

struct Target {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
}

/// Whose service manager it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The system's.
    System,
    /// That of the user who we are outside of our user namespace.
    User,
}

/// Where a manager is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Socket {
    /// A bus is between.
    Bus(PathBuf),
    /// The manager's own, which takes its user only.
    Own(PathBuf),
}

impl Socket {
    fn path(&self) -> &Path {
        match self {
            Self::Bus(path) | Self::Own(path) => path,
        }
    }
}

impl Whose {
    /// Whether it is known where it could be.
    pub(super) fn is_named(self) -> bool {
        !self.sockets().is_empty()
    }

    /// In the order in which they are tried.
    fn sockets(self) -> Vec<Socket> {
        match self {
            Self::System => vec![
                Socket::Bus("/run/dbus/system_bus_socket".into()),
                Socket::Own("/run/systemd/private".into()),
            ],
            Self::User => {
                let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
                of_user(text("DBUS_SESSION_BUS_ADDRESS"), text("XDG_RUNTIME_DIR"))
            }
        }
    }
}

/// What a user's environment says of his bus and his manager.
fn of_user(address: Option<String>, runtime_dir: Option<String>) -> Vec<Socket> {
    // `unix:path=/run/user/1000/bus,guid=…;…` (D-Bus specification, "Server Addresses").
    let path = |one: &str| {
        let path =
            one.strip_prefix("unix:")?.split(',').find_map(|pair| pair.strip_prefix("path="));
        path.and_then(unescaped).map(Socket::Bus)
    };
    let named = address.iter().flat_map(|address| address.split(';')).filter_map(path);
    let dir = runtime_dir.iter().map(Path::new);
    let usual = dir
        .flat_map(|dir| [Socket::Bus(dir.join("bus")), Socket::Own(dir.join("systemd/private"))]);
    let mut all: Vec<Socket> = named.collect();
    for one in usual {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// An address's value, in which bytes may be written as `%20`.
fn unescaped(value: &str) -> Option<PathBuf> {
    let mut parts = value.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

/// The value of a unit's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    U32s(Vec<u32>),
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Bytes(_) => "ay",
            Self::U32s(_) => "au",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// A message's body, or its header, under construction.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.align(4);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.u32(value.into())
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array whose elements are aligned to so many bytes.
    fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(align);
        let begin = self.0.len();
        elements(self);
        let length = (self.0.len() - begin) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => {
                self.bool(*value);
            }
            Value::I32(value) => {
                self.u32(value.cast_unsigned());
            }
            Value::U32(value) => {
                self.u32(*value);
            }
            Value::I64(value) => self.u64(value.cast_unsigned()),
            Value::U64(value) => self.u64(*value),
            Value::Text(text) => {
                self.text(text);
            }
            Value::Texts(all) => self.array(4, |out| {
                for one in all {
                    out.text(one);
                }
            }),
            Value::Bytes(all) => self.array(1, |out| out.0.extend(all)),
            Value::U32s(all) => {
                self.numbers(all);
            }
            Value::Pairs(all) => self.array(8, |out| {
                for (first, second) in all {
                    out.align(8);
                    out.text(first).text(second);
                }
            }),
        }
    }

    /// `au`.
    pub(super) fn numbers(&mut self, all: &[u32]) -> &mut Self {
        self.array(4, |out| {
            for one in all {
                out.u32(*one);
            }
        });
        self
    }

    /// `a(sv)`.
    pub(super) fn properties(&mut self, all: &[(String, Value)]) -> &mut Self {
        self.array(8, |out| {
            for (name, value) in all {
                out.align(8);
                out.text(name).variant(value);
            }
        });
        self
    }

    /// `a(sa(sv))` without elements.
    pub(super) fn no_units(&mut self) -> &mut Self {
        self.array(8, |_| ());
        self
    }
}

/// What is left of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.take(1)?[0].into();
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }
}

/// What came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_to: u32,
    member: String,
    error: String,
    body: Vec<u8>,
}

const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

impl Message {
    /// From the header's fields and the body.
    fn parse(kind: u8, fields: &[u8], body: &[u8]) -> Option<Self> {
        let mut new = Self { kind, body: body.to_vec(), ..Self::default() };
        // Fields are aligned as in the message: sixteen bytes come before them.
        let mut reader = Reader { bytes: fields, at: 0 };
        while reader.at < fields.len() {
            reader.align(8)?;
            let code = reader.take(1)?[0];
            match (code, reader.signature()?) {
                (5, "u") => new.reply_to = reader.u32()?,
                (3, "s") => new.member = reader.text()?.to_owned(),
                (4, "s") => new.error = reader.text()?.to_owned(),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return None,
            }
        }
        Some(new)
    }

    /// The text that it begins with, where it does.
    fn first(&self) -> &str {
        self.texts().text().unwrap_or_default()
    }

    fn texts(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// The manager does not want to.
#[derive(Debug)]
pub(super) struct Refused {
    /// `org.freedesktop.systemd1.NoSuchUnit`.
    pub(super) name: String,
    /// A sentence.
    pub(super) text: String,
}

/// How a call fails.
#[derive(Debug)]
pub(super) enum Trouble {
    /// On the way.
    Lost(Error),
    /// At its end.
    Refused(Refused),
}

/// A connection to the service manager.
#[derive(Debug)]
pub(super) struct Bus {
    socket: PathBuf,
    stream: UnixStream,
    serial: u32,
    /// Jobs that were heard to be done, and how.
    done: Vec<(String, String)>,
}

impl Bus {
    /// By the first socket that answers.
    pub(super) fn connect(whose: Whose) -> Result<Self, Error> {
        let mut failures = Vec::new();
        for socket in whose.sockets() {
            let path = socket.path().to_owned();
            let stream = match UnixStream::connect(&path) {
                Ok(stream) => stream,
                Err(error) => {
                    let why = crate::error::describe(&error);
                    failures.push(format!("{}: {why}", path.display()));
                    continue;
                }
            };
            let mut bus = Self { socket: path, stream, serial: 0, done: Vec::new() };
            bus.greet()?;
            if matches!(socket, Socket::Bus(_)) {
                bus.must(&DAEMON, "Hello", "", &Writer::default())?;
                let mut rule = Writer::default();
                rule.text(
                    "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
                );
                bus.must(&DAEMON, "AddMatch", "s", &rule)?;
                bus.must(&MANAGER, "Subscribe", "", &Writer::default())?;
            } else {
                bus.wake()?;
            }
            return Ok(bus);
        }
        if failures.is_empty() {
            failures.push("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set".to_owned());
        }
        let text = format!("connect to systemd: {}", failures.join("; "));
        Err(Error::new(Failure::System, text))
    }

    fn lost(&self, error: std::io::Error) -> Error {
        Error::system(format_args!("talk with systemd at {}", self.socket.display()), error)
    }

    fn strange(&self) -> Error {
        let text = format!("systemd at {} says what is not D-Bus", self.socket.display());
        Error::new(Failure::System, text)
    }

    /// Lets the kernel say who we are: the number that we would give is another where a
    /// user namespace is between.
    fn greet(&mut self) -> Result<(), Error> {
        let mut talk = || -> std::io::Result<bool> {
            self.stream.set_read_timeout(Some(PATIENCE))?;
            self.stream.set_write_timeout(Some(PATIENCE))?;
            self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
            for wanted in [&b"DATA"[..], b"OK "] {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") && line.len() < 1024 {
                    let mut byte = [0];
                    self.stream.read_exact(&mut byte)?;
                    line.extend(byte);
                }
                if !line.starts_with(wanted) {
                    return Ok(false);
                }
            }
            self.stream.write_all(b"BEGIN\r\n")?;
            Ok(true)
        };
        match talk() {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = format!("systemd at {} does not let us in", self.socket.display());
                Err(Error::new(Failure::System, text))
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    /// What systemd reads together with the end of the greeting, up to 256 bytes,
    /// stays in its buffer until more comes; so a short first call may never be
    /// answered. A long one is: this asks for a unit that cannot be.
    fn wake(&mut self) -> Result<(), Error> {
        let mut name = Writer::default();
        name.text(&"x".repeat(300));
        match self.call("GetUnit", "s", &name) {
            Ok(_) | Err(Trouble::Refused(_)) => Ok(()),
            Err(Trouble::Lost(error)) => Err(error),
        }
    }

    /// Calls the manager; the first string of the answer, where it has one.
    pub(super) fn call(
        &mut self,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<String, Trouble> {
        self.ask(&MANAGER, member, signature, body).map(|answer| answer.first().to_owned())
    }

    /// A property of the manager's that is a text.
    pub(super) fn property(&mut self, name: &str) -> Result<String, Error> {
        let mut body = Writer::default();
        body.text(MANAGER.interface).text(name);
        let answer = self.must(&PROPERTIES, "Get", "ss", &body)?;
        let mut reader = answer.texts();
        let text = reader.signature().filter(|kind| *kind == "s").and_then(|_| reader.text());
        text.map(str::to_owned).ok_or_else(|| self.strange())
    }

    fn must(
        &mut self,
        target: &Target,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<Message, Error> {
        self.ask(target, member, signature, body).map_err(|trouble| trouble.into_error(member))
    }

    fn ask(
        &mut self,
        target: &Target,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<Message, Trouble> {
        self.serial += 1;
        let message = message(self.serial, target, member, signature, body);
        self.stream.write_all(&message).map_err(|error| Trouble::Lost(self.lost(error)))?;
        loop {
            let message = self.receive().map_err(Trouble::Lost)?;
            match message.kind {
                REPLY if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let text = message.first().to_owned();
                    return Err(Trouble::Refused(Refused { name: message.error, text }));
                }
                _ => self.heard(&message),
            }
        }
    }

    /// Waits until a job is done: how it ended (`done`, `failed`, …).
    pub(super) fn finished(&mut self, job: &str) -> Result<String, Error> {
        loop {
            if let Some(at) = self.done.iter().position(|(done, _)| done == job) {
                return Ok(self.done.swap_remove(at).1);
            }
            let message = self.receive()?;
            self.heard(&message);
        }
    }

    /// `JobRemoved(u id, o job, s unit, s result)`.
    fn heard(&mut self, message: &Message) {
        if message.kind != SIGNAL || message.member != "JobRemoved" {
            return;
        }
        let mut reader = message.texts();
        let parts = (reader.u32(), reader.text(), reader.text(), reader.text());
        if let (Some(_), Some(job), Some(_), Some(result)) = parts {
            self.done.push((job.to_owned(), result.to_owned()));
        }
    }

    fn receive(&mut self) -> Result<Message, Error> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).map_err(|error| self.lost(error))?;
        let word = |at: usize| {
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
        };
        let (body, fields) = (word(4), word(12));
        if head[0] != b'l' || body > LARGEST || fields > LARGEST {
            return Err(self.strange());
        }
        let padded = fields.next_multiple_of(8);
        let mut rest = vec![0; padded + body];
        self.stream.read_exact(&mut rest).map_err(|error| self.lost(error))?;
        Message::parse(head[1], &rest[..fields], &rest[padded..]).ok_or_else(|| self.strange())
    }
}

impl Trouble {
    pub(super) fn into_error(self, what: &str) -> Error {
        match self {
            Self::Lost(error) => error,
            Self::Refused(refused) => {
                let text = format!("systemd: {what}: {} ({})", refused.text, refused.name);
                Error::new(Failure::System, text)
            }
        }
    }
}

/// A method call.
fn message(serial: u32, target: &Target, member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    let mut out = Writer(vec![b'l', 1, 0, 1]);
    out.u32(body.0.len() as u32).u32(serial);
    out.array(8, |out| {
        let mut field = |code: u8, kind: &str, value: &str| {
            out.align(8);
            out.0.push(code);
            out.signature(kind);
            if kind == "g" {
                out.signature(value);
            } else {
                out.text(value);
            }
        };
        field(1, "o", target.path);
        field(2, "s", target.interface);
        field(3, "s", member);
        field(6, "s", target.destination);
        if !signature.is_empty() {
            field(8, "g", signature);
        }
    });
    out.align(8);
    out.0.extend(&body.0);
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_as_the_specification_draws_it() {
        let mut body = Writer::default();
        body.text("x").properties(&[
            ("A".to_owned(), Value::U64(7)),
            ("B".to_owned(), Value::U32s(vec![1, 2])),
        ]);
        let bytes = message(3, &MANAGER, "M", "sa(sv)", &body);
        let fields = u32::from_le_bytes(bytes[12..16].try_into().expect("word")) as usize;
        let begin = 16 + fields.next_multiple_of(8);
        let parsed = Message::parse(1, &bytes[16..16 + fields], &bytes[begin..]).expect("parsed");
        assert_eq!((parsed.member.as_str(), &parsed.body), ("M", &body.0));
        #[rustfmt::skip]
        let wanted = [
            1, 0, 0, 0, b'x', 0, 0, 0, // the string, and room before the array's length
            44, 0, 0, 0, 0, 0, 0, 0,   // the array, and room before its first element
            1, 0, 0, 0, b'A', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, b'B', 0, 2, b'a', b'u', 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0,
        ];
        let length = wanted.len() as u8 - 16;
        let mut wanted = wanted.to_vec();
        wanted[8] = length;
        assert_eq!(body.0, wanted);
    }

    #[test]
    fn a_users_manager_is_where_his_environment_says() {
        let of = |address: &str, dir: &str| {
            let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            of_user(some(address), some(dir))
        };
        let bus = |path: &str| Socket::Bus(path.into());
        let own = Socket::Own("/run/user/7/systemd/private".into());
        assert_eq!(of("", ""), []);
        assert_eq!(of("", "/run/user/7"), [bus("/run/user/7/bus"), own.clone()]);
        assert_eq!(
            of("unix:path=/run/user/7/bus,guid=0a", "/run/user/7"),
            [bus("/run/user/7/bus"), own.clone()]
        );
        assert_eq!(
            of("tcp:host=x;unix:abstract=y;unix:guid=1,path=/a%20b;unix:path=%2", "/run/user/7"),
            [bus("/a b"), bus("/run/user/7/bus"), own]
        );
    }

    #[test]
    fn what_is_cut_is_no_message() {
        let bytes = message(1, &DAEMON, "Hello", "", &Writer::default());
        for end in 17..bytes.len() {
            // It ends, and does not read beyond.
            let _ = Message::parse(2, &bytes[16..end], &[]);
        }
        assert_eq!(Message::parse(2, &[5, 1, b'u', 0, 9, 0], &[]), None);
    }
}
