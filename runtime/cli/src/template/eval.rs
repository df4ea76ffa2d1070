//! Nodes and data to text.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Node, Pipeline, Term, functions};

struct Scope<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

pub(super) fn render(nodes: &[Node], data: &Value) -> Result<String> {
    let mut scope = Scope { root: data, variables: Vec::new(), out: String::new() };
    walk(nodes, data, &mut scope)?;
    Ok(scope.out)
}

fn walk(nodes: &[Node], dot: &Value, scope: &mut Scope<'_>) -> Result<()> {
    let depth = scope.variables.len();
    for node in nodes {
        match node {
            Node::Text(text) => scope.out.push_str(text),
            Node::Print(pipeline) => {
                let value = evaluate(pipeline, dot, scope)?;
                scope.out.push_str(&display(&value, true));
            }
            Node::Let(name, pipeline) => {
                let value = evaluate(pipeline, dot, scope)?;
                scope.variables.push((name.clone(), value));
            }
            Node::If(condition, body, otherwise) => {
                let branch =
                    if truth(&evaluate(condition, dot, scope)?) { body } else { otherwise };
                walk(branch, dot, scope)?;
            }
            Node::With(pipeline, body, otherwise) => {
                let value = evaluate(pipeline, dot, scope)?;
                if truth(&value) {
                    walk(body, &value, scope)?;
                } else {
                    walk(otherwise, dot, scope)?;
                }
            }
            Node::Range { index, element, over, body, otherwise } => {
                let value = evaluate(over, dot, scope)?;
                let items: Vec<(Value, Value)> = match value {
                    Value::Array(items) => {
                        items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
                    }
                    Value::Object(map) => {
                        map.into_iter().map(|(key, item)| (key.into(), item)).collect()
                    }
                    Value::Null => Vec::new(),
                    other => {
                        bail!("template: :1: range can't iterate over {}", display(&other, true))
                    }
                };
                if items.is_empty() {
                    walk(otherwise, dot, scope)?;
                }
                for (at, item) in items {
                    let before = scope.variables.len();
                    scope.variables.extend(index.iter().map(|name| (name.clone(), at.clone())));
                    scope.variables.extend(element.iter().map(|name| (name.clone(), item.clone())));
                    walk(body, &item, scope)?;
                    scope.variables.truncate(before);
                }
            }
        }
    }
    scope.variables.truncate(depth);
    Ok(())
}

fn evaluate(Pipeline(commands): &Pipeline, dot: &Value, scope: &Scope<'_>) -> Result<Value> {
    let mut last = None;
    for command in commands {
        let mut terms = command.iter();
        let first = terms.next().expect("the parser leaves no command empty");
        let arguments = |last: Option<Value>| -> Result<Vec<Value>> {
            let mut values: Vec<Value> = command[1..]
                .iter()
                .map(|term| term_value(term, dot, scope))
                .collect::<Result<_>>()?;
            values.extend(last);
            Ok(values)
        };
        last = Some(match first {
            Term::Function(name) => functions::call(name, arguments(last)?)?,
            // The one method with an argument that Docker's objects have.
            Term::Field(path) if path.last().is_some_and(|name| name == "Label") => {
                label(&fields(dot, &path[..path.len() - 1])?, &arguments(last)?)
            }
            _ if command.len() > 1 || last.is_some() => {
                bail!("template: :1: can't give argument to non-function")
            }
            term => term_value(term, dot, scope)?,
        });
    }
    Ok(last.unwrap_or(Value::Null))
}

/// `{{.Label "name"}}`: one of the labels that are listed as `name=value,…`.
fn label(object: &Value, arguments: &[Value]) -> Value {
    let wanted = arguments.first().and_then(Value::as_str).unwrap_or_default();
    let found = match &object["Labels"] {
        Value::String(list) => list
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.to_owned()),
        labels => labels[wanted].as_str().map(str::to_owned),
    };
    found.unwrap_or_default().into()
}

fn term_value(term: &Term, dot: &Value, scope: &Scope<'_>) -> Result<Value> {
    match term {
        Term::Literal(value) => Ok(value.clone()),
        Term::Field(path) => fields(dot, path),
        Term::Variable(name, path) if name.is_empty() => fields(scope.root, path),
        Term::Variable(name, path) => {
            match scope.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => fields(value, path),
                None => bail!("template: :1: undefined variable \"${name}\""),
            }
        }
        Term::Function(name) => functions::call(name, Vec::new()),
        Term::Group(pipeline, path) => fields(&evaluate(pipeline, dot, scope)?, path),
    }
}

fn fields(value: &Value, path: &[String]) -> Result<Value> {
    let mut value = value;
    for (at, name) in path.iter().enumerate() {
        let place = || format!(".{}", path[..=at].join("."));
        value = match value {
            Value::Object(map) => match map.get(name) {
                Some(value) => value,
                None => bail!(
                    "template: :1:2: executing \"\" at <{}>: map has no entry for key \"{name}\"",
                    place()
                ),
            },
            Value::Null => bail!(
                "template: :1:2: executing \"\" at <{}>: nil data; no entry for key \"{name}\"",
                place()
            ),
            _ => bail!(
                "template: :1:2: executing \"\" at <{}>: can't evaluate field {name}",
                place()
            ),
        };
    }
    Ok(value.clone())
}

/// Go's truth: not zero, not empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go's `%v` prints it.
pub(super) fn display(value: &Value, top: bool) -> String {
    match value {
        Value::Null if top => "<no value>".to_owned(),
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| display(item, false)).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let items: Vec<String> =
                map.iter().map(|(key, item)| format!("{key}:{}", display(item, false))).collect();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}
