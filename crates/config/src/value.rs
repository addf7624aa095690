//! Reading one value: from text (flags, environment) or from a file's types, into the one form a field is kept in.

use config::{Value, ValueKind};
use serde_json::Value as Json;

use crate::names::{As, Kind};
use crate::size::{ByteSize, span};

/// The value in the form that the field's type deserialises from, or what would be accepted.
pub(crate) fn read(kind: Kind, how: As, value: &Value) -> Result<ValueKind, String> {
    match (kind, how) {
        (Kind::Size(_), As::Gib) => size(value, 1 << 30),
        (Kind::Size(unit), _) => size(value, unit),
        (Kind::Bool, As::Not) => boolean(value).map(|b| ValueKind::Boolean(!b)),
        (Kind::Bool, _) => boolean(value).map(ValueKind::Boolean),
        (Kind::Count, As::Threads) => count(value).map(|n| ValueKind::U64(n.max(1))),
        (Kind::Count, _) => count(value).map(ValueKind::U64),
        (Kind::Fraction, _) => fraction(value),
        (Kind::Span, _) => time(value),
        (Kind::Text, As::Directory) => text(value).map(|t| ValueKind::String(without_scheme(t).to_owned())),
        (Kind::Text, _) => text(value).map(|t| ValueKind::String(t.to_owned())),
        (Kind::Choice(words), _) => choice(value, words),
        (Kind::Adapters, _) => adapters(value),
        (Kind::Quotas, _) => quotas(value),
    }
}

fn boolean(value: &Value) -> Result<bool, String> {
    match &value.kind {
        ValueKind::Boolean(b) => Ok(*b),
        ValueKind::String(s) => match s.trim().to_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err("true or false is expected".into()),
        },
        _ => Err("true or false is expected".into()),
    }
}

/// The number behind a numeric value or text; text with a unit is not one.
fn number(value: &Value) -> Option<f64> {
    match &value.kind {
        ValueKind::I64(n) => Some(*n as f64),
        ValueKind::U64(n) => Some(*n as f64),
        ValueKind::I128(n) => Some(*n as f64),
        ValueKind::U128(n) => Some(*n as f64),
        ValueKind::Float(n) => Some(*n),
        ValueKind::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

fn count(value: &Value) -> Result<u64, String> {
    number(value)
        .filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n))
        .map(|n| n as u64)
        .ok_or_else(|| format!("a whole number from 0 to {} is expected", u32::MAX))
}

fn fraction(value: &Value) -> Result<ValueKind, String> {
    number(value)
        .filter(|n| *n > 0.0 && *n <= 1.0)
        .map(ValueKind::Float)
        .ok_or_else(|| "a number above 0 and up to 1 is expected".into())
}

fn size(value: &Value, unit: u64) -> Result<ValueKind, String> {
    let size = match &value.kind {
        ValueKind::String(s) => ByteSize::parse_in(s, unit),
        _ => match number(value) {
            Some(n) => ByteSize::scaled(n, unit),
            None => ByteSize::parse_in("", unit),
        },
    };
    size.map(|s| ValueKind::U64(s.0)).map_err(|e| e.to_string())
}

fn time(value: &Value) -> Result<ValueKind, String> {
    let span = match &value.kind {
        ValueKind::String(s) => span::parse(s),
        _ => match number(value) {
            Some(n) => span::from_seconds(n),
            None => span::parse(""),
        },
    };
    span.map(|s| ValueKind::String(span::text(s))).map_err(str::to_owned)
}

fn text(value: &Value) -> Result<&str, String> {
    match &value.kind {
        ValueKind::String(s) if s.contains('\0') => Err("text without NUL is expected".into()),
        ValueKind::String(s) => Ok(s.trim()),
        _ => Err("text is expected".into()),
    }
}

/// LMCache writes local directories as `file://` URLs, too.
fn without_scheme(path: &str) -> &str {
    path.strip_prefix("file://").unwrap_or(path)
}

fn choice(value: &Value, words: &[&str]) -> Result<ValueKind, String> {
    let expected = || format!("one of {} is expected", words.join(", "));
    let said = match &value.kind {
        ValueKind::String(s) => s.trim().to_lowercase(),
        ValueKind::Boolean(b) => b.to_string(),
        _ => return Err(expected()),
    };
    // LMCache asks for huge pages with a switch: on is its explicit kind, off is none.
    let said = match said.as_str() {
        "true" if words.contains(&"explicit") => "explicit",
        "false" if words.contains(&"none") => "none",
        other => other,
    };
    words.iter().find(|w| **w == said).map(|w| ValueKind::String((*w).into())).ok_or_else(expected)
}

