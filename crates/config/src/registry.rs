//! Which adapters there are, by the `type` in their settings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Namespace, Result};
use kvstrata_l2::{Adapter, Context};
use kvstrata_mem::Allocate;
use serde_json::Value;

use crate::adapters::{AdapterSettings, OPTIONS};
use crate::names;
use crate::warning::Warning;

const OP: &str = "read adapter settings";

/// What an adapter is given to be built with.
#[derive(Clone, Debug)]
pub struct BuildContext {
    /// The clock of all deadlines, and the place where driver tasks run.
    pub l2: Context,
    /// A number that no other run has: writers tell each other apart by it.
    pub run: u64,
    /// What will be stored; a durable store that was written with other settings is refused, with the field that differs.
    pub namespaces: Vec<Namespace>,
    /// The memory that buffers come from, where it is known: drivers that register it beforehand (io_uring, cuFile,
    /// Mooncake) watch its regions. Without it everything works, unregistered.
    pub memory: Option<Arc<dyn Allocate>>,
}

impl BuildContext {
    /// The context of a tokio runtime with its time enabled, with a run number drawn at random.
    pub fn tokio(runtime: tokio::runtime::Handle) -> Self {
        // The standard library seeds its hash maps from the system's random source.
        let run = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Self { l2: Context::tokio(runtime), run, namespaces: Vec::new(), memory: None }
    }

    /// The same context for a store of these namespaces.
    #[must_use]
    pub fn storing(mut self, namespaces: Vec<Namespace>) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// The same context over this memory.
    #[must_use]
    pub fn over(mut self, memory: Arc<dyn Allocate>) -> Self {
        self.memory = Some(memory);
        self
    }
}

/// The memory that an adapter can work with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum MemoryNeed {
    /// Whatever L1 is made of.
    #[default]
    Any,
    /// Memory that another process can map: a memfd, or named shared memory.
    Shared,
}

/// Makes adapters of one type from their settings.
///
/// The settings that it sees have no `null`s, and no keys but `type`, `name` and those it names. `check` and `paths` touch
/// nothing.
pub trait AdapterFactory: Send + Sync + fmt::Debug + 'static {
    /// The type's name, then other names for it.
    fn names(&self) -> &'static [&'static str];
    /// The keys it takes, beside `type` and `name`.
    fn keys(&self) -> &'static [&'static str];
    /// The directories and devices that would be its own: no two adapters may have one in common.
    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf>;
    /// Reads the settings.
    ///
    /// # Errors
    /// `Invalid` with the key and what would be accepted.
    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>>;
    /// Makes the adapter; its description has this name. May block while a store is recovered.
    ///
    /// # Errors
    /// As [`check`](Self::check), and whatever keeps it from opening.
    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter>;
    /// The memory that L1 must have for it.
    fn memory(&self, settings: &AdapterSettings) -> MemoryNeed;
}

/// Puts something around the adapter that the settings describe under `inner`, whatever its type. The registry reads and
/// builds that one; the settings that the decorator sees are its own.
pub trait DecoratorFactory: Send + Sync + fmt::Debug + 'static {
    /// The type's name, then other names for it.
    fn names(&self) -> &'static [&'static str];
    /// The keys it takes, beside `type`, `name` and `inner`.
    fn keys(&self) -> &'static [&'static str];
    /// Reads the settings.
    ///
    /// # Errors
    /// `Invalid` with the key and what would be accepted.
    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>>;
    /// Makes the adapter. The one inside has its name.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    fn wrap(&self, inner: Adapter, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter>;
}

/// How deep decorators may be nested.
const DEPTH: usize = 8;

/// Types of LMCache's that are not built here, and what to say of them.
const NOT_BUILT: &[&str] = &[
    "raw_block",
    "s3",
    "resp",
    "valkey",
    "aerospike",
    "bigtable",
    "hfbucket",
    "hf3fs",
    "p2p",
    "dax",
    "nixl_store",
    "nixl_store_dynamic",
    "nixl_native",
    "plugin",
    "native_plugin",
    "sagemaker_hyperpod",
    "sagemaker-hyperpod",
];

/// Keys that any adapter may have. Those of LMCache's that mean nothing here are read, and refused where they would matter.
const COMMON: &[&str] = &[
    "type",
    "name",
    "weight",
    "breaker",
    "max_in_flight",
    "read_only",
    "affinity_tag",
    "shared",
    "persist_enabled",
    "eviction",
    "serde",
];

/// The adapter types there are.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    adapters: Vec<Arc<dyn AdapterFactory>>,
    decorators: Vec<Arc<dyn DecoratorFactory>>,
}

/// What makes adapters of a type.
#[derive(Clone, Copy)]
enum Factory<'a> {
    Adapter(&'a dyn AdapterFactory),
    Decorator(&'a dyn DecoratorFactory),
}

impl Factory<'_> {
    fn keys(self) -> Vec<&'static str> {
        match self {
            Self::Adapter(f) => f.keys().to_vec(),
            Self::Decorator(f) => f.keys().iter().copied().chain([INNER]).collect(),
        }
    }

    fn check(self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        match self {
            Self::Adapter(f) => f.check(settings),
            Self::Decorator(f) => f.check(&without_inner(settings)),
        }
    }
}

