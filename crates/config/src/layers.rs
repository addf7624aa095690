//! The layers that settings come in, each brought to our names before one is laid over the other.

use std::collections::BTreeMap;
use std::path::Path;

use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use kvstrata_core::{Error, ErrorKind, Result};

use crate::Warning;
use crate::file::SettingsFile;
use crate::names::{self, As, Field, Kind, Meaning};
use crate::settings::Settings;
use crate::value;

const OP: &str = "read settings";

/// Names in the environment that are ours and no settings.
const NOT_SETTINGS: [&str; 3] = ["CONFIG", "LOG", "LMCACHE_ENV"];

/// Where settings come from, lowest layer first: built-in defaults, a file, the environment, flags.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The settings file, if any.
    pub file: Option<SettingsFile>,
    /// The environment, or the part of it that starts with `KVSTRATA_` or `LMCACHE_`; other names are not looked at.
    pub env: Vec<(String, String)>,
    /// Flags without their dashes; `None` is a switch without a value.
    pub flags: Vec<(String, Option<String>)>,
    /// Whether `LMCACHE_*` variables count, too, below `KVSTRATA_*`. Off unless asked for: an engine on the same machine
    /// may have them for purposes of its own.
    pub lmcache_env: bool,
}

impl Sources {
    /// Sources from a command line and an environment. The flags `config` (else `KVSTRATA_CONFIG`) and `lmcache-env` (else
    /// `KVSTRATA_LMCACHE_ENV`) are taken out here: the first names the settings file, the second is
    /// [`lmcache_env`](Self::lmcache_env), under which `LMCACHE_CONFIG_FILE` names the file where nothing else does.
    ///
    /// # Errors
    /// What [`SettingsFile::read`] says, and `Invalid` for a `lmcache-env` that is neither true nor false.
    pub fn gather(mut flags: Vec<(String, Option<String>)>, env: Vec<(String, String)>) -> Result<Self> {
        let mut take = |flag: &str, variable: &str| {
            let from_env =
                env.iter().find(|(n, _)| n == variable).map(|(n, v)| (format!("env {n}"), v.clone()));
            let given: Vec<_> = flags.extract_if(.., |(n, _)| names::word(n) == flag).collect();
            match given.into_iter().next_back() {
                Some((n, v)) => Some((format!("flag --{n}"), v.unwrap_or_else(|| "true".into()))),
                None => from_env,
            }
        };
        let lmcache_env = match take("lmcache_env", "KVSTRATA_LMCACHE_ENV") {
            None => false,
            Some((origin, text)) => {
                let text = Value::new(None, text.as_str());
                let read = value::read(Kind::Bool, As::Same, &text)
                    .map_err(|m| invalid(&m, "lmcache-env", &origin))?;
                matches!(read, ValueKind::Boolean(true))
            }
        };
        let lmcache_file = if lmcache_env { "LMCACHE_CONFIG_FILE" } else { "" };
        let path = take("config", "KVSTRATA_CONFIG").or_else(|| {
            env.iter().find(|(n, _)| n == lmcache_file).map(|(n, v)| (format!("env {n}"), v.clone()))
        });
        let file = match path {
            Some((origin, path)) => {
                Some(SettingsFile::read(Path::new(&path)).map_err(|e| e.with("origin", origin))?)
            }
            None => None,
        };
        Ok(Self { file, env, flags, lmcache_env })
    }

    /// All layers over each other, our names only.
    pub(crate) fn merge(&self) -> Result<Merged> {
        let mut warnings = Vec::new();
        let mut builder = Config::builder();
        for layer in [
            self.file_layer()?,
            self.env_layer("LMCACHE_")?,
            self.env_layer("KVSTRATA_")?,
            self.flag_layer()?,
        ] {
            let layer = Layer::read(layer, &mut warnings)?;
            builder = builder.add_source(layer);
        }
        let config = builder.build().map_err(|e| internal(&e))?;
        let mut origins = BTreeMap::new();
        for field in names::FIELDS {
            if let Some(origin) = at(&config.cache, field.path).and_then(Value::origin) {
                origins.insert(field.path, origin.to_owned());
            }
        }
        // Every value was read by its field's kind, so only a defect here can make this fail.
        let settings = config.try_deserialize().map_err(|e| internal(&e))?;
        Ok(Merged { settings, origins, warnings })
    }

    fn file_layer(&self) -> Result<Vec<Given>> {
        let mut out = Vec::new();
        if let Some(file) = &self.file {
            let origin = |path: &[String]| format!("file {}", file.place(path));
            flatten(file.parse()?, &mut Vec::new(), &origin, &mut out)?;
        }
        Ok(out)
    }

