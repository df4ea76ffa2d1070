//! `filters=`: JSON, a map of lists or (before API 1.22) a map of sets.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{ApiError, Result};

/// Names of filters with the values that are wanted: any of them, but all for
/// labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Set(BTreeMap<String, bool>),
}

impl Filters {
    /// Reads the parameter and refuses names that are not among `known`.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::default()) };
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::invalid(format!("invalid filter: {error}")))?;
        let filters: BTreeMap<_, _> = parsed
            .into_iter()
            .map(|(name, values)| match values {
                Values::List(list) => (name, list),
                Values::Set(set) => {
                    (name, set.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect())
                }
            })
            .collect();
        if let Some(name) = filters.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(ApiError::invalid(format!("invalid filter '{name}'")));
        }
        Ok(Self(filters))
    }

    /// The values of a filter; empty where it was not given.
    pub(crate) fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a filter was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.get(name).is_empty()
    }

    /// True without the filter, or where one of its values satisfies `test`.
    pub(crate) fn any(&self, name: &str, test: impl FnMut(&String) -> bool) -> bool {
        !self.has(name) || self.get(name).iter().any(test)
    }

    /// True without the filter, or where one of its values is `value`.
    pub(crate) fn is(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| wanted == value)
    }

    /// A truth value; an error for other words.
    pub(crate) fn truth(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name).first() else { return Ok(None) };
        match value.as_str() {
            "1" | "true" | "True" | "TRUE" | "t" | "T" => Ok(Some(true)),
            "0" | "false" | "False" | "FALSE" | "f" | "F" => Ok(Some(false)),
            other => Err(ApiError::invalid(format!("invalid filter '{name}={other}'"))),
        }
    }

    /// `label=key`, `label=key=value` (all of them), and `label!=…` (none of them).
    pub(crate) fn labels<'a>(&self, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels(key) == Some(value),
            None => labels(wanted).is_some(),
        };
        self.get("label").iter().all(holds) && !self.get("label!").iter().any(holds)
    }
}

/// Docker's `name` filter: a regular expression there; here a substring, where
/// `^` and `$` anchor, which is how people use it.
pub(crate) fn name_matches(pattern: &str, name: &str) -> bool {
    let (pattern, start) = match pattern.strip_prefix('^') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (pattern, end) = match pattern.strip_suffix('$') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let pattern = pattern.strip_prefix('/').unwrap_or(pattern);
    glob_contains(pattern, name, start, end)
}

/// `.*` matches anything between fixed parts.
fn glob_contains(pattern: &str, name: &str, start: bool, end: bool) -> bool {
    let parts: Vec<&str> = pattern.split(".*").collect();
    let last = parts.len() - 1;
    let mut rest = name;
    for (at, part) in parts.iter().enumerate() {
        if at == last && end {
            let anchored = last == 0 && start;
            return if anchored { rest == *part } else { rest.ends_with(part) };
        }
        let found =
            if at == 0 && start { rest.starts_with(part).then_some(0) } else { rest.find(part) };
        let Some(found) = found else { return false };
        rest = &rest[found + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["label", "label!", "status", "dangling"];

    #[test]
    fn both_shapes_read() {
        let list = Filters::parse(Some(r#"{"status":["exited","created"]}"#), KNOWN).unwrap();
        let set =
            Filters::parse(Some(r#"{"status":{"created":true,"exited":true,"x":false}}"#), KNOWN);
        assert!(list.is("status", "created") && !list.is("status", "running"));
        assert!(set.unwrap().is("status", "exited"));
        assert!(Filters::parse(None, KNOWN).unwrap().is("status", "anything"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [r#"{"nope":["x"]}"#, "[]", "{", r#"{"status":"x"}"#] {
            assert_eq!(Filters::parse(Some(bad), KNOWN).unwrap_err().status.as_u16(), 400, "{bad}");
        }
        let filters = Filters::parse(Some(r#"{"dangling":["maybe"]}"#), KNOWN).unwrap();
        assert!(filters.truth("dangling").is_err());
    }

    #[test]
    fn labels_must_all_hold() {
        let labels = |key: &str| match key {
            "a" => Some("1"),
            "b" => Some(""),
            _ => None,
        };
        let test = |json: &str| Filters::parse(Some(json), KNOWN).unwrap().labels(labels);
        assert!(test(r#"{"label":["a=1","b"]}"#));
        assert!(!test(r#"{"label":["a=2"]}"#));
        assert!(!test(r#"{"label":["a","c"]}"#));
        assert!(!test(r#"{"label!":["a"]}"#));
        assert!(test(r#"{"label!":["c"]}"#));
    }

    #[test]
    fn names_match_anchored_or_not() {
        assert!(name_matches("eb", "web-1"));
        assert!(name_matches("^/web-1$", "web-1"));
        assert!(name_matches("^web-1$", "web-1"));
        assert!(!name_matches("^web$", "web-1"));
        assert!(!name_matches("^eb", "web-1"));
        assert!(name_matches("-1$", "web-1"));
        assert!(name_matches("^web.*1$", "web-1"));
        assert!(!name_matches("b.*w", "web-1"));
    }
}
