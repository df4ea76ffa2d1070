//! Text to nodes.

use std::iter::Peekable;

use anyhow::{Result, bail};
use serde_json::{Number, Value};

use super::{Node, Pipeline, Term, functions};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Open,
    /// `)` with the fields behind it.
    Close(Vec<String>),
    Pipe,
    Assign,
    Comma,
}

enum Part {
    Text(String),
    Action(Vec<Token>),
}

type Parts = Peekable<std::vec::IntoIter<Part>>;

pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parts = split(text)?.into_iter().peekable();
    let (nodes, end) = block(&mut parts)?;
    match end {
        None => Ok(nodes),
        Some(word) => bail!("template parsing error: unexpected {{{{{}}}}}", word.first_word()),
    }
}

/// What ended a block: `end` or `else …`.
struct End(Vec<Token>);

impl End {
    fn first_word(&self) -> &str {
        match self.0.first() {
            Some(Token::Word(word)) => word,
            _ => "",
        }
    }
}

fn block(parts: &mut Parts) -> Result<(Vec<Node>, Option<End>)> {
    let mut nodes = Vec::new();
    while let Some(part) = parts.next() {
        match part {
            Part::Text(text) if text.is_empty() => {}
            Part::Text(text) => nodes.push(Node::Text(text)),
            Part::Action(tokens) => match tokens.first() {
                None => {}
                Some(Token::Word(word)) if word == "end" || word == "else" => {
                    return Ok((nodes, Some(End(tokens))));
                }
                Some(Token::Word(word)) if word == "if" => {
                    let condition = pipeline(&tokens[1..])?;
                    let (body, otherwise) = branches(parts)?;
                    nodes.push(Node::If(condition, body, otherwise));
                }
                Some(Token::Word(word)) if word == "with" => {
                    let value = pipeline(&tokens[1..])?;
                    let (body, otherwise) = branches(parts)?;
                    nodes.push(Node::With(value, body, otherwise));
                }
                Some(Token::Word(word)) if word == "range" => {
                    nodes.push(range(&tokens[1..], parts)?)
                }
                Some(Token::Variable(name, path))
                    if path.is_empty() && tokens.get(1) == Some(&Token::Assign) =>
                {
                    nodes.push(Node::Let(name.clone(), pipeline(&tokens[2..])?));
                }
                Some(_) => nodes.push(Node::Print(pipeline(&tokens)?)),
            },
        }
    }
    Ok((nodes, None))
}

/// The body of an `if` or `with` and what stands behind its `else`.
fn branches(parts: &mut Parts) -> Result<(Vec<Node>, Vec<Node>)> {
    let (body, end) = block(parts)?;
    let Some(end) = end else { bail!("template parsing error: unexpected EOF") };
    if end.first_word() == "end" {
        return Ok((body, Vec::new()));
    }
    if let Some(Token::Word(word)) = end.0.get(1) {
        let condition = pipeline(&end.0[2..])?;
        let (inner, otherwise) = branches(parts)?;
        let chained = match word.as_str() {
            "if" => Node::If(condition, inner, otherwise),
            "with" => Node::With(condition, inner, otherwise),
            _ => bail!("template parsing error: unexpected {word:?} in else"),
        };
        return Ok((body, vec![chained]));
    }
    let (otherwise, end) = block(parts)?;
    match end {
        Some(end) if end.first_word() == "end" => Ok((body, otherwise)),
        _ => bail!("template parsing error: unexpected EOF"),
    }
}

