//! From a question's bytes to an answer or the need to ask elsewhere: pure.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, PTR},
    },
};
use knarr_model::ContainerId;

use crate::names::Names;

/// Seconds that an answer may be kept. Short: a restarted container may have
/// another address, and asking again costs a few microseconds.
const TTL: u32 = 5;
/// The largest datagram we send, whatever the client says it takes: what goes
/// unfragmented over any link (DNS flag day 2020).
const MAX_DATAGRAM: usize = 1232;

/// What to do with a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nobody waits for an answer: junk, or an answer itself.
    Ignore,
    /// This is the answer.
    Answer(Reply),
    /// Others may know.
    Ask(Question),
}

/// An answer that is not yet cut to size.
#[derive(Debug)]
pub(super) struct Reply {
    message: Message,
    limit: usize,
}

impl Reply {
    /// For TCP.
    pub(super) fn whole(&self) -> Vec<u8> {
        self.message.to_vec().unwrap_or_default()
    }

    /// For UDP: without answers and marked as cut, where they do not fit.
    pub(super) fn datagram(&self) -> Vec<u8> {
        let bytes = self.whole();
        if bytes.len() <= self.limit {
            return bytes;
        }
        self.message.truncate().to_vec().unwrap_or_default()
    }
}

/// A well-formed question that is not about names of ours.
#[derive(Debug)]
pub(super) struct Question {
    /// As it came.
    pub(super) bytes: Vec<u8>,
    metadata: Metadata,
    pub(super) query: Query,
}

impl Question {
    /// `SERVFAIL`.
    pub(super) fn refuse(&self) -> Vec<u8> {
        let mut message = respond(&self.metadata, ResponseCode::ServFail);
        message.add_query(self.query.clone());
        message.to_vec().unwrap_or_default()
    }

    /// Whether these bytes answer it. `id` is the one that it was asked under.
    pub(super) fn is_answered_by(&self, id: u16, reply: &[u8]) -> bool {
        let Ok(message) = Message::from_vec(reply) else { return false };
        message.metadata.id == id
            && message.metadata.message_type == MessageType::Response
            && message.queries.len() <= 1
            && message.queries.iter().all(|query| {
                query.name().eq_ignore_root(self.query.name())
                    && query.query_type() == self.query.query_type()
            })
    }

    /// The id that the client gave it.
    pub(super) fn id(&self) -> u16 {
        self.metadata.id
    }
}

/// Decides about a question of a container.
pub(super) fn decide(names: &Names, asker: &ContainerId, bytes: &[u8]) -> Verdict {
    let Ok(message) = Message::from_vec(bytes) else { return malformed(bytes) };
    let metadata = message.metadata;
    if metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let limit = message.edns.as_ref().map_or(512, |edns| usize::from(edns.max_payload()));
    let limit = limit.clamp(512, MAX_DATAGRAM);
    let edns = message.edns.is_some();
    let reply = |code, query: Option<&Query>, records: Vec<Record>| {
        let mut message = respond(&metadata, code);
        message.queries.extend(query.cloned());
        message.add_answers(records);
        if edns {
            let mut answer = Edns::new();
            answer.set_max_payload(MAX_DATAGRAM as u16);
            message.set_edns(answer);
        }
        Verdict::Answer(Reply { message, limit })
    };
    if metadata.op_code != OpCode::Query {
        return reply(ResponseCode::NotImp, None, Vec::new());
    }
    let [query] = message.queries.as_slice() else {
        return reply(ResponseCode::FormErr, None, Vec::new());
    };
    let name = query.name();
    if query.query_class() == DNSClass::IN {
        if query.query_type() == RecordType::PTR {
            let pointer = address_of(name).and_then(|address| names.pointer(asker, address));
            if let Some(pointer) = pointer.and_then(|name| Name::from_ascii(name + ".").ok()) {
                let record = Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(pointer)));
                return reply(ResponseCode::NoError, Some(query), vec![record]);
            }
        } else if let Some(addresses) = names.addresses(asker, &plain(name)) {
            // Of other types there are none; nobody outside knows better.
            let wanted =
                query.query_type() == RecordType::A || query.query_type() == RecordType::ANY;
            let records = addresses.into_iter().filter(|_| wanted);
            let records = records
                .map(|address| Record::from_rdata(name.clone(), TTL, RData::A(A(address))))
                .collect();
            return reply(ResponseCode::NoError, Some(query), records);
        }
    }
    if !names.may_ask_outside(asker) {
        return reply(ResponseCode::ServFail, Some(query), Vec::new());
    }
    let query = query.clone();
    Verdict::Ask(Question { bytes: bytes.to_vec(), metadata, query })
}

