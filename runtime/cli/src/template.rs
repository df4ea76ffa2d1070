//! Go templates, the part that `--format` uses (Go `text/template`; docker/cli
//! `templates/templates.go` for the functions).
//!
//! ```text
//!   text ── parse ──> Vec<Node> ── render(data: JSON) ──> text
//! ```
//!
//! Fields, indexes, variables, pipelines, `if`, `with`, `range`, and the
//! functions that Docker adds. A template that does not parse, or that names a
//! field which the data does not have, is an error that says where.

mod eval;
mod functions;
mod parse;

use anyhow::Result;
use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    Let(String, Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range {
        index: Option<String>,
        element: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands joined by `|`: each one's value is the last argument of the next.
#[derive(Debug, Clone, PartialEq)]
struct Pipeline(Vec<Vec<Term>>);

/// One word of a command.
#[derive(Debug, Clone, PartialEq)]
enum Term {
    Literal(Value),
    /// `.A.B`; empty is `.` itself.
    Field(Vec<String>),
    /// `$x.A.B`; the empty name is `$`, the whole data.
    Variable(String, Vec<String>),
    Function(String),
    /// `( pipeline ).A.B`.
    Group(Box<Pipeline>, Vec<String>),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// With Docker's wording, where it does not parse.
    pub fn parse(text: &str) -> Result<Self> {
        parse::parse(text).map(Self)
    }

    /// Fills it in.
    ///
    /// # Errors
    /// Where it names what is not there, or calls a function wrongly.
    pub fn render(&self, data: &Value) -> Result<String> {
        eval::render(&self.0, data)
    }

    /// The first field of every print, for a table's heading: `{{.Names}}` gives `Names`.
    pub fn fields(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|node| match node {
                Node::Print(Pipeline(commands)) => {
                    commands.iter().flatten().find_map(|term| match term {
                        Term::Field(path) if !path.is_empty() => path.last().cloned(),
                        _ => None,
                    })
                }
                _ => None,
            })
            .collect()
    }

    /// The same template with each print replaced by what `heading` makes of it.
    pub fn heading(&self, heading: impl Fn(&str) -> String) -> String {
        let mut line = String::new();
        let mut fields = self.fields().into_iter();
        for node in &self.0 {
            match node {
                Node::Text(text) => line.push_str(text),
                _ => line.push_str(&fields.next().map(|field| heading(&field)).unwrap_or_default()),
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, want: &str) {
        let data = json!({
            "Name": "/web", "Count": 3, "Big": 1234567890123_i64, "On": true, "Nil": null,
            "State": {"Status": "running", "Error": ""},
            "Names": ["a", "b"], "Map": {"x": 1, "y": "z"}, "Empty": [],
            "Labels": "kind=boat,size=big",
            "IPAM": {"Config": [{"Subnet": "10.0.0.0/8"}]},
        });
        let got = Template::parse(template).and_then(|t| t.render(&data));
        assert_eq!(got.unwrap_or_else(|e| format!("error: {e}")), want, "{template}");
    }

    #[test]
    fn values_print_as_go_prints_them() {
        check("{{.Name}} {{.Count}} {{.On}} {{.Big}}", "/web 3 true 1234567890123");
        check("{{.Names}} {{.Map}} {{.Nil}}", "[a b] map[x:1 y:z] <no value>");
        check("{{json .State}}", r#"{"Error":"","Status":"running"}"#);
        check("{{ .State.Status }}", "running");
        check("a{{- .Count -}} b", "a3b");
    }

    #[test]
    fn control_structures() {
        check("{{if .On}}yes{{else}}no{{end}}", "yes");
        check("{{if .State.Error}}yes{{else if .Empty}}maybe{{else}}no{{end}}", "no");
        check("{{range .Names}}<{{.}}>{{end}}", "<a><b>");
        check("{{range $i, $e := .Names}}{{$i}}={{$e}},{{end}}", "0=a,1=b,");
        check("{{range $k, $v := .Map}}{{$k}}:{{$v}} {{end}}", "x:1 y:z ");
        check("{{range .Empty}}x{{else}}none{{end}}", "none");
        check("{{with .State}}{{.Status}} {{$.Name}}{{end}}", "running /web");
        check("{{$x := .Count}}{{$x}}", "3");
    }

    #[test]
    fn functions_and_pipelines() {
        check("{{index .Names 1}} {{index .Map \"y\"}}", "b z");
        check("{{(index .IPAM.Config 0).Subnet}}", "10.0.0.0/8");
        check("{{join .Names \", \"}} {{upper .Name}} {{.Name | lower | title}}", "a, b /WEB /Web");
        check(
            "{{len .Names}} {{eq .Count 3}} {{ne .Name \"x\"}} {{lt .Count 4}}",
            "2 true true true",
        );
        check(
            "{{printf \"%s-%d-%5.1f|%-4s|%q\" .Name .Count 1.25 \"a\" \"b\"}}",
            "/web-3-  1.2|a   |\"b\"",
        );
        check("{{and .On .Name}} {{or .Nil \"d\"}} {{not .On}}", "/web d false");
        check(
            "{{truncate .Name 2}}|{{pad \"x\" 1 2}}|{{index (split \"a:b\" \":\") 1}}",
            "/w| x  |b",
        );
        check("{{println .Count}}", "3\n");
        check("{{.Label \"kind\"}}|{{.Label \"none\"}}", "boat|");
    }

    #[test]
    fn what_does_not_parse_or_is_not_there_is_an_error() {
        for bad in [
            "{{",
            "{{.Name",
            "{{end}}",
            "{{if .On}}",
            "{{nosuch .Name}}",
            "{{.Name | }}",
            "{{\"a}}",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        check(
            "{{.Missing}}",
            "error: template: :1:2: executing \"\" at <.Missing>: map has no entry for key \"Missing\"",
        );
    }
}