fn range(tokens: &[Token], parts: &mut Parts) -> Result<Node> {
    use Token::{Assign, Comma, Variable};
    let (index, element, rest) = match tokens {
        [Variable(index, _), Comma, Variable(element, _), Assign, rest @ ..] => {
            (Some(index.clone()), Some(element.clone()), rest)
        }
        [Variable(element, _), Assign, rest @ ..] => (None, Some(element.clone()), rest),
        rest => (None, None, rest),
    };
    let over = pipeline(rest)?;
    let (body, otherwise) = branches(parts)?;
    Ok(Node::Range { index, element, over, body, otherwise })
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline> {
    let mut rest = tokens;
    let parsed = commands(&mut rest)?;
    match rest {
        [] => Ok(parsed),
        [token, ..] => bail!("template parsing error: unexpected {token:?}"),
    }
}

/// Commands up to the end or a closing parenthesis.
fn commands(tokens: &mut &[Token]) -> Result<Pipeline> {
    let mut commands = vec![Vec::new()];
    while let [token, rest @ ..] = *tokens {
        let term = match token {
            Token::Close(_) => break,
            Token::Pipe => {
                *tokens = rest;
                commands.push(Vec::new());
                continue;
            }
            Token::Open => {
                *tokens = rest;
                let inner = commands_in_parentheses(tokens)?;
                commands.last_mut().expect("never empty").push(inner);
                continue;
            }
            Token::Field(path) => Term::Field(path.clone()),
            Token::Variable(name, path) => Term::Variable(name.clone(), path.clone()),
            Token::Literal(value) => Term::Literal(value.clone()),
            Token::Word(word) if functions::exists(word) => Term::Function(word.clone()),
            Token::Word(word) => {
                bail!("template parsing error: template: :1: function {word:?} not defined")
            }
            Token::Assign | Token::Comma => bail!("template parsing error: unexpected {token:?}"),
        };
        commands.last_mut().expect("never empty").push(term);
        *tokens = rest;
    }
    if commands.iter().any(Vec::is_empty) {
        bail!("template parsing error: template: :1: missing value for command");
    }
    Ok(Pipeline(commands))
}

fn commands_in_parentheses(tokens: &mut &[Token]) -> Result<Term> {
    let inner = commands(tokens)?;
    match *tokens {
        [Token::Close(path), rest @ ..] => {
            *tokens = rest;
            Ok(Term::Group(Box::new(inner), path.clone()))
        }
        _ => bail!("template parsing error: template: :1: unclosed left paren"),
    }
}

/// Cuts at `{{` and `}}`, honouring `{{-`, `-}}` and comments.
fn split(text: &str) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, action) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let before = if trim_next { before.trim_start() } else { before };
        let Some(action) = action else {
            parts.push(Part::Text(before.to_owned()));
            return Ok(parts);
        };
        let trims_left = action.starts_with("- ");
        parts.push(Part::Text(if trims_left { before.trim_end() } else { before }.to_owned()));
        let action = if trims_left { &action[2..] } else { action };
        let end = action_end(action)?;
        let (inner, behind) = (&action[..end], &action[end + 2..]);
        let inner = inner.strip_suffix(" -").inspect(|_| trim_next = true).unwrap_or_else(|| {
            trim_next = false;
            inner
        });
        if !inner.trim_start().starts_with("/*") {
            parts.push(Part::Action(tokens(inner)?));
        }
        rest = behind;
    }
}

/// Where the `}}` of an action is, outside of strings.
fn action_end(action: &str) -> Result<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in action.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if action[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    bail!("template parsing error: template: :1: unclosed action")
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '|' => push(&mut tokens, &mut chars, Token::Pipe),
            ',' => push(&mut tokens, &mut chars, Token::Comma),
            '(' => push(&mut tokens, &mut chars, Token::Open),
            ')' => {
                chars.next();
                let path = path(&mut chars);
                tokens.push(Token::Close(path));
            }
            ':' | '=' => {
                chars.next();
                if c == ':' && chars.next_if_eq(&'=').is_none() {
                    bail!("template parsing error: template: :1: expected :=");
                }
                tokens.push(Token::Assign);
            }
            '"' => {
                chars.next();
                tokens.push(Token::Literal(Value::String(quoted(&mut chars)?)));
            }
            '`' => {
                chars.next();
                let raw: String = chars.by_ref().take_while(|c| *c != '`').collect();
                tokens.push(Token::Literal(Value::String(raw)));
            }
            '.' => {
                let path = path(&mut chars);
                if path.is_empty() {
                    chars.next();
                }
                tokens.push(Token::Field(path));
            }
            '$' => {
                chars.next();
                let name = word(&mut chars);
                let path = path(&mut chars);
                tokens.push(Token::Variable(name, path));
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                tokens.push(Token::Literal(number(&mut chars)?))
            }
            c if c.is_alphabetic() || c == '_' => tokens.push(match word(&mut chars).as_str() {
                "true" => Token::Literal(Value::Bool(true)),
                "false" => Token::Literal(Value::Bool(false)),
                "nil" => Token::Literal(Value::Null),
                other => Token::Word(other.to_owned()),
            }),
            other => bail!("template parsing error: template: :1: unexpected {other:?} in command"),
        }
    }
    Ok(tokens)
}

type Chars<'a> = Peekable<std::str::Chars<'a>>;

fn push(tokens: &mut Vec<Token>, chars: &mut Chars<'_>, token: Token) {
    chars.next();
    tokens.push(token);
}

fn word(chars: &mut Chars<'_>) -> String {
    let mut word = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
        word.push(c);
    }
    word
}

/// `.A.B` as far as it goes.
fn path(chars: &mut Chars<'_>) -> Vec<String> {
    let mut path = Vec::new();
    while chars.peek() == Some(&'.') {
        let mut ahead = chars.clone();
        ahead.next();
        let name = word(&mut ahead);
        if name.is_empty() {
            break;
        }
        *chars = ahead;
        path.push(name);
    }
    path
}

fn quoted(chars: &mut Chars<'_>) -> Result<String> {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(text),
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(c @ ('"' | '\\' | '\'')) => text.push(c),
                other => bail!("template parsing error: unknown escape {other:?}"),
            },
            c => text.push(c),
        }
    }
    bail!("template parsing error: template: :1: unterminated quoted string")
}

fn number(chars: &mut Chars<'_>) -> Result<Value> {
    let mut text = String::new();
    while let Some(c) =
        chars.next_if(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | '_'))
    {
        text.push(c);
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(whole.into());
    }
    let parsed = text.parse::<f64>().ok().and_then(Number::from_f64);
    match parsed {
        Some(number) => Ok(Value::Number(number)),
        None => bail!("template parsing error: template: :1: bad number syntax: {text:?}"),
    }
}