/// The key of what is inside a decorator.
const INNER: &str = "inner";

impl Registry {
    /// No types.
    pub fn new() -> Self {
        Self::default()
    }

    /// The types of this version: `mock`, `fs` with its other name `fs_native`, `gds`, `mooncake_store`, `lmcache_fs` and
    /// `lmcache_gds` over directories of LMCache's, and `fault_inject` (also `fault`) around any other.
    pub fn builtin() -> Self {
        crate::builtin::register(Self::new())
    }

    /// Adds a type; one of the same name gives way to it.
    #[must_use]
    pub fn with(mut self, factory: impl AdapterFactory) -> Self {
        self.remove(factory.names()[0]);
        self.adapters.push(Arc::new(factory));
        self
    }

    /// Adds a type that goes around others; one of the same name gives way to it.
    #[must_use]
    pub fn with_decorator(mut self, factory: impl DecoratorFactory) -> Self {
        self.remove(factory.names()[0]);
        self.decorators.push(Arc::new(factory));
        self
    }

    fn remove(&mut self, name: &str) {
        self.adapters.retain(|f| f.names()[0] != name);
        self.decorators.retain(|f| f.names()[0] != name);
    }

    fn names(&self) -> impl Iterator<Item = &'static [&'static str]> {
        self.adapters.iter().map(|f| f.names()).chain(self.decorators.iter().map(|f| f.names()))
    }

    /// The names of the types, without their other names.
    pub fn types(&self) -> Vec<&'static str> {
        self.names().map(|names| names[0]).collect()
    }

    /// What makes adapters of a type; an error names those there are, and the nearest.
    fn factory(&self, kind: &str) -> Result<Factory<'_>> {
        if let Some(f) = self.adapters.iter().find(|f| f.names().contains(&kind)) {
            return Ok(Factory::Adapter(f.as_ref()));
        }
        if let Some(f) = self.decorators.iter().find(|f| f.names().contains(&kind)) {
            return Ok(Factory::Decorator(f.as_ref()));
        }
        let known = self.types().join(", ");
        if NOT_BUILT.contains(&kind) {
            let message = format!("adapters of this type are not built in this version; there are: {known}");
            return Err(Error::new(ErrorKind::Unsupported, OP, message).with("type", kind));
        }
        let all = self.names().flatten().map(|n| (*n).to_owned());
        let message = match names::nearest(kind, all) {
            _ if kind.is_empty() => format!("an adapter has a \"type\"; there are: {known}"),
            Some(near) => {
                format!("there is no adapter of this type; there are: {known}; the nearest is {near}")
            }
            None => format!("there is no adapter of this type; there are: {known}"),
        };
        Err(Error::invalid(OP, message).with("type", kind))
    }

    /// Reads an adapter's settings without touching anything.
    ///
    /// # Errors
    /// `Unsupported` for a type of LMCache's that is not built in, and for a key of LMCache's that asks for what is not
    /// built here; `Invalid` for an unknown type or key, with the nearest; and as [`AdapterFactory::check`].
    pub fn check(&self, name: &str, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        self.check_at(name, settings, 0)
    }

    fn check_at(&self, name: &str, settings: &AdapterSettings, depth: usize) -> Result<Vec<Warning>> {
        let about = |e: Error| if depth == 0 { e.with("adapter", name) } else { e };
        let factory = self.factory(settings.kind()).map_err(about)?;
        let own = factory.keys();
        let mut warnings = Vec::new();
        for (key, value) in settings.keys() {
            if value.is_null() {
                continue;
            }
            if !own.contains(&key.as_str()) {
                let warning = common(&own, name, key, value).map_err(|e| about(e.with("key", key)))?;
                warnings.extend(warning);
                if depth > 0 && (OPTIONS.contains(&key.as_str()) || key == "weight") {
                    let why = "how an adapter is treated is said of the outermost one";
                    warnings.push(Warning::no_effect(key, &format!("adapter {name}, inner"), why));
                }
            }
        }
        warnings.extend(factory.check(&own_keys(&own, settings)).map_err(about)?);
        if let Factory::Decorator(_) = factory {
            let within = |e: Error| about(e.with("key", INNER));
            if depth == DEPTH {
                return Err(within(Error::invalid(OP, format!("adapters nest at most {DEPTH} deep"))));
            }
            let inner = inner(settings).map_err(within)?;
            warnings.extend(self.check_at(name, &inner, depth + 1).map_err(within)?);
        }
        Ok(warnings)
    }

    /// The paths that an adapter of these settings would have for itself.
    pub(crate) fn paths(&self, settings: &AdapterSettings) -> Result<Vec<PathBuf>> {
        let factory = self.factory(settings.kind())?;
        match factory {
            Factory::Adapter(f) => Ok(f.paths(&own_keys(&factory.keys(), settings))),
            Factory::Decorator(_) => self.paths(&inner(settings)?),
        }
    }

    /// The memory that L1 must have for an adapter of these settings.
    ///
    /// # Errors
    /// As [`check`](Self::check), for an unknown type.
    pub fn memory(&self, settings: &AdapterSettings) -> Result<MemoryNeed> {
        let factory = self.factory(settings.kind())?;
        match factory {
            Factory::Adapter(f) => Ok(f.memory(&own_keys(&factory.keys(), settings))),
            Factory::Decorator(_) => self.memory(&inner(settings)?),
        }
    }

    /// Makes an adapter.
    ///
    /// # Errors
    /// As [`check`](Self::check), and whatever keeps it from opening.
    pub fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        self.check(name, settings)?;
        self.build_checked(name, settings, cx).map_err(|e| e.with("adapter", name))
    }

    fn build_checked(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        let factory = self.factory(settings.kind())?;
        let own = own_keys(&factory.keys(), settings);
        match factory {
            Factory::Adapter(f) => f.build(name, &own, cx),
            Factory::Decorator(f) => {
                let inside = self.build_checked(name, &inner(settings)?, cx)?;
                f.wrap(inside, &without_inner(&own), cx)
            }
        }
    }
}

