//! `-v`, `--mount` and `--tmpfs` (docker/cli `opts/mount.go`).

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use knarr_docker::{BindOptions, DriverConfig, Empty, Mount, TmpfsOptions, VolumeOptions};

use super::units;

/// What the words of `-v` become.
#[derive(Debug, Default, PartialEq)]
pub struct Volumes {
    /// `source:target[:mode]`.
    pub binds: Vec<String>,
    /// Targets alone: anonymous volumes.
    pub anonymous: BTreeMap<String, Empty>,
}

impl Volumes {
    /// Parses the words of `-v`; a relative host path starts with `.` and is
    /// made absolute here, because the engine does not know this directory.
    ///
    /// # Errors
    /// With Docker's wording.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut volumes = Self::default();
        for word in words {
            match word.split(':').collect::<Vec<_>>()[..] {
                [target] => {
                    volumes.anonymous.insert(target.to_owned(), Empty {});
                }
                [source, target] => volumes.binds.push(format!("{}:{target}", absolute(source)?)),
                [source, target, mode] => {
                    volumes.binds.push(format!("{}:{target}:{mode}", absolute(source)?))
                }
                _ => bail!("invalid volume specification: '{word}'"),
            }
        }
        Ok(volumes)
    }
}

fn absolute(source: &str) -> Result<String> {
    if source == "." || source == ".." || source.starts_with("./") || source.starts_with("../") {
        let here = std::env::current_dir().context("the working directory is gone")?;
        return Ok(std::path::absolute(here.join(source))?.to_string_lossy().into_owned());
    }
    if let Some(rest) = source.strip_prefix("~/") {
        return Ok(format!("{}/{rest}", std::env::var("HOME").unwrap_or_default()));
    }
    Ok(source.to_owned())
}

/// Parses one `--mount`: comma-separated `key=value`.
///
/// # Errors
/// With Docker's wording.
pub fn mount(text: &str) -> Result<Mount> {
    let mut mount = Mount { kind: "volume".into(), ..Mount::default() };
    for field in csv(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let text =
            || value.with_context(|| format!("invalid field '{field}' must be a key=value pair"));
        let flag = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => bail!("invalid value for {key}: {other}"),
        };
        match key.as_str() {
            "type" => mount.kind = text()?.to_ascii_lowercase(),
            "source" | "src" => mount.source = absolute(text()?)?,
            "target" | "dst" | "destination" => text()?.clone_into(&mut mount.target),
            "readonly" | "ro" => mount.read_only = flag()?,
            "consistency" => text()?.clone_into(&mut mount.consistency),
            "bind-propagation" => text()?.clone_into(&mut bind(&mut mount).propagation),
            "bind-nonrecursive" => bind(&mut mount).non_recursive = flag()?,
            "bind-create-src" => bind(&mut mount).create_mountpoint = flag()?,
            "bind-recursive" => match text()? {
                "enabled" => {}
                "disabled" => bind(&mut mount).non_recursive = true,
                "writable" => bind(&mut mount).read_only_non_recursive = true,
                "readonly" => bind(&mut mount).read_only_force_recursive = true,
                other => bail!("invalid value for bind-recursive: {other}"),
            },
            "volume-nocopy" => volume(&mut mount).no_copy = flag()?,
            "volume-subpath" => text()?.clone_into(&mut volume(&mut mount).subpath),
            "volume-label" => {
                let label = units::pairs(&[text()?.to_owned()]);
                volume(&mut mount).labels.get_or_insert_default().extend(label);
            }
            "volume-driver" => text()?.clone_into(&mut driver(&mut mount).name),
            "volume-opt" => {
                let option = units::pairs(&[text()?.to_owned()]);
                driver(&mut mount).options.get_or_insert_default().extend(option);
            }
            "tmpfs-size" => tmpfs(&mut mount).size_bytes = units::bytes(text()?)?,
            "tmpfs-mode" => {
                tmpfs(&mut mount).mode = u32::from_str_radix(text()?, 8)
                    .with_context(|| format!("invalid value for tmpfs-mode: {field}"))?;
            }
            _ => bail!("unexpected key '{key}' in '{field}'"),
        }
    }
    ensure!(!mount.target.is_empty(), "target is required");
    if let Some(bind) = &mount.bind_options {
        let needs = |word: &str, what: &str| {
            format!(
                "option 'bind-recursive={word}' requires '{what}' to be specified in conjunction"
            )
        };
        if bind.read_only_non_recursive {
            ensure!(mount.read_only, needs("writable", "readonly"));
        }
        if bind.read_only_force_recursive {
            ensure!(mount.read_only, needs("readonly", "readonly"));
            ensure!(bind.propagation == "rprivate", needs("readonly", "bind-propagation=rprivate"));
        }
    }
    let foreign = [
        (mount.bind_options.is_some(), "bind"),
        (mount.volume_options.is_some(), "volume"),
        (mount.tmpfs_options.is_some(), "tmpfs"),
    ];
    for (given, kind) in foreign {
        ensure!(
            !given || mount.kind == kind,
            "cannot mix '{kind}-*' options with mount type '{}'",
            mount.kind
        );
    }
    Ok(mount)
}

fn bind(mount: &mut Mount) -> &mut BindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume(mount: &mut Mount) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_default()
}

fn driver(mount: &mut Mount) -> &mut DriverConfig {
    volume(mount).driver_config.get_or_insert_default()
}

fn tmpfs(mount: &mut Mount) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

/// Fields separated by commas; a field in double quotes may hold commas.
pub fn csv(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("never empty").push(c),
        }
    }
    fields
}

/// `--tmpfs /path[:options]`.
pub fn tmpfs_words(words: &[String]) -> BTreeMap<String, String> {
    words
        .iter()
        .map(|word| word.split_once(':').unwrap_or((word, "")))
        .map(|(path, options)| (path.to_owned(), options.to_owned()))
        .collect()
}

/// Whether a path exists here (for `--cidfile`).
pub fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let parsed = Volumes::parse(&["/a".into(), "name:/b".into(), "/c:/d:ro".into()]).unwrap();
        assert_eq!(parsed.binds, ["name:/b", "/c:/d:ro"]);
        assert!(parsed.anonymous.contains_key("/a"));
        assert!(Volumes::parse(&["a:b:c:d".into()]).is_err());
        let here = std::env::current_dir().unwrap();
        let relative = Volumes::parse(&["./x:/d".into()]).unwrap();
        assert_eq!(relative.binds, [format!("{}/x:/d", here.display())]);
    }

    #[test]
    fn mounts() {
        let parsed = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!((parsed.kind.as_str(), parsed.read_only), ("bind", true));
        assert_eq!(parsed.bind_options.unwrap().propagation, "rslave");
        let parsed = mount("target=/x,volume-nocopy,volume-label=a=b").unwrap();
        assert!(parsed.kind == "volume" && parsed.volume_options.unwrap().no_copy);
        let parsed = mount("type=tmpfs,dst=/x,tmpfs-size=1m,tmpfs-mode=1777").unwrap();
        assert_eq!(parsed.tmpfs_options.unwrap().mode, 0o1777);
        for bad in ["", "type=bind", "dst=/x,nosuch=1", "type=tmpfs,dst=/x,volume-nocopy", "dst"] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quoted_fields_hold_commas() {
        assert_eq!(csv(r#"a=1,"b=2,3",c"#), ["a=1", "b=2,3", "c"]);
    }
}
