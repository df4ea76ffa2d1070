//! Names inside an archive, made safe.
//!
//! An entry's path becomes a list of components: relative to the layer's root,
//! without empty ones and `.`; `..` is refused wherever it stands (CATALOGUE
//! I01). Whiteouts are told from files here, and only in their exact forms (I05).

/// Longest path that the kernel takes, with its end.
const PATH_MAX: usize = 4096;
/// Longest component.
const NAME_MAX: usize = 255;

/// Why a name is not unpacked.
pub(crate) type Refusal = &'static str;

/// The components of an entry's path; none is the layer's root itself.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.is_empty() {
        return Err("its name is empty");
    }
    if path.len() >= PATH_MAX {
        return Err("its name is longer than 4095 bytes");
    }
    if path.contains(&0) {
        return Err("its name holds a zero byte");
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("its name holds \"..\""),
            _ if part.len() > NAME_MAX => return Err("a component is longer than 255 bytes"),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// What a name means in a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An ordinary entry.
    Plain,
    /// The entry of this name in lower layers is gone.
    Whiteout(&'a [u8]),
    /// Everything that lower layers have in this directory is gone.
    Opaque,
    /// Bookkeeping of the aufs driver, in images of another age.
    Ignored,
}

/// What an entry's components mean.
pub(crate) fn meaning<'a>(parts: &[&'a [u8]]) -> Result<Meaning<'a>, Refusal> {
    let Some((last, parents)) = parts.split_last() else { return Ok(Meaning::Plain) };
    if let Some(first) = parts.first()
        && matches!(*first, b".wh..wh.aufs" | b".wh..wh.orph" | b".wh..wh.plnk")
    {
        return Ok(Meaning::Ignored);
    }
    if parents.iter().any(|part| part.starts_with(b".wh.")) {
        return Err("a whiteout is no directory");
    }
    match last.strip_prefix(b".wh.") {
        None => Ok(Meaning::Plain),
        Some(b".wh..opq") => Ok(Meaning::Opaque),
        Some(b"" | b"." | b"..") => Err("a whiteout of nothing"),
        Some(name) if name.starts_with(b".wh.") => Err("a whiteout of a whiteout"),
        Some(name) => Ok(Meaning::Whiteout(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i01_names_stay_beneath_the_root() {
        let long = "a/".repeat(3000);
        let name = "n".repeat(256);
        for bad in ["", "..", "../x", "a/../../x", "a/..", "/../x", "a/../b", "x\0y", &long, &name]
        {
            assert!(components(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for (text, want) in [
            ("/abs/x", vec!["abs", "x"]),
            ("./", vec![]),
            (".", vec![]),
            ("/", vec![]),
            ("./a//b/./c/", vec!["a", "b", "c"]),
            ("...", vec!["..."]),
            ("..a/b..", vec!["..a", "b.."]),
        ] {
            let want: Vec<&[u8]> = want.iter().map(|part| part.as_bytes()).collect();
            assert_eq!(components(text.as_bytes()).unwrap(), want, "{text:?}");
        }
    }

    #[test]
    fn i05_only_exact_whiteouts() {
        let of = |text: &'static str| {
            let parts = components(text.as_bytes()).unwrap();
            meaning(&parts)
        };
        assert_eq!(of("a/b").unwrap(), Meaning::Plain);
        assert_eq!(of("a/.whx").unwrap(), Meaning::Plain);
        assert_eq!(of("a/.wh.b").unwrap(), Meaning::Whiteout(b"b"));
        assert_eq!(of(".wh..wh..opq").unwrap(), Meaning::Opaque);
        assert_eq!(of(".wh..wh.aufs").unwrap(), Meaning::Ignored);
        for bad in
            [".wh.", ".wh..", ".wh...", ".wh..wh.x", "a/.wh..wh.", ".wh.a/b", ".wh..wh..opq/x"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