    fn env_layer(&self, prefix: &str) -> Result<Vec<Given>> {
        let mut out = Vec::new();
        if prefix == "LMCACHE_" && !self.lmcache_env {
            return Ok(out);
        }
        for (name, text) in &self.env {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            let control =
                if prefix == "LMCACHE_" { rest == "CONFIG_FILE" } else { NOT_SETTINGS.contains(&rest) };
            if control {
                continue;
            }
            let origin = format!("env {name}");
            let given = Given {
                word: names::word(rest),
                shown: name.clone(),
                style: Style::Env,
                origin,
                value: Value::new(None, text.as_str()),
            };
            given.expand(&mut out)?;
        }
        Ok(out)
    }

    fn flag_layer(&self) -> Result<Vec<Given>> {
        let mut out = Vec::new();
        for (name, text) in &self.flags {
            let name = name.trim_start_matches('-');
            let origin = format!("flag --{name}");
            let mut word = names::word(name);
            let off = word.strip_prefix("no_").filter(|w| is_switch(w)).map(str::to_owned);
            let value = match (off, text) {
                (Some(switch), text) => {
                    let said = Value::new(None, text.as_deref().unwrap_or("true"));
                    word = switch;
                    value::read(Kind::Bool, As::Not, &said).map_err(|m| invalid(&m, name, &origin))?
                }
                (None, Some(text)) => ValueKind::String(text.clone()),
                (None, None) if names::meaning(&word).is_none() || is_switch(&word) => {
                    ValueKind::Boolean(true)
                }
                (None, None) => return Err(invalid("a value is expected", name, &origin)),
            };
            let given = Given {
                word,
                shown: format!("--{name}"),
                style: Style::Flag,
                origin,
                value: Value::new(None, value),
            };
            given.expand(&mut out)?;
        }
        Ok(out)
    }
}

/// What the layers say together.
pub(crate) struct Merged {
    pub(crate) settings: Settings,
    /// Where each field that is not a default was given.
    pub(crate) origins: BTreeMap<&'static str, String>,
    pub(crate) warnings: Vec<Warning>,
}

fn is_switch(word: &str) -> bool {
    match names::meaning(word) {
        Some(Meaning::Field(field, _)) => field.kind == Kind::Bool || word.ends_with("use_hugepages"),
        Some(Meaning::NoEffect(kind, _)) => kind == Kind::Bool,
        // Whatever it is, the reason for its refusal is the better answer.
        Some(Meaning::Refused(_)) => true,
        Some(Meaning::Group) | None => false,
    }
}

/// How the names of a layer are written.
#[derive(Clone, Copy)]
enum Style {
    File,
    Env,
    Flag,
}

impl Style {
    fn write(self, word: &str) -> String {
        match self {
            Self::Env => format!("KVSTRATA_{}", word.to_uppercase()),
            Self::Flag => format!("--{}", word.replace('_', "-")),
            Self::File => match names::meaning(word) {
                Some(Meaning::Field(field, As::Same)) if names::word(field.path) == word => {
                    field.path.to_owned()
                }
                _ => word.to_owned(),
            },
        }
    }
}

/// A name and a value as somebody gave them.
struct Given {
    word: String,
    shown: String,
    style: Style,
    origin: String,
    value: Value,
}

impl Given {
    /// Itself, or, for a group in JSON text, what is in it.
    fn expand(self, out: &mut Vec<Self>) -> Result<()> {
        if !matches!(names::meaning(&self.word), Some(Meaning::Group)) {
            out.push(self);
            return Ok(());
        }
        let bad = |m: &str| invalid(m, &self.shown, &self.origin);
        let table = match &self.value.kind {
            ValueKind::Nil => return Ok(()),
            ValueKind::Table(table) => table.clone(),
            ValueKind::String(text) => match value::parse_json(text).map_err(|m| bad(&m))? {
                json @ serde_json::Value::Object(_) => match value::from_json(&json) {
                    ValueKind::Table(table) => table,
                    _ => Map::new(),
                },
                _ => return Err(bad("a JSON object is expected")),
            },
            _ => return Err(bad("an object is expected")),
        };
        for (name, value) in table {
            out.push(Self {
                word: format!("{}_{}", self.word, names::word(&name)),
                shown: format!("{}: {name}", self.shown),
                style: self.style,
                origin: self.origin.clone(),
                value,
            });
        }
        Ok(())
    }

    fn unknown(&self) -> Error {
        let message = match names::nearest_word(&self.word) {
            Some(near) => format!("there is no such setting; the nearest is {}", self.style.write(&near)),
            None => "there is no such setting".to_owned(),
        };
        invalid(&message, &self.shown, &self.origin)
    }
}

