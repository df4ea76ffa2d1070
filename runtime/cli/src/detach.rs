//! Detach keys, as this side of the connection sees them.
//!
//! The engine takes them out of the input and ends the streams (moby
//! `daemon/attach.go`). The client only watches, so that it knows a detached
//! terminal from an ended process without asking.

/// ctrl-p, ctrl-q.
const DEFAULT: &[u8] = &[16, 17];

/// Watches a terminal's input for the sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    keys: Vec<u8>,
    matched: usize,
    seen: bool,
}

impl Watch {
    /// From Docker's notation (`ctrl-p,ctrl-q`, `a`); none is the default. What
    /// does not parse never matches: the engine refuses it.
    pub fn new(text: Option<&str>) -> Self {
        let keys = match text.filter(|text| !text.is_empty()) {
            None => DEFAULT.to_vec(),
            Some(text) => text.split(',').map(key).collect::<Option<_>>().unwrap_or_default(),
        };
        Self { keys, matched: 0, seen: false }
    }

    /// Looks at what was typed; whether the sequence is complete.
    pub fn feed(&mut self, typed: &[u8]) -> bool {
        for byte in typed {
            if self.seen || self.keys.is_empty() {
                break;
            }
            if *byte == self.keys[self.matched] {
                self.matched += 1;
            } else {
                self.matched = usize::from(*byte == self.keys[0]);
            }
            self.seen = self.matched == self.keys.len();
        }
        self.seen
    }
}

fn key(word: &str) -> Option<u8> {
    match word.as_bytes() {
        [byte] => Some(*byte),
        [b'c', b't', b'r', b'l', b'-', byte] => match byte {
            b'a'..=b'z' => Some(byte - b'a' + 1),
            b'@' => Some(0),
            b'['..=b'_' => Some(byte - b'[' + 27),
            _ => None,
        },
        b"DEL" => Some(127),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_found_wherever_it_is_cut() {
        for (keys, typed, want) in [
            (None, &[&[16_u8, 17][..]][..], true),
            (None, &[&[b'x', 16], &[17]], true),
            (None, &[&[16, 16, 17]], true),
            (None, &[&[16, b'x', 17]], false),
            (Some("ctrl-@,a"), &[&[0], b"a"], true),
            (Some("ctrl-_"), &[&[31]], true),
            (Some("nonsense"), &[b"nonsense"], false),
        ] {
            let mut watch = Watch::new(keys);
            assert_eq!(typed.iter().any(|part| watch.feed(part)), want, "{keys:?} {typed:?}");
        }
    }
}
