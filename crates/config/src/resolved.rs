//! The settings in effect, where each came from, and what there is to say about them.

use std::collections::BTreeMap;
use std::path::Path;

use kvstrata_core::{Error, Result};

use crate::adapters::redacted;
use crate::build::Components;
use crate::check::{self, Machine};
use crate::layers::{Merged, Sources, process_environment};
use crate::names::{self, FIELDS};
use crate::registry::{BuildContext, Registry};
use crate::settings::Settings;
use crate::warning::Warning;

/// Settings that were read, checked, and completed by what their mode implies.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The settings.
    pub settings: Settings,
    /// What was accepted and does nothing, or is worth saying once.
    pub warnings: Vec<Warning>,
    origins: BTreeMap<&'static str, String>,
    machine: Machine,
    registry: Registry,
}

/// A line of `config show`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The setting.
    pub name: &'static str,
    /// Its value as text, without secrets.
    pub value: String,
    /// `default`, `file PATH:LINE`, `env NAME`, `flag --NAME`, or the setting that implies it.
    pub origin: String,
}

const IMPLIED: &str = "implied by local_cpu=false";

/// Settings from this process's environment, this machine and the adapters built in, with a file and flags on top. The
/// flags `config` and `lmcache-env` count, too ([`Sources::gather`]); `file` overrides the former.
///
/// # Errors
/// As [`Resolved::load`].
pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Resolved> {
    let mut flags: Vec<_> = flags.iter().map(|(n, v)| (n.clone(), Some(v.clone()))).collect();
    if let Some(file) = file {
        flags.push((
            "config".into(),
            Some(file.to_str().map(str::to_owned).ok_or_else(|| {
                Error::invalid("read settings", "the path of a settings file is UTF-8")
                    .with("file", file.display())
            })?),
        ));
    }
    let sources = Sources::gather(flags, process_environment()?)?;
    Resolved::load(&sources, &Machine::here(), &Registry::builtin())
}

impl Resolved {
    /// Reads the layers and checks what they say together. Nothing is changed, and nothing but the file and the adapters'
    /// paths is looked at.
    ///
    /// # Errors
    /// The first thing that is wrong: what, where it was given, and what would be accepted.
    pub fn load(sources: &Sources, machine: &Machine, registry: &Registry) -> Result<Self> {
        let Merged { settings, origins, warnings } = sources.merge()?;
        let mut this = Self { settings, warnings, origins, machine: *machine, registry: registry.clone() };
        this.refuse_contradictions()?;
        this.warn();
        for path in this.settings.imply() {
            this.origins.insert(path, IMPLIED.to_owned());
        }
        let mut said = check::check(&this.settings, machine, registry).map_err(|e| this.located(e))?;
        this.warnings.append(&mut said);
        // A name that several layers give is said once, for the layer that counts.
        let all = std::mem::take(&mut this.warnings);
        for (i, w) in all.iter().enumerate() {
            let again = |later: &Warning| {
                names::word(&later.name) == names::word(&w.name) && later.message == w.message
            };
            if w.origin.starts_with("adapter ") || !all[i + 1..].iter().any(again) {
                this.warnings.push(w.clone());
            }
        }
        Ok(this)
    }

    /// Builds what the settings describe, all but the manager itself.
    ///
    /// # Errors
    /// As [`Components::build`].
    pub fn build(&self, cx: &BuildContext) -> Result<Components> {
        Components::build(&self.settings, &self.machine, &self.registry, cx)
    }

    /// Where a setting came from, by our name for it.
    pub fn origin(&self, path: &str) -> &str {
        self.origins.get(path).map_or("default", String::as_str)
    }

    /// Every setting with its value and origin, in a fixed order.
    pub fn rows(&self) -> Vec<Row> {
        let all = serde_json::to_value(&self.settings).unwrap_or_default();
        let value = |path: &str| {
            let value = path.split('.').try_fold(&all, |v, segment| v.get(segment));
            match value.map(redacted) {
                None | Some(serde_json::Value::Null) => "unset".to_owned(),
                Some(serde_json::Value::String(s)) => s,
                Some(other) => other.to_string(),
            }
        };
        let row =
            |path: &'static str| Row { name: path, value: value(path), origin: self.origin(path).to_owned() };
        FIELDS.iter().map(|f| row(f.path)).collect()
    }

