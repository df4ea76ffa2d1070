//! Compressed streams, recognised by their first bytes.
//!
//! The bytes decide, not the media type: registries hold gzip under the name of
//! plain tar and the other way round, and every engine reads them so.
//!
//! **How it fails.** A broken or truncated stream is an I/O error of kind
//! `InvalidData` or `UnexpectedEof` on read. zstd windows above 128 MiB and
//! compressions that Knarr does not read are refused.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

/// zstd windows up to 2^27 bytes = 128 MiB (CATALOGUE I08).
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

impl Compression {
    /// How many of its first bytes are enough to recognise a stream.
    pub const START: usize = 6;

    /// Recognises a stream by its first bytes.
    ///
    /// # Errors
    /// `Unsupported` for xz and bzip2.
    pub fn detect(start: &[u8]) -> io::Result<Self> {
        let unsupported = |name: &str| {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{name} compression is not supported: want gzip, zstd or none"),
            ))
        };
        match start {
            [0x1f, 0x8b, 8, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
            _ => Ok(Self::None),
        }
    }
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A reader of what was compressed.
pub(crate) struct Decompressor<R: Read>(Inner<R>);

enum Inner<R: Read> {
    None(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source<R>>>),
}

impl<R: Read> Decompressor<R> {
    /// Looks at the first bytes and decodes accordingly.
    ///
    /// # Errors
    /// When the source fails or the compression is not supported.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut start = vec![0; Compression::START];
        let mut have = 0;
        while have < start.len() {
            match source.read(&mut start[have..]) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        start.truncate(have);
        let compression = Compression::detect(&start)?;
        let source = BufReader::with_capacity(64 * 1024, Cursor::new(start).chain(source));
        Ok(Self(match compression {
            Compression::None => Inner::None(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Inner::Zstd(Box::new(decoder))
            }
        }))
    }

    /// What was recognised.
    pub(crate) fn compression(&self) -> Compression {
        match &self.0 {
            Inner::None(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }

    /// Reads what the source still has behind the end of the compressed data,
    /// so that whoever hashes the source has seen all of it.
    ///
    /// # Errors
    /// When the source fails.
    pub(crate) fn drain_source(&mut self) -> io::Result<()> {
        let source = match &mut self.0 {
            Inner::None(source) => source,
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Zstd(decoder) => decoder.get_mut(),
        };
        loop {
            let read = source.fill_buf()?.len();
            if read == 0 {
                return Ok(());
            }
            source.consume(read);
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(source) => source.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
