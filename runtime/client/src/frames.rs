//! StreamKind in frames: one byte stream, three zero bytes, length in big endian.

use bytes::{Buf as _, Bytes, BytesMut};
use knarr_docker::StreamKind;

/// Takes bytes apart into frames as they come.
#[derive(Debug)]
pub struct Frames {
    buffer: BytesMut,
    /// The stream of the frame that is under way, and how much of it is to come.
    current: Option<(StreamKind, usize)>,
    raw: bool,
}

impl Frames {
    /// `raw` is a terminal's output, which has no frames.
    pub fn new(raw: bool) -> Self {
        Self { buffer: BytesMut::new(), current: None, raw }
    }

    /// Adds what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next piece of output, as far as it is here.
    pub fn next_piece(&mut self) -> Option<(StreamKind, Bytes)> {
        if self.raw {
            return (!self.buffer.is_empty())
                .then(|| (StreamKind::Stdout, self.buffer.split().freeze()));
        }
        loop {
            if let Some((output, left)) = self.current.take() {
                if left == 0 {
                    continue;
                }
                if self.buffer.is_empty() {
                    self.current = Some((output, left));
                    return None;
                }
                let piece = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                self.current = Some((output, left - piece.len()));
                return Some((output, piece));
            }
            let (header, _) = self.buffer.split_first_chunk::<8>()?;
            // What is no header is shown, not swallowed: the engine broke the framing.
            let Some((kind, length)) = StreamKind::parse(*header) else {
                return Some((StreamKind::Stderr, self.buffer.split().freeze()));
            };
            self.buffer.advance(8);
            self.current = Some((kind, length as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_wherever_they_are_cut() {
        let wire =
            [&[1, 0, 0, 0, 0, 0, 0, 3][..], b"out", &[2, 0, 0, 0, 0, 0, 0, 3], b"err"].concat();
        for cut in 0..wire.len() {
            let mut frames = Frames::new(false);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for part in [&wire[..cut], &wire[cut..]] {
                frames.feed(part);
                while let Some((output, piece)) = frames.next_piece() {
                    match output {
                        StreamKind::Stdout => out.extend_from_slice(&piece),
                        _ => err.extend_from_slice(&piece),
                    }
                }
            }
            assert_eq!((&out[..], &err[..]), (&b"out"[..], &b"err"[..]), "cut at {cut}");
        }
    }
}