    fn given(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    /// Adds to an error about a field where the field was given.
    fn located(&self, e: Error) -> Error {
        let origin =
            e.context().find(|(name, _)| *name == "field").map(|(_, path)| self.origin(path).to_owned());
        match origin {
            Some(origin) => e.with("origin", origin),
            None => e,
        }
    }

    /// What was said outright and cannot both hold.
    fn refuse_contradictions(&self) -> Result<()> {
        let s = &self.settings;
        if !s.staging_only() {
            return Ok(());
        }
        let keeps_stored =
            !kvstrata_policy::store_by_name(&s.store.policy).is_ok_and(|p| p.name() == "skip_l1");
        let keeps_loaded = retains(&s.prefetch.policy);
        for (path, keeps, name) in [
            ("store.policy", keeps_stored, &s.store.policy),
            ("prefetch.policy", keeps_loaded, &s.prefetch.policy),
        ] {
            if self.given(path) && keeps {
                let m = format!("{path} {name} keeps chunks in L1, and local_cpu=false keeps none there");
                let e = Error::invalid("check settings", m).with("field", path);
                return Err(self.located(e).with("local_cpu", self.origin("local_cpu")));
            }
        }
        Ok(())
    }

    /// What has no effect in this combination.
    fn warn(&mut self) {
        let s = &self.settings;
        let is_noop = |name: &str| kvstrata_evict::by_name(name).is_ok_and(|_| names::word(name) == "noop");
        let no_adapter = s.adapters().is_empty();
        let disk = &s.local_disk;
        let disk_off = disk.path.is_none() || disk.size.0 == 0;
        let rules: &[(&str, bool, &str)] = &[
            (
                "use_only_staging_buffer",
                s.use_only_staging_buffer && s.local_cpu,
                "it needs local_cpu=false; L1 stays a cache",
            ),
            (
                "use_only_staging_buffer",
                !s.use_only_staging_buffer && !s.local_cpu,
                "local_cpu=false makes L1 a buffer that keeps nothing",
            ),
            (
                "eviction.policy",
                s.staging_only() && !is_noop(&s.eviction.policy),
                "with local_cpu=false nothing stays in L1 to be evicted",
            ),
            ("store.retries", no_adapter, NO_ADAPTER),
            (
                "store.backoff",
                no_adapter || s.store.retries == 0,
                if no_adapter { NO_ADAPTER } else { "there are no retries" },
            ),
            ("deadlines.store_timeout", no_adapter, NO_ADAPTER),
            ("prefetch.policy", no_adapter, NO_ADAPTER),
            ("l1.staging_size", no_adapter, NO_ADAPTER),
            (
                "local_disk.path",
                disk.path.is_some() && disk.size.0 == 0,
                "local_disk.size (max_local_disk_size) is 0, which turns it off",
            ),
            (
                "local_disk.size",
                disk.path.is_none() && disk.size.0 > 0,
                "there is no local_disk.path (local_disk)",
            ),
            (
                "local_disk.path_sharding",
                disk_off || disk.path.as_ref().is_some_and(|path| !path.contains(',')),
                if disk_off { DISK_OFF } else { "there is a single path" },
            ),
            ("local_disk.use_odirect", disk_off, DISK_OFF),
            ("local_disk.num_workers", disk_off, DISK_OFF),
        ];
        let mut said = Vec::new();
        for (path, holds, why) in rules {
            if *holds && self.given(path) {
                said.push(Warning::no_effect(path, self.origin(path), why));
            }
        }
        if s.staging_only() && !self.given("use_only_staging_buffer") {
            let m = "makes L1 a buffer that keeps nothing, as with use_only_staging_buffer=true";
            said.push(Warning::new("local_cpu", self.origin("local_cpu"), m));
        }
        let keeps = !s.staging_only()
            && kvstrata_policy::store_by_name(&s.store.policy).is_ok_and(|p| p.name() != "skip_l1");
        if keeps && is_noop(&s.eviction.policy) {
            let m = "nothing ever leaves L1: once it is full, stores are declined";
            said.push(Warning::new("eviction.policy", self.origin("eviction.policy"), m));
        }
        self.warnings.append(&mut said);
    }
}

/// Whether a prefetch policy keeps in L1 what it loads. One that does not exist does; it is refused elsewhere.
fn retains(policy: &str) -> bool {
    !kvstrata_policy::prefetch_by_name(policy).is_ok_and(|p| p.admit() == kvstrata_policy::Admit::Temporary)
}

const NO_ADAPTER: &str = "there is no adapter below L1";
const DISK_OFF: &str = "local_disk is off: it needs a path and a size";

impl Settings {
    /// Completes the settings by what follows from others, and says which fields that changed.
    pub(crate) fn imply(&mut self) -> Vec<&'static str> {
        let mut changed = Vec::new();
        if self.staging_only() {
            let mut set = |path, field: &mut String, value: &str| {
                if field != value {
                    value.clone_into(field);
                    changed.push(path);
                }
            };
            set("eviction.policy", &mut self.eviction.policy, "noop");
            set("store.policy", &mut self.store.policy, "skip_l1");
            if retains(&self.prefetch.policy) {
                set("prefetch.policy", &mut self.prefetch.policy, "default");
            }
        }
        self.l1.staging_size = Some(self.l1.staging());
        changed
    }

    /// Checks everything that can be checked without changing anything, as [`Resolved::load`] does.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub fn check(&self, machine: &Machine, registry: &Registry) -> Result<Vec<Warning>> {
        let mut complete = self.clone();
        complete.imply();
        check::check(&complete, machine, registry)
    }
}