fn respond(question: &Metadata, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(question.id, question.op_code, code);
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = true;
    message
}

/// `FORMERR` to what has at least the header of a query.
fn malformed(bytes: &[u8]) -> Verdict {
    let Some(header) = bytes.first_chunk::<12>() else { return Verdict::Ignore };
    if header[2] & 0x80 != 0 {
        return Verdict::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Verdict::Answer(Reply { message, limit: 512 })
}

/// Lower case, without the dot at the end.
fn plain(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// `2.0.17.172.in-addr.arpa.`
fn address_of(name: &Name) -> Option<Ipv4Addr> {
    let text = plain(name);
    let mut octets = [0; 4];
    let mut parts = text.strip_suffix(".in-addr.arpa")?.split('.').rev();
    for octet in &mut octets {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker() -> ContainerId {
        ContainerId::from_random([1; 32])
    }

    fn code(verdict: &Verdict) -> Option<ResponseCode> {
        match verdict {
            Verdict::Answer(reply) => Some(reply.message.metadata.response_code),
            _ => None,
        }
    }

    #[test]
    fn n09_junk_is_ignored_or_refused_and_never_panics() {
        let names = Names::default();
        assert!(matches!(decide(&names, &asker(), &[]), Verdict::Ignore));
        assert!(matches!(decide(&names, &asker(), &[0; 11]), Verdict::Ignore));
        // A header that promises a question, and none; a compression loop.
        let mut loops = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(code(&decide(&names, &asker(), &loops)), Some(ResponseCode::FormErr));
        loops.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&decide(&names, &asker(), &loops)), Some(ResponseCode::FormErr));
        // An answer is not a question: no two servers talk to each other for ever.
        loops[2] = 0x81;
        assert!(matches!(decide(&names, &asker(), &loops), Verdict::Ignore));
        // Any bytes at all.
        let mut state = 1u32;
        for length in 0..300usize {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let _ = decide(&names, &asker(), &bytes);
        }
    }

    #[test]
    fn n09_the_longest_names_are_questions_too() {
        let names = Names::default();
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for _ in 0..126 {
            bytes.extend_from_slice(&[1, b'a']);
        }
        bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
        // Nobody is connected anywhere, so nobody outside is asked.
        assert_eq!(code(&decide(&names, &asker(), &bytes)), Some(ResponseCode::ServFail));
        let mut longer = bytes.clone();
        longer.splice(12..12, [2, b'a', b'a', 1, b'a']);
        assert_eq!(code(&decide(&names, &asker(), &longer)), Some(ResponseCode::FormErr));
    }

    #[test]
    fn reverse_names_are_read() {
        let name = Name::from_ascii("2.0.17.172.IN-ADDR.arpa.").unwrap();
        assert_eq!(address_of(&name), Some(Ipv4Addr::new(172, 17, 0, 2)));
        for other in
            ["0.17.172.in-addr.arpa.", "9.2.0.17.172.in-addr.arpa.", "a.b.", "in-addr.arpa."]
        {
            assert_eq!(address_of(&Name::from_ascii(other).unwrap()), None, "{other}");
        }
    }
}