/// A list of objects, one object, or JSON text of either.
fn adapters(value: &Value) -> Result<ValueKind, String> {
    const EXPECTED: &str = "an adapter is an object with a type: {\"type\": \"fs\", \"base_path\": \"…\"}";
    let list = match &value.kind {
        ValueKind::String(s) => match parse_json(s)? {
            Json::Array(list) => list,
            one => vec![one],
        },
        ValueKind::Array(list) => {
            let mut all = Vec::new();
            for item in list {
                match &item.kind {
                    ValueKind::String(s) => all.push(parse_json(s)?),
                    _ => all.push(to_json(item)?),
                }
            }
            all
        }
        ValueKind::Table(_) => vec![to_json(value)?],
        _ => return Err(EXPECTED.into()),
    };
    if list.iter().any(|a| !a.is_object()) {
        return Err(EXPECTED.into());
    }
    Ok(ValueKind::Array(list.iter().map(|a| Value::new(None, from_json(a))).collect()))
}

/// `SALT=SIZE`, an object of salts and sizes, JSON text of one, or a list of these or of `{salt, size}`.
fn quotas(value: &Value) -> Result<ValueKind, String> {
    const EXPECTED: &str = "quotas are given as SALT=SIZE or as an object: {\"tenant-a\": \"10GiB\"}";
    let one = |salt: &str, quota: &Value| {
        let bytes = size(quota, 1).map_err(|e| format!("the quota of {salt:?}: {e}"))?;
        let salt = Value::new(None, ValueKind::String(salt.to_owned()));
        let row = [("salt".to_owned(), salt), ("size".to_owned(), Value::new(None, bytes))];
        Ok::<_, String>(Value::new(None, ValueKind::Table(row.into_iter().collect())))
    };
    let mut rows = Vec::new();
    match &value.kind {
        ValueKind::String(s) if s.trim_start().starts_with(['{', '[']) => {
            return quotas(&Value::new(None, from_json(&parse_json(s)?)));
        }
        ValueKind::String(s) => {
            let (salt, quota) = s.rsplit_once('=').ok_or(EXPECTED)?;
            rows.push(one(salt.trim(), &Value::new(None, quota))?);
        }
        ValueKind::Array(list) => {
            for item in list {
                if let ValueKind::Array(more) = quotas(item)? {
                    rows.extend(more);
                }
            }
        }
        ValueKind::Table(table) => match (table.get("salt").map(|s| &s.kind), table.get("size")) {
            (Some(ValueKind::String(salt)), Some(quota)) if table.len() == 2 => {
                rows.push(one(salt, quota)?);
            }
            _ => {
                let table: std::collections::BTreeMap<_, _> = table.iter().collect();
                for (salt, quota) in table {
                    rows.push(one(salt, quota)?);
                }
            }
        },
        _ => return Err(EXPECTED.into()),
    }
    Ok(ValueKind::Array(rows))
}

/// JSON text; the message of what is none says where it goes wrong.
pub(crate) fn parse_json(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

pub(crate) fn from_json(value: &Json) -> ValueKind {
    match value {
        Json::Null => ValueKind::Nil,
        Json::Bool(b) => ValueKind::Boolean(*b),
        Json::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => ValueKind::U64(n),
            (None, Some(n)) => ValueKind::I64(n),
            (None, None) => ValueKind::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => ValueKind::String(s.clone()),
        Json::Array(items) => {
            ValueKind::Array(items.iter().map(|i| Value::new(None, from_json(i))).collect())
        }
        Json::Object(keys) => {
            ValueKind::Table(keys.iter().map(|(k, v)| (k.clone(), Value::new(None, from_json(v)))).collect())
        }
    }
}

/// A file's value as JSON. NaN and infinity have no form there, and mean nothing to any adapter.
pub(crate) fn to_json(value: &Value) -> Result<Json, String> {
    const NO_NUMBER: &str = "a finite number is expected";
    Ok(match &value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(b) => (*b).into(),
        ValueKind::I64(n) => (*n).into(),
        ValueKind::U64(n) => (*n).into(),
        ValueKind::I128(n) => i64::try_from(*n).map_err(|_| NO_NUMBER)?.into(),
        ValueKind::U128(n) => u64::try_from(*n).map_err(|_| NO_NUMBER)?.into(),
        ValueKind::Float(n) => serde_json::Number::from_f64(*n).ok_or(NO_NUMBER)?.into(),
        ValueKind::String(s) => s.clone().into(),
        ValueKind::Array(items) => Json::Array(items.iter().map(to_json).collect::<Result<_, _>>()?),
        ValueKind::Table(keys) => Json::Object(
            keys.iter().map(|(k, v)| Ok((k.clone(), to_json(v)?))).collect::<Result<_, String>>()?,
        ),
    })
}