/// The settings of the adapter inside a decorator.
fn inner(settings: &AdapterSettings) -> Result<AdapterSettings> {
    match settings.keys().get(INNER) {
        Some(Value::Object(inner)) => Ok(AdapterSettings::from(inner.clone())),
        _ => Err(Error::invalid(OP, "the adapter inside is an object with a type: {\"type\": \"fs\", …}")),
    }
}

fn without_inner(settings: &AdapterSettings) -> AdapterSettings {
    let mut keys = settings.keys().clone();
    keys.remove(INNER);
    AdapterSettings::from(keys)
}

/// The settings as their factory sees them.
pub(crate) fn own_keys(own: &[&str], settings: &AdapterSettings) -> AdapterSettings {
    let own = |key: &str| matches!(key, "type" | "name") || own.contains(&key);
    let keys = settings.keys().iter().filter(|(k, v)| own(k) && !v.is_null());
    AdapterSettings::from(keys.map(|(k, v)| (k.clone(), v.clone())).collect::<serde_json::Map<_, _>>())
}

/// Reads a key that its factory does not know.
fn common(own: &[&str], name: &str, key: &str, value: &Value) -> Result<Option<Warning>> {
    let wrong = |message: &str| Err(Error::invalid(OP, message));
    let not_built = |message: &str| Err(Error::new(ErrorKind::Unsupported, OP, message));
    let warn = |why: &str| Ok(Some(Warning::no_effect(key, &format!("adapter {name}"), why)));
    match (key, value) {
        ("type", _) => Ok(None),
        ("name", Value::String(s)) if !s.trim().is_empty() => Ok(None),
        ("name", _) => wrong("a name is text that is not empty"),
        ("weight", n) if n.as_u64().is_some_and(|n| (1..=u64::from(u32::MAX)).contains(&n)) => Ok(None),
        ("weight", _) => wrong("a weight is a whole number of at least 1"),
        (key, value) if OPTIONS.contains(&key) => {
            let only = serde_json::Map::from_iter([(key.to_owned(), value.clone())]);
            AdapterSettings::from(only).options().map(|_| None)
        }
        ("affinity_tag", Value::String(s)) if s == "_default" => Ok(None),
        ("affinity_tag", _) => not_built("there is one L1 here, whose tag is \"_default\""),
        ("persist_enabled", Value::Bool(true)) => Ok(None),
        ("persist_enabled", Value::Bool(false)) => not_built(
            "what an adapter keeps stays when it is closed; deleting it then is not built in this version",
        ),
        ("persist_enabled", _) => wrong("true or false is expected"),
        ("shared", Value::Bool(_)) => {
            warn("adapters of this type know for themselves whether others share them")
        }
        ("shared", _) => wrong("true or false is expected"),
        ("serde", _) => {
            not_built("chunks are stored as they are; transformations are not built in this version")
        }
        ("eviction", Value::Object(inner)) => {
            const KEYS: [&str; 3] = ["eviction_policy", "trigger_watermark", "eviction_ratio"];
            if let Some(bad) = inner.keys().find(|k| !KEYS.contains(&k.as_str())) {
                return wrong(&unknown_key(bad, KEYS.map(str::to_owned).into_iter()));
            }
            warn("adapters of this type do not evict by these rules")
        }
        ("eviction", _) => wrong("an object is expected"),
        _ => {
            let known = own.iter().chain(COMMON).map(|k| (*k).to_owned());
            wrong(&unknown_key(key, known))
        }
    }
}

pub(crate) fn unknown_key(key: &str, known: impl Iterator<Item = String>) -> String {
    let known: Vec<String> = known.collect();
    let near = names::nearest(key, known.iter().cloned());
    match near {
        Some(near) => format!("there is no such key; the nearest is {near}; there are: {}", known.join(", ")),
        None => format!("there is no such key; there are: {}", known.join(", ")),
    }
}
