//! A strict, bounded reader of tar archives: v7, ustar, PAX, GNU long names and
//! sparse files (`sparse.rs`).
//!
//! Bounded means: whatever an archive says, no more than [`EXTENSION_MAX`]
//! bytes of it are ever held in memory, which is why this is not the `tar`
//! crate (it reads names of any length). Strict means: numbers, checksums and
//! the order of extension headers are as the formats want them.
//!
//! ```text
//!   next() ─▶ Entry ─▶ read its data ─▶ next() skips what was not read
//!     │ None at two zero blocks or a clean end
//!     └ drain() reads what follows, so that hashes see every byte
//! ```
//!
//! **How it fails.** [`Error::Archive`] names the offset of the bad header;
//! [`Error::Source`] when the reader ends or fails inside an entry.

use std::io::{self, Read};

use crate::{
    Error, Result,
    pax::{self, Pax},
    sparse::{self, Sparse},
};

const BLOCK: usize = 512;
/// An extension header: long names, PAX records.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of an entry before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry's header, with its extensions applied.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path as it was written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Target of a link.
    pub link: Vec<u8>,
    /// Bytes of data that follow.
    pub size: u64,
    /// Where they belong in a file with holes; none where they are all of it.
    pub sparse: Option<Sparse>,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for messages.
    pub fn shown(&self) -> String {
        let text: String = String::from_utf8_lossy(&self.path).chars().take(200).collect();
        text
    }
}

/// A tar archive that is being read.
#[derive(Debug)]
pub struct Tarball<R> {
    reader: R,
    /// Bytes read so far, for messages.
    offset: u64,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Padding behind it.
    padding: u64,
    entries_left: u64,
    ended: bool,
}

impl<R: Read> Tarball<R> {
    /// Reads an archive of at most so many entries.
    ///
    /// # Errors
    /// None today.
    pub fn new(reader: R, entries: u64) -> Result<Self> {
        Ok(Self { reader, offset: 0, data: 0, padding: 0, entries_left: entries, ended: false })
    }

