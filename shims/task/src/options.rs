//! What containerd says of a runtime beside the container: its options.
//!
//! ```text
//!  [….runtimes.knarr.options]      containerd.runc.v1.Options ──────────────┐
//!  SystemdCgroup = true        ──▶ runtimeoptions.v1.Options ─ ConfigBody ──┼──▶ Options
//!                                                            └ ConfigPath ──┘
//! ```
//!
//! containerd 2 (and 1.7) hand a foreign runtime its table as text (`ConfigBody`);
//! before that the table may only name a file (`ConfigPath`) with the same words.
//! The words are those of containerd's own runtime. What asks for something that
//! this one does not do is an error that names it; what only says where CRIU is,
//! which nobody calls, or where containerd finds a sandbox's shim, which we are, is
//! passed over.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::protobuf::{CodedInputStream, well_known_types::any::Any};

/// What we do about them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// systemd makes the control groups.
    pub(crate) systemd_cgroup: bool,
    /// The root is entered with chroot.
    pub(crate) no_pivot_root: bool,
    /// Containers keep our session keyring.
    pub(crate) no_new_keyring: bool,
}

/// Names of containerd's configuration and numbers of `containerd.runc.v1.Options`.
const WORDS: [(&str, u32); 13] = [
    ("NoPivotRoot", 1),
    ("NoNewKeyring", 2),
    ("ShimCgroup", 3),
    ("IoUid", 4),
    ("IoGid", 5),
    ("BinaryName", 6),
    ("Root", 7),
    ("CriuPath", 8),
    ("SystemdCgroup", 9),
    ("CriuImagePath", 10),
    ("CriuWorkPath", 11),
    ("TaskApiAddress", 12),
    ("TaskApiVersion", 13),
];

/// A field's value, or the file's.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    Text(String),
}

impl Value {
    fn says_nothing(&self) -> bool {
        match self {
            Self::Number(number) => *number == 0,
            Self::Text(text) => text.is_empty(),
        }
    }
}

impl Options {
    /// Understands a message.
    pub(crate) fn of(any: &Any) -> Result<Self> {
        let mut new = Self::default();
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "" if any.value.is_empty() => {}
            "containerd.runc.v1.Options" => {
                for (number, value) in fields(&any.value)? {
                    let name = WORDS.iter().find(|word| word.1 == number).map(|word| word.0);
                    let name = name.with_context(|| {
                        format!("field {number} of {} is not known", any.type_url)
                    })?;
                    new.set(name, &value)?;
                }
            }
            "runtimeoptions.v1.Options" => {
                let (mut path, mut body) = (None, None);
                for (number, value) in fields(&any.value)? {
                    match (number, value) {
                        // Of whom the options are, in containerd's words.
                        (1, Value::Text(_)) => {}
                        (2, Value::Text(text)) => path = Some(text),
                        (3, Value::Text(text)) => body = Some(text),
                        (number, _) => bail!("field {number} of {} is not known", any.type_url),
                    }
                }
                let path = path.filter(|path| !path.is_empty());
                if let Some(body) = body.filter(|body| !body.is_empty()) {
                    new.read(&body).context("the runtime's ConfigBody")?;
                } else if let Some(path) = path {
                    let text = std::fs::read_to_string(Path::new(&path));
                    let text =
                        text.with_context(|| format!("read the runtime's ConfigPath {path}"))?;
                    new.read(&text).with_context(|| path.clone())?;
                }
            }
            _ => bail!(
                "options of type {} are not supported by the runtime io.containerd.knarr.v1",
                any.type_url
            ),
        }
        Ok(new)
    }

    /// Lines of `Name = value`, as TOML has them outside of its tables.
    fn read(&mut self, text: &str) -> Result<()> {
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) =
                line.split_once('=').with_context(|| format!("{line:?} is not Name = value"))?;
            let (name, value) = (name.trim().trim_matches('"'), value.trim());
            let value = match value.strip_prefix(['"', '\'']) {
                Some(rest) => {
                    let mark = &value[..1];
                    let (inner, behind) = rest
                        .split_once(mark)
                        .with_context(|| format!("{line:?} does not end its string"))?;
                    ensure!(is_nothing(behind), "{line:?} goes on behind its string");
                    Value::Text(inner.to_owned())
                }
                None => match value.split('#').next().unwrap_or_default().trim() {
                    "true" => Value::Number(1),
                    "false" => Value::Number(0),
                    word => Value::Number(
                        word.parse().ok().with_context(|| format!("{line:?} has no value"))?,
                    ),
                },
            };
            // What says whose options they are, beside them in containerd's table.
            if !matches!(name, "TypeUrl" | "ConfigPath") {
                self.set(name, &value)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        let switch = match name {
            "SystemdCgroup" => &mut self.systemd_cgroup,
            "NoPivotRoot" => &mut self.no_pivot_root,
            "NoNewKeyring" => &mut self.no_new_keyring,
            "CriuPath" | "CriuImagePath" | "CriuWorkPath" => return Ok(()),
            "TaskApiAddress" | "TaskApiVersion" => return Ok(()),
            _ if value.says_nothing() => return Ok(()),
            _ => bail!("the option {name} is not supported by the runtime io.containerd.knarr.v1"),
        };
        let Value::Number(number @ (0 | 1)) = value else {
            bail!("the option {name} is true or false");
        };
        *switch = *number == 1;
        Ok(())
    }
}

