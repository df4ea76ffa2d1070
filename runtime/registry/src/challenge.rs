//! `WWW-Authenticate` (RFC 9110, section 11.6.1): what a registry wants.
//!
//! ```text
//! challenges = challenge *( "," challenge )
//! challenge  = scheme [ 1*SP ( token68 / param *( "," param ) ) ]
//! param      = token "=" ( token / quoted-string )
//! ```
//!
//! Commas separate both parameters and challenges: after a comma, a token
//! followed by `=` goes on with the challenge before it, any other begins a
//! new one. What cannot be read ends the reading; what was read counts.

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A name and a password with every request.
    Basic,
    /// A token from elsewhere (distribution specification, token authentication).
    Bearer {
        /// The token endpoint.
        realm: String,
        /// The audience.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
        /// Why the one that was sent is not good.
        error: Option<String>,
    },
}

/// Reads all header lines; unknown schemes and a Bearer without a realm are left out.
pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    lines.into_iter().flat_map(|line| Reader { rest: line }.challenges()).collect()
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn challenges(&mut self) -> Vec<Challenge> {
        let mut all = Vec::new();
        loop {
            while self.eat(',') {}
            let Some(scheme) = self.token() else { return all };
            let mut parameters = Vec::new();
            let whole = self.parameters(&mut parameters);
            all.extend(challenge(scheme, parameters));
            if !whole {
                return all;
            }
        }
    }

    /// Answers whether the next thing can be another challenge.
    fn parameters(&mut self, parameters: &mut Vec<(&'a str, String)>) -> bool {
        loop {
            while self.eat(',') {}
            let before = self.rest;
            let Some(name) = self.token() else { return false };
            if !self.eat('=') {
                // The scheme of the next challenge.
                self.rest = before;
                return true;
            }
            match self.value() {
                Some(value) => parameters.push((name, value)),
                None => return false,
            }
            if !self.rest.trim_start().starts_with(',') {
                return false;
            }
        }
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.trim_start().strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.trim_start().strip_prefix('"') else {
            return self.token().map(str::to_owned);
        };
        let (mut value, mut characters) = (String::new(), quoted.char_indices());
        loop {
            match characters.next()? {
                (at, '"') => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                (_, '\\') => value.push(characters.next()?.1),
                (_, other) => value.push(other),
            }
        }
    }
}

fn challenge(scheme: &str, parameters: Vec<(&str, String)>) -> Option<Challenge> {
    let get = |name: &str| {
        parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
    };
    if scheme.eq_ignore_ascii_case("basic") {
        Some(Challenge::Basic)
    } else if scheme.eq_ignore_ascii_case("bearer") {
        Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
            error: get("error"),
        })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
            error: None,
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let scope = "repository:library/busybox:pull,push";
        for (line, want) in [
            ("Basic realm=\"r\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            ("Bearer realm=\"https://a/t\"", vec![bearer("https://a/t", None, None)]),
            (
                "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:library/busybox:pull,push\"",
                vec![bearer("https://a/t", Some("s"), Some(scope))],
            ),
            ("BEARER realm = \"x\" , service=s", vec![bearer("x", Some("s"), None)]),
            (
                "Negotiate, Basic realm=\"a, b=\\\"c\\\"\", Bearer realm=x",
                vec![Challenge::Basic, bearer("x", None, None)],
            ),
            ("Bearer service=\"without a realm\"", vec![]),
            ("Bearer realm=\"unclosed", vec![]),
            ("", vec![]),
            (",,,", vec![]),
            ("Basic realm=\"\u{e9}\"", vec![Challenge::Basic]),
            ("Digest a=b, c=d, Basic x=y z", vec![Challenge::Basic]),
        ] {
            assert_eq!(parse([line]), want, "{line}");
        }
        assert_eq!(parse(["Basic", "Bearer realm=x"]).len(), 2, "several header lines");
    }
}
