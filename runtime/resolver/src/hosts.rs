//! hosts(5): pure.

use std::net::IpAddr;

/// The addresses of a name: those of every line that has it, each once.
pub(crate) fn find(text: &[u8], name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next() else { continue };
        if !words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)) {
            continue;
        }
        // An IPv6 address may have a zone, which is of no use without its interface.
        let address = address.split('%').next().unwrap_or_default();
        if let Ok(address) = address.parse::<IpAddr>()
            && !found.contains(&address)
            && found.len() < crate::MAX_ADDRESSES
        {
            found.push(address);
        }
    }
    found
}
