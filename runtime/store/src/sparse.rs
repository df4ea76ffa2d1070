//! Files with holes: GNU's type `S` and the three PAX forms of GNU tar
//! ("Storing Sparse Files" in its manual).
//!
//! | form | the map is |
//! |---|---|
//! | old GNU | in the header, and in blocks behind it |
//! | PAX 0.0 | `GNU.sparse.offset`, `GNU.sparse.numbytes` records in turn |
//! | PAX 0.1 | `GNU.sparse.map`, numbers with commas |
//! | PAX 1.0 | decimal lines before the data, `GNU.sparse.major=1` |
//!
//! **How it fails.** Pieces out of order, over one another, beyond the file's
//! size or not exactly as long as the data refuse the archive: a map never makes
//! more data than the archive holds, holes cost no space (CATALOGUE I07).

/// Numbers of one map: half a million pieces.
pub(crate) const NUMBERS_MAX: usize = 1 << 20;

/// Where the data of a file with holes belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// The file's whole size in bytes.
    pub size: u64,
    /// Offset and length of each piece, in the order of the data.
    pub pieces: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks a map against the file's size and the data that is there.
    pub(crate) fn new(map: &[u64], size: u64, stored: u64) -> Result<Self, &'static str> {
        let (pairs, rest) = map.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a sparse file with half a piece");
        }
        let (mut end, mut data) = (0u64, 0u64);
        for [at, length] in pairs {
            if *at < end {
                return Err("a sparse file whose pieces are out of order");
            }
            end = at.checked_add(*length).ok_or("a sparse file beyond all sizes")?;
            data += length;
        }
        if size > i64::MAX as u64 || end > size {
            return Err("a sparse file with data beyond its size");
        }
        if data != stored {
            return Err("a sparse file whose map does not fit its data");
        }
        Ok(Self { size, pieces: pairs.iter().map(|[at, length]| (*at, *length)).collect() })
    }
}

/// What PAX records say about a file with holes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Records {
    pub(crate) map: Vec<u64>,
    pub(crate) size: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    major: Option<u64>,
    pieces: Option<u64>,
}

impl Records {
    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        self.size.is_some() || self.major.is_some() || self.pieces.is_some() || !self.map.is_empty()
    }

    /// Whether the map stands before the data.
    pub(crate) fn in_data(&self) -> bool {
        self.major == Some(1)
    }

    /// Takes the record `GNU.sparse.<key>`.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = |text: &[u8]| decimal(text).ok_or("malformed number of a sparse file");
        match key {
            b"major" => self.major = Some(number(value)?),
            b"minor" => {}
            b"numblocks" => self.pieces = Some(number(value)?),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"name" => self.name = Some(value.to_owned()),
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(number(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(number(value)?),
            b"map" if self.map.is_empty() => {
                for text in value.split(|byte| *byte == b',').filter(|text| !text.is_empty()) {
                    self.map.push(number(text)?);
                }
            }
            _ => return Err("malformed records of a sparse file"),
        }
        Ok(())
    }
}

/// Reads a count and twice as many numbers, each on a line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) map: Vec<u64>,
    count: Option<usize>,
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn complete(&self) -> bool {
        self.count == Some(self.map.len())
    }

    /// Takes a block; what follows the last number is padding.
    pub(crate) fn feed(&mut self, block: &[u8]) -> Result<(), &'static str> {
        for byte in block {
            if self.complete() {
                return Ok(());
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("malformed map of a sparse file");
                }
                continue;
            }
            let number = decimal(&self.line).ok_or("malformed map of a sparse file")?;
            self.line.clear();
            if self.count.is_some() {
                self.map.push(number);
            } else if number > NUMBERS_MAX as u64 / 2 {
                return Err("a sparse file of too many pieces");
            } else {
                self.count = Some(number as usize * 2);
            }
        }
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}
