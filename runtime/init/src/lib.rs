//! The first process of a container: carries out a launch plan, then execs.
//!
//! This library holds two things: the program itself ([`IMAGE`], a static ELF
//! file of a few KiB without a libc, compiled by `build.rs` from `program/`),
//! and the language that the parent speaks to it ([`wire`]).
//!
//! ```text
//!  clone3 ─▶ execveat(sealed memfd of IMAGE) ─▶ operations … Ready ─▶ (go) ─▶ operations … Exec
//!                                                   │ error: index and errno       │
//!                                                   ▼                              ▼
//!                                             Frame on the socket          the socket closes
//! ```
//!
//! It fails at the first operation that fails, says which and why, and exits
//! with 255. It allocates nothing, links nothing, and is not dumpable until it
//! has become the container's program.

pub mod wire;

/// The program, an ELF executable for this architecture.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/knarr-init"));

impl wire::Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl std::fmt::Debug for wire::List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl std::fmt::Debug for wire::Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if self.0.len() < 80 => write!(f, "{text:?}"),
            _ => write!(f, "[{} bytes]", self.0.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::wire::{Bytes, Fd, Frame, List, Op, Reader};

    #[test]
    fn operations_survive_the_wire() {
        let ops = [
            Op::Setns { fd: Fd(3), kinds: 0x4000_0000 },
            Op::Sysctl { path: c"sys/kernel/x", value: Bytes(b"0 2147483647") },
            Op::Rlimit { resource: 7, soft: u64::MAX, hard: 1 },
            Op::Terminal { rows: 24, cols: 80, uid: 0, console: true },
            Op::Exec {
                argv: List { count: 2, bytes: b"sh\0-c\0" },
                env: List { count: 0, bytes: b"" },
            },
        ];
        let mut bytes = Vec::new();
        for op in &ops {
            op.encode(&mut bytes);
        }
        assert_eq!(bytes.len() % 4, 0);
        let mut reader = Reader(&bytes);
        for op in &ops {
            assert_eq!(Op::decode(&mut reader).as_ref(), Some(op));
        }
        assert_eq!(Op::decode(&mut reader), None);
    }

    #[test]
    fn what_is_cut_or_foreign_is_not_decoded() {
        let mut bytes = Vec::new();
        Op::Symlink { path: c"/dev/fd", target: c"/proc/self/fd" }.encode(&mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(Op::decode(&mut Reader(&bytes[..end])), None, "{end}");
        }
        assert_eq!(Op::decode(&mut Reader(&[0xff; 64])), None);
        // A string without its end.
        bytes[8 + 7] = b'x';
        assert_eq!(Op::decode(&mut Reader(&bytes)), None);
    }

    #[test]
    fn a_list_gives_back_its_strings() {
        let list = List { count: 3, bytes: b"a\0\0bc\0" };
        let strings: Vec<_> = list.iter().collect();
        assert_eq!(strings, [c"a", c"", c"bc"]);
        let lying = List { count: 9, bytes: b"a\0" };
        assert_eq!(lying.iter().count(), 1);
    }

    #[test]
    fn frames_survive_the_wire() {
        let frame = Frame { kind: Frame::ERROR, op: 7, errno: -2 };
        assert_eq!(Frame::from_bytes(&frame.to_bytes()), frame);
    }

    #[test]
    fn the_program_is_a_small_static_elf() {
        assert_eq!(&super::IMAGE[..4], b"\x7fELF");
        assert!(super::IMAGE.len() < 64 * 1024, "{} bytes", super::IMAGE.len());
    }
}