fn is_nothing(behind: &str) -> bool {
    let behind = behind.trim();
    behind.is_empty() || behind.starts_with('#')
}

/// A message of numbers and strings, without its schema.
fn fields(bytes: &[u8]) -> Result<Vec<(u32, Value)>> {
    let damaged = "the runtime's options are damaged";
    let mut stream = CodedInputStream::from_bytes(bytes);
    let mut fields = Vec::new();
    while let Some(tag) = stream.read_raw_tag_or_eof().context(damaged)? {
        let value = match tag & 7 {
            0 => Value::Number(stream.read_raw_varint64().context(damaged)?),
            2 => Value::Text(stream.read_string().context(damaged)?),
            _ => bail!(damaged),
        };
        fields.push((tag >> 3, value));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(type_url: &str, value: &[u8]) -> Result<Options> {
        Options::of(&Any { type_url: type_url.into(), value: value.into(), ..Default::default() })
    }

    const RUNC: &str = "containerd.runc.v1.Options";
    const FOREIGN: &str = "type.googleapis.com/runtimeoptions.v1.Options";

    /// A string field.
    fn text(number: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, text.len() as u8];
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn the_options_of_containerd_s_own_runtime() {
        let systemd = Options { systemd_cgroup: true, ..Options::default() };
        assert_eq!(of("", b"").unwrap(), Options::default());
        assert_eq!(of(RUNC, b"").unwrap(), Options::default());
        assert_eq!(of(RUNC, &[9 << 3, 1]).unwrap(), systemd);
        assert!(of(RUNC, &[1 << 3, 1]).unwrap().no_pivot_root);
        // Where CRIU is; nothing of a shim's group; where we are and what we speak.
        let here = text(12, "ttrpc+unix:///run/s/x");
        of(RUNC, &[text(8, "/criu"), text(3, ""), here, vec![13 << 3, 3]].concat()).unwrap();
        for (bytes, name) in [
            (text(3, "/shims"), "ShimCgroup"),
            (text(6, "crun"), "BinaryName"),
            (vec![4 << 3, 5], "IoUid"),
            (vec![99 & 0x7f, 1], "field 12"),
            (vec![9 << 3], "damaged"),
        ] {
            let error = of(RUNC, &bytes).unwrap_err();
            assert!(!format!("{error:#}").is_empty(), "{name}");
            if name != "field 12" {
                assert!(format!("{error:#}").contains(name), "{name}: {error:#}");
            }
        }
        of("io.containerd.kata.v2.Options", b"").unwrap_err();
    }

    #[test]
    fn the_words_of_a_foreign_runtime_s_table() {
        let body = "# of the node\n\nSystemdCgroup = true # as kubelet's\nBinaryName = \"\"\n";
        let said = [text(1, "x"), text(3, body)].concat();
        assert!(of(FOREIGN, &said).unwrap().systemd_cgroup);
        assert_eq!(of(FOREIGN, b"").unwrap(), Options::default());
        for (body, words) in [
            ("SystemdCgroup = 2", "true or false"),
            ("SystemdCgroup", "not Name = value"),
            ("[table]", "not Name = value"),
            ("Shiny = true", "Shiny"),
            ("Root = 'x' y", "behind its string"),
            ("Root = '/run/x'", "Root"),
        ] {
            let error = format!("{:#}", of(FOREIGN, &text(3, body)).unwrap_err());
            assert!(error.contains(words), "{body}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("knarr.toml");
        let path = path.to_str().unwrap();
        assert!(of(FOREIGN, &text(2, path)).is_err());
        std::fs::write(path, "SystemdCgroup = true\nNoNewKeyring = false\n").unwrap();
        assert!(of(FOREIGN, &text(2, path)).unwrap().systemd_cgroup);
    }
}
