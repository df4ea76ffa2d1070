//! PAX extended headers: `LENGTH KEYWORD=VALUE\n` records (POSIX pax, "pax
//! Extended Header").
//!
//! **How it fails.** A record whose length does not end at its newline, a
//! number that is none, a repeated extended attribute or one of overlayfs' own
//! refuses the entry.

use crate::sparse::Records;

/// What an extended header says about the next entry.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Records,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Extended attributes of one entry; file systems take far fewer.
const XATTRS_MAX: usize = 256;
const SPARSE: &[u8] = b"GNU.sparse.";

/// Parses the records of one extended header.
pub(crate) fn parse(mut records: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    // Some writers pad with zeros.
    while records.first().is_some_and(|byte| *byte != 0) {
        let (key, value, rest) = record(records).ok_or("malformed extended header")?;
        records = rest;
        let text = || std::str::from_utf8(value).map_err(|_| "malformed extended header");
        let number = || {
            let text = text()?;
            text.parse::<u64>().map_err(|_| "malformed number in an extended header")
        };
        match key {
            b"path" => pax.path = Some(value.to_owned()),
            b"linkpath" => pax.link = Some(value.to_owned()),
            b"size" => pax.size = Some(number()?),
            b"uid" => pax.uid = Some(number()?),
            b"gid" => pax.gid = Some(number()?),
            b"mtime" => {
                pax.mtime = Some(time(text()?).ok_or("malformed time in an extended header")?);
            }
            _ if key.starts_with(SPARSE) => pax.sparse.record(&key[SPARSE.len()..], value)?,
            _ if key.starts_with(XATTR) => attribute(&mut pax, &key[XATTR.len()..], value)?,
            _ => {}
        }
    }
    Ok(pax)
}

/// Splits one record off: keyword, value, what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?;
    let (newline, body) = body.split_last()?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let key = &body[..equals];
    (*newline == b'\n' && !key.is_empty()).then(|| (key, &body[equals + 1..], &bytes[length..]))
}

/// `[-]SECONDS[.FRACTION]` as seconds and nanoseconds.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        nanoseconds =
            nanoseconds * 10 + fraction.as_bytes().get(at).map_or(0, |c| u32::from(c - b'0'));
    }
    // -1.25 is 0.75 seconds after -2.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

/// Extended attributes that mean something in a container are kept; those that
/// steer overlayfs are an attack (CATALOGUE I06); those that belong to the
/// builder's host (its SELinux labels, IMA hashes) are left out.
fn attribute(pax: &mut Pax, name: &[u8], value: &[u8]) -> Result<(), String> {
    let shown = String::from_utf8_lossy(name);
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Err(format!("extended attribute {shown} belongs to overlayfs"));
    }
    if name.contains(&0) || name.len() > 255 {
        return Err("malformed name of an extended attribute".into());
    }
    let kept = name.starts_with(b"user.")
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_");
    if kept {
        if pax.xattrs.iter().any(|(other, _)| other == name) {
            return Err(format!("extended attribute {shown} is there twice"));
        }
        if pax.xattrs.len() == XATTRS_MAX {
            return Err("too many extended attributes".into());
        }
        pax.xattrs.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &str) -> Vec<u8> {
        let body = format!(" {key}={value}\n");
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        format!("{length}{body}").into_bytes()
    }

    #[test]
    fn records_parse() {
        let mut all = line("path", "a/ü");
        all.extend(line("mtime", "-1.25"));
        all.extend(line("size", "8589934592"));
        all.extend(line("SCHILY.xattr.user.x", "a=b\nc"));
        all.extend(line("SCHILY.xattr.security.selinux", "host"));
        let pax = parse(&all).unwrap();
        assert_eq!(pax.path.unwrap(), "a/ü".as_bytes());
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.size, Some(8 << 30));
        assert_eq!(pax.xattrs, vec![(b"user.x".to_vec(), b"a=b\nc".to_vec())]);
    }

    #[test]
    fn i06_i07_bad_records_are_refused() {
        for bad in [
            b"99 path=x\n".to_vec(),
            b"5 path=x\n".to_vec(),
            b"path=x\n".to_vec(),
            b"18446744073709551616 a=b\n".to_vec(),
            b"-9 path=x\n".to_vec(),
            b"6 =b\n\0\0".to_vec(),
            line("size", "-1"),
            line("size", "1x"),
            line("mtime", "soon"),
            line("GNU.sparse.map", "0,x"),
            line("GNU.sparse.numbytes", "1"),
            line("GNU.sparse.unknown", "1"),
            line("SCHILY.xattr.trusted.overlay.redirect", "/../../etc"),
            line("SCHILY.xattr.user.overlay.opaque", "y"),
            line("SCHILY.xattr.user.a\0b", "y"),
        ] {
            assert!(parse(&bad).is_err(), "{:?}", String::from_utf8_lossy(&bad));
        }
    }
}
