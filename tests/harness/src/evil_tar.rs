//! Tar archives that no decent program writes.
//!
//! Every field of every header can be anything; only the checksum is right,
//! unless that is the point.

/// An archive under construction.
#[derive(Debug, Clone, Default)]
pub struct EvilTar(Vec<u8>);

/// One header, field by field.
#[derive(Debug, Clone)]
pub struct Header(pub [u8; 512]);

impl Header {
    /// A ustar header of an entry of this type (`b'0'` is a file) and name,
    /// mode 0644, owned by 0:0, of the year 2001.
    pub fn new(kind: u8, name: &[u8]) -> Self {
        let mut header = Self([0; 512]);
        header.put(0, &name[..name.len().min(100)]);
        header.octal(100, 8, if kind == b'5' { 0o755 } else { 0o644 });
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, 0);
        header.octal(136, 12, 1_000_000_000);
        header.0[156] = kind;
        header.put(257, b"ustar\x0000");
        header
    }

    /// Bytes at an offset.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// An octal number in a field.
    pub fn octal(&mut self, at: usize, width: usize, value: u64) -> &mut Self {
        let text = format!("{value:0width$o}\0", width = width - 1);
        self.put(at, text.as_bytes())
    }

    /// Mode, owner and group.
    pub fn owner(&mut self, mode: u64, uid: u64, gid: u64) -> &mut Self {
        self.octal(100, 8, mode).octal(108, 8, uid).octal(116, 8, gid)
    }

    /// Target of a link.
    pub fn link(&mut self, target: &[u8]) -> &mut Self {
        self.put(157, target)
    }

    /// Size of the data.
    pub fn size(&mut self, size: u64) -> &mut Self {
        self.octal(124, 12, size)
    }

    /// Device numbers.
    pub fn device(&mut self, major: u64, minor: u64) -> &mut Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    /// The block with its checksum.
    pub fn block(&self) -> [u8; 512] {
        let mut block = self.0;
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

impl EvilTar {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A header and its data, padded.
    pub fn entry(self, header: &Header, data: &[u8]) -> Self {
        let mut all = self.raw(&header.block()).raw(data);
        let padding = (512 - data.len() % 512) % 512;
        all.0.extend(std::iter::repeat_n(0, padding));
        all
    }

    /// A file.
    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Header::new(b'0', name.as_bytes()).size(data.len() as u64), data)
    }

    /// An executable file.
    pub fn program(self, name: &str, data: &[u8]) -> Self {
        let mut header = Header::new(b'0', name.as_bytes());
        self.entry(header.size(data.len() as u64).octal(100, 8, 0o755), data)
    }

    /// A directory.
    pub fn directory(self, name: &str) -> Self {
        self.entry(&Header::new(b'5', name.as_bytes()), b"")
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(b'2', name.as_bytes()).link(target.as_bytes()), b"")
    }

    /// A hard link.
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(b'1', name.as_bytes()).link(target.as_bytes()), b"")
    }

    /// A device or pipe.
    pub fn node(self, kind: u8, name: &str, major: u64, minor: u64) -> Self {
        self.entry(Header::new(kind, name.as_bytes()).device(major, minor), b"")
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(Header::new(b'x', b"PaxHeaders/x").size(data.len() as u64), &data)
    }

    /// A GNU long name (`b'L'`) or long link (`b'K'`) for the next entry.
    pub fn long(self, kind: u8, name: &[u8]) -> Self {
        let data = [name, b"\0"].concat();
        self.entry(Header::new(kind, b"././@LongLink").size(data.len() as u64), &data)
    }

    /// The archive with its end marker.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    /// The archive as it is, without an end.
    pub fn truncated(self) -> Vec<u8> {
        self.0
    }
}