/// Walks a file's tables down to the names that mean something.
fn flatten(
    table: Map<String, Value>,
    path: &mut Vec<String>,
    origin: &dyn Fn(&[String]) -> String,
    out: &mut Vec<Given>,
) -> Result<()> {
    // A table has no order of its own; messages should not depend on it.
    let table: BTreeMap<String, Value> = table.into_iter().collect();
    for (name, value) in table {
        path.push(name);
        let word = names::word(&path.join("_"));
        match value.kind {
            ValueKind::Table(inner)
                if names::meaning(&word).is_none_or(|m| takes_inner_names(&m)) && !inner.is_empty() =>
            {
                flatten(inner, path, origin, out)?;
            }
            _ => {
                let given =
                    Given { word, shown: path.join("."), style: Style::File, origin: origin(path), value };
                given.expand(out)?;
            }
        }
        path.pop();
    }
    Ok(())
}

/// `local_disk` is a name and a table of names.
fn takes_inner_names(meaning: &Meaning) -> bool {
    matches!(meaning, Meaning::Field(Field { kind: Kind::Text, .. }, _))
}

/// One layer under our names.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Layer {
    fn read(given: Vec<Given>, warnings: &mut Vec<Warning>) -> Result<Self> {
        let mut values: Map<String, Value> = Map::new();
        let mut names_given: BTreeMap<&'static str, String> = BTreeMap::new();
        for g in given {
            let empty = match &g.value.kind {
                ValueKind::Nil => true,
                ValueKind::Table(table) => table.is_empty(),
                _ => false,
            };
            let meaning = match names::meaning(&g.word) {
                Some(meaning) => meaning,
                None if empty && names::starts_a_name(&g.word) => continue,
                None => return Err(g.unknown()),
            };
            if matches!(g.value.kind, ValueKind::Nil) {
                continue; // written out as "not set"
            }
            let bad = |m: String| invalid(&m, &g.shown, &g.origin);
            match meaning {
                Meaning::Refused(why) => {
                    let e = Error::new(ErrorKind::Unsupported, OP, why);
                    return Err(e.with("name", &g.shown).with("origin", &g.origin));
                }
                Meaning::NoEffect(kind, why) => {
                    value::read(kind, As::Same, &g.value).map_err(bad)?;
                    warnings.push(Warning::no_effect(&g.shown, &g.origin, why));
                }
                Meaning::Group => {}
                Meaning::Field(field, how) => {
                    let mut kind = value::read(field.kind, how, &g.value).map_err(bad)?;
                    if let Some(before) = names_given.insert(field.path, g.shown.clone()) {
                        match (values.get_mut(field.path).map(|v| &mut v.kind), &mut kind) {
                            (Some(ValueKind::Array(list)), ValueKind::Array(more)) => {
                                list.append(more);
                                continue;
                            }
                            _ => {
                                let m = format!("{} is set twice: by {before} as well", field.path);
                                return Err(invalid(&m, &g.shown, &g.origin));
                            }
                        }
                    }
                    let unset =
                        matches!(&kind, ValueKind::String(s) if s.is_empty()) && field.is_optional_text();
                    let kind = if unset { ValueKind::Nil } else { kind };
                    values.insert(field.path.to_owned(), Value::new(Some(&g.origin), kind));
                }
            }
        }
        Ok(Self(values))
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn at<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(root, |value, segment| match &value.kind {
        ValueKind::Table(table) => table.get(segment),
        _ => None,
    })
}

fn invalid(message: &str, name: &str, origin: &str) -> Error {
    Error::invalid(OP, message).with("name", name).with("origin", origin)
}

fn internal(e: &ConfigError) -> Error {
    Error::new(ErrorKind::Internal, OP, e.to_string())
}

/// The variables of this process's environment that settings are read from: the one place where it is looked at.
///
/// # Errors
/// `Invalid` for such a variable that is not UTF-8.
pub fn process_environment() -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if !(name.starts_with("KVSTRATA_") || name.starts_with("LMCACHE_")) {
            continue;
        }
        match value.into_string() {
            Ok(value) => out.push((name.to_owned(), value)),
            Err(_) if name.starts_with("LMCACHE_") => {}
            Err(_) => return Err(invalid("text is expected", name, &format!("env {name}"))),
        }
    }
    // The environment has no order of its own; messages should not depend on it.
    out.sort();
    Ok(out)
}

/// Where this user's programs keep what can be made again: `XDG_CACHE_HOME`, else `.cache` in the home directory; `None` if
/// the environment names neither as an absolute path.
pub fn user_cache_directory() -> Option<std::path::PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(std::path::PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}
