//! The functions of a template: Go's own and Docker's.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::eval::{display, truth};

const NAMES: [&str; 23] = [
    "json", "index", "len", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "print",
    "println", "printf", "join", "split", "lower", "upper", "title", "pad", "truncate", "slice",
];

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(super) fn call(name: &str, mut arguments: Vec<Value>) -> Result<Value> {
    let want = |count: usize| -> Result<()> {
        match arguments.len() == count {
            true => Ok(()),
            false => bail!(
                "template: :1: wrong number of args for {name}: want {count} got {}",
                arguments.len()
            ),
        }
    };
    let text = |at: usize| display(&arguments[at], true);
    Ok(match name {
        "json" => {
            want(1)?;
            serde_json::to_string(&arguments[0])?.into()
        }
        "index" => {
            if arguments.is_empty() {
                bail!("template: :1: wrong number of args for index: want at least 1 got 0");
            }
            let value = arguments.remove(0);
            arguments.iter().try_fold(value, index)?
        }
        "slice" => {
            let from = arguments.get(1).and_then(Value::as_u64).unwrap_or(0) as usize;
            let to = arguments.get(2).and_then(Value::as_u64).map(|to| to as usize);
            match arguments.first() {
                Some(Value::String(text)) => {
                    text.get(from..to.unwrap_or(text.len())).context("slice out of range")?.into()
                }
                Some(Value::Array(items)) => items
                    .get(from..to.unwrap_or(items.len()))
                    .context("slice out of range")?
                    .to_vec()
                    .into(),
                _ => bail!("template: :1: can't slice item"),
            }
        }
        "len" => {
            want(1)?;
            match &arguments[0] {
                Value::Array(items) => items.len().into(),
                Value::Object(map) => map.len().into(),
                Value::String(text) => text.len().into(),
                Value::Null => 0.into(),
                other => bail!("template: :1: len of type {other}"),
            }
        }
        "eq" => arguments.iter().skip(1).any(|other| same(&arguments[0], other)).into(),
        "ne" => {
            want(2)?;
            (!same(&arguments[0], &arguments[1])).into()
        }
        "lt" | "le" | "gt" | "ge" => {
            want(2)?;
            let order = compare(&arguments[0], &arguments[1])?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        "and" => arguments
            .iter()
            .find(|value| !truth(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or_default(),
        "or" => arguments
            .iter()
            .find(|value| truth(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or_default(),
        "not" => {
            want(1)?;
            (!truth(&arguments[0])).into()
        }
        "print" => arguments.iter().map(|value| display(value, true)).collect::<String>().into(),
        "println" => {
            let words: Vec<String> = arguments.iter().map(|value| display(value, true)).collect();
            format!("{}\n", words.join(" ")).into()
        }
        "printf" => {
            if arguments.is_empty() {
                bail!("template: :1: wrong number of args for printf: want at least 1 got 0");
            }
            let format = arguments.remove(0);
            printf(format.as_str().unwrap_or_default(), &arguments).into()
        }
        "join" => {
            want(2)?;
            let items = match &arguments[0] {
                Value::Array(items) => items.iter().map(|item| display(item, false)).collect(),
                Value::Null => Vec::new(),
                _ => bail!("template: :1: join wants a list"),
            };
            items.join(&text(1)).into()
        }
        "split" => {
            want(2)?;
            text(0).split(&text(1)).map(Value::from).collect::<Vec<_>>().into()
        }
        "lower" => {
            want(1)?;
            text(0).to_lowercase().into()
        }
        "upper" => {
            want(1)?;
            text(0).to_uppercase().into()
        }
        "title" => {
            want(1)?;
            title(&text(0)).into()
        }
        "pad" => {
            want(3)?;
            let spaces =
                |at: usize| " ".repeat(arguments[at].as_u64().unwrap_or(0).min(4096) as usize);
            format!("{}{}{}", spaces(1), text(0), spaces(2)).into()
        }
        "truncate" => {
            want(2)?;
            text(0)
                .chars()
                .take(arguments[1].as_u64().unwrap_or(0) as usize)
                .collect::<String>()
                .into()
        }
        _ => bail!("template: :1: function {name:?} not defined"),
    })
}

fn index(value: Value, key: &Value) -> Result<Value> {
    match (value, key) {
        (Value::Array(mut items), Value::Number(at)) => {
            let at = at.as_u64().map_or(usize::MAX, |at| at as usize);
            if at >= items.len() {
                bail!("template: :1: error calling index: reflect: slice index out of range");
            }
            Ok(items.swap_remove(at))
        }
        (Value::Object(mut map), Value::String(key)) => Ok(map.remove(key).unwrap_or(Value::Null)),
        (Value::Null, _) => bail!("template: :1: error calling index: index of untyped nil"),
        _ => bail!("template: :1: error calling index: can't index item"),
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

fn compare(left: &Value, right: &Value) -> Result<std::cmp::Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Ok(left.cmp(right)),
        _ => left
            .as_f64()
            .zip(right.as_f64())
            .and_then(|(left, right)| left.partial_cmp(&right))
            .context("template: :1: incompatible types for comparison"),
    }
}

/// Each word with a capital first letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        match start {
            true => out.extend(c.to_uppercase()),
            false => out.push(c),
        }
        start = !(c.is_alphanumeric() || c == '\'' || c == '_');
    }
    out
}

/// `%s %v %d %q %x %t %f %%` with flags `-` and `0`, width and precision.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(c) =
            chars.next_if(|c| c.is_ascii_digit() || matches!(c, '-' | '.' | '+' | ' '))
        {
            spec.push(c);
        }
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = arguments.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let left = spec.contains('-');
        let zero = spec.starts_with('0');
        let (width, precision) = match spec.trim_start_matches(['-', '+', ' ', '0']).split_once('.')
        {
            Some((width, precision)) => (width.parse().unwrap_or(0), precision.parse().ok()),
            None => {
                (spec.trim_start_matches(['-', '+', ' ', '0']).parse().unwrap_or(0_usize), None)
            }
        };
        let text = match verb {
            'q' => serde_json::to_string(&display(value, false)).unwrap_or_default(),
            'f' => {
                format!("{:.*}", precision.unwrap_or(6).min(4096), value.as_f64().unwrap_or(0.0))
            }
            'x' => match value {
                Value::Number(number) => format!("{:x}", number.as_i64().unwrap_or(0)),
                other => display(other, false).bytes().map(|byte| format!("{byte:02x}")).collect(),
            },
            _ => {
                let text = display(value, false);
                precision
                    .map_or_else(|| text.clone(), |most: usize| text.chars().take(most).collect())
            }
        };
        let width = width.min(4096);
        match (left, zero) {
            (true, _) => out.push_str(&format!("{text:<width$}")),
            (false, true) => out.push_str(&format!("{text:0>width$}")),
            (false, false) => out.push_str(&format!("{text:>width$}")),
        }
    }
    out
}