    /// The next entry; none at the end.
    ///
    /// # Errors
    /// See the module.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                if pax.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(self.bad("an extension header without an entry"));
                }
                return Ok(None);
            };
            self.entries_left = self
                .entries_left
                .checked_sub(1)
                .ok_or_else(|| Error::Archive("layer has too many entries".into()))?;
            let size = self.number(&header[124..136])?;
            let twice = "two extension headers of a kind for one entry";
            match header[156] {
                b'x' if pax.is_some() => return Err(self.bad(twice)),
                b'L' if long_name.is_some() => return Err(self.bad(twice)),
                b'K' if long_link.is_some() => return Err(self.bad(twice)),
                b'x' => {
                    let records = self.extension(size)?;
                    pax = Some(pax::parse(&records).map_err(|why| self.bad(&why))?);
                }
                b'L' => long_name = Some(terminated(self.extension(size)?)),
                b'K' => long_link = Some(terminated(self.extension(size)?)),
                // Global records are comments in practice (git archive); engines ignore them.
                b'g' => {
                    self.extension(size)?;
                }
                _ => {
                    let pax = pax.unwrap_or_default();
                    let mut entry = self.entry(&header, &pax, long_name, long_link)?;
                    self.sparse(&header, &pax.sparse, &mut entry)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads everything up to the end of the reader.
    ///
    /// # Errors
    /// When the reader fails.
    pub fn drain(&mut self) -> Result<()> {
        self.skip()?;
        io::copy(&mut self.reader, &mut io::sink()).map_err(Error::Source)?;
        Ok(())
    }

    /// Reads the current entry's data whole, up to a limit.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or when the reader fails.
    pub fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.data > limit {
            return Err(Error::TooLarge { what: "archive entry".into(), limit });
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(Error::Source)?;
        Ok(bytes)
    }

    fn bad(&self, why: &str) -> Error {
        Error::Archive(format!("archive, header before byte {}: {why}", self.offset))
    }

    /// Reads over what is left of the current entry.
    fn skip(&mut self) -> Result<()> {
        let left = self.data + self.padding;
        (self.data, self.padding) = (0, 0);
        self.offset += left;
        let skipped =
            io::copy(&mut (&mut self.reader).take(left), &mut io::sink()).map_err(Error::Source)?;
        if skipped < left {
            return Err(Error::Archive("archive is truncated".into()));
        }
        Ok(())
    }

    /// The next header block whose checksum is right; none at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.reader.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(Error::Archive("archive is truncated".into())),
                Ok(read) => have += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Source(e)),
            }
        }
        self.offset += BLOCK as u64;
        if block == [0; BLOCK] {
            self.ended = true;
            return Ok(None);
        }
        // The sum counts its own field as spaces; old writers summed signed bytes.
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        let want = self.number(&block[148..156])?;
        if want != unsigned && i64::try_from(want) != Ok(signed) {
            return Err(self.bad("wrong checksum"));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(self.bad("extension header of more than 1 MiB"));
        }
        self.begin_data(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.read_to_end(&mut bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Archive("archive is truncated".into()),
            _ => Error::Source(e),
        })?;
        Ok(bytes)
    }

    fn begin_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        pax: &Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let ustar = header[257..263] == *b"ustar\0";
        let short_name = || {
            let name = until_zero(&header[..100]);
            match until_zero(&header[345..500]) {
                prefix if ustar && !prefix.is_empty() => [prefix, b"/", name].concat(),
                _ => name.to_owned(),
            }
        };
        let path = pax.path.clone().or(long_name).unwrap_or_else(short_name);
        let link = pax
            .link
            .clone()
            .or(long_link)
            .unwrap_or_else(|| until_zero(&header[157..257]).to_owned());
        let kind = match header[156] {
            // Before ustar a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(
                    self.bad(&format!("entry type {:?} is not supported", char::from(other)))
                );
            }
        };
        // Only files have data; a size elsewhere is a leftover that all readers ignore.
        let size = match kind {
            EntryKind::File => pax.size.map_or_else(|| self.number(&header[124..136]), Ok)?,
            _ => 0,
        };
        if size > i64::MAX as u64 {
            return Err(self.bad("negative size"));
        }
        let uid = pax.uid.map_or_else(|| self.number(&header[108..116]), Ok)?;
        let gid = pax.gid.map_or_else(|| self.number(&header[116..124]), Ok)?;
        let owner = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (owner(uid), owner(gid)) else {
            return Err(self.bad("owner out of range"));
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                let major = self.number(&header[329..337])?;
                let minor = self.number(&header[337..345])?;
                match (u32::try_from(major), u32::try_from(minor)) {
                    (Ok(major), Ok(minor)) => (major, minor),
                    _ => return Err(self.bad("device number out of range")),
                }
            }
            _ => (0, 0),
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            // A negative number of GNU's base-256 form reads as a huge one.
            None => (self.number(&header[136..148])? as i64, 0),
        };
        let mode = (self.number(&header[100..108])? & 0o7777) as u32;
        self.begin_data(size);
        let xattrs = pax.xattrs.clone();
        let sparse = None;
        Ok(Entry { path, kind, mode, uid, gid, mtime, link, size, sparse, device, xattrs })
    }

    /// Reads the map of a file with holes: its entry then has only the data.
    fn sparse(
        &mut self,
        header: &[u8; BLOCK],
        pax: &sparse::Records,
        entry: &mut Entry,
    ) -> Result<()> {
        let old = header[156] == b'S';
        if entry.kind != EntryKind::File || !(old || pax.any()) {
            return Ok(());
        }
        let (map, size) = if old {
            // The header's own map goes on in blocks before the data.
            let mut map = Vec::new();
            let mut more = self.sparse_numbers(&header[386..482], header[482], &mut map)?;
            while more {
                let mut block = [0; BLOCK];
                self.reader.read_exact(&mut block).map_err(truncated)?;
                self.offset += BLOCK as u64;
                more = self.sparse_numbers(&block[..504], block[504], &mut map)?;
            }
            (map, self.number(&header[483..495])?)
        } else if pax.in_data() {
            let map = self.sparse_lines()?;
            entry.size = self.data;
            (map, pax.size.ok_or_else(|| self.bad("a sparse file without its size"))?)
        } else {
            (pax.map.clone(), pax.size.ok_or_else(|| self.bad("a sparse file without its size"))?)
        };
        if let Some(name) = &pax.name {
            entry.path.clone_from(name);
        }
        let sparse = Sparse::new(&map, size, entry.size).map_err(|why| self.bad(why))?;
        entry.sparse = Some(sparse);
        Ok(())
    }

    /// Offsets and lengths of one GNU block; whether another follows.
    fn sparse_numbers(&self, fields: &[u8], more: u8, map: &mut Vec<u64>) -> Result<bool> {
        for field in fields.chunks_exact(12) {
            if field[0] == 0 {
                break;
            }
            map.push(self.number(field)?);
        }
        if map.len() > sparse::NUMBERS_MAX {
            return Err(self.bad("a sparse file of too many pieces"));
        }
        Ok(more != 0)
    }

    /// The map of PAX's form 1.0: decimal lines before the data, padded to a block.
    fn sparse_lines(&mut self) -> Result<Vec<u64>> {
        let mut numbers = sparse::Lines::default();
        while !numbers.complete() {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(truncated)?;
            numbers.feed(&block).map_err(|why| self.bad(why))?;
        }
        Ok(numbers.map)
    }

    /// A numeric field: octal digits, or base 256 where the first bit is set.
    fn number(&self, field: &[u8]) -> Result<u64> {
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let fill = if negative { u64::MAX } else { 0 };
            // 0x80 marks the form; the next bit is the sign.
            let first = if negative { field[0] } else { field[0] & 0x7f };
            let mut value = fill;
            for (at, byte) in field.iter().enumerate() {
                let byte = if at == 0 { first } else { *byte };
                if value >> 56 != fill >> 56 {
                    return Err(self.bad("number out of range"));
                }
                value = value << 8 | u64::from(byte);
            }
            return Ok(value);
        }
        let digits = until_zero(field);
        let text = std::str::from_utf8(digits).map_err(|_| self.bad("malformed number"))?;
        match text.trim_matches(' ') {
            "" => Ok(0),
            digits if digits.bytes().all(|c| matches!(c, b'0'..=b'7')) => {
                u64::from_str_radix(digits, 8).map_err(|_| self.bad("number out of range"))
            }
            _ => Err(self.bad("malformed number")),
        }
    }
}

/// Data of the current entry.
impl<R: Read> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.data.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive is truncated"));
        }
        self.data -= read as u64;
        self.offset += read as u64;
        Ok(read)
    }
}

fn truncated(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::Archive("archive is truncated".into()),
        _ => Error::Source(e),
    }
}

fn until_zero(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// GNU's long names end with a zero byte.
fn terminated(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
