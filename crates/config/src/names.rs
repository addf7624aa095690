//! The names that are accepted, and what each means.
//!
//! Every setting has one name of ours, a path such as `l1.size`. In a file it is written as nested tables or in one
//! word; as a flag `--l1-size`; in the environment `KVSTRATA_L1_SIZE`. Case, `-`, `_` and `.` do not matter.
//!
//! LMCache's names are accepted where they mean the same:
//!
//! | LMCache's name | is here | note |
//! |---|---|---|
//! | `l1-size-gb`, `max_local_cpu_size` | `l1.size` | a bare number counts 2^30 bytes |
//! | `l1-use-lazy` | `l1.prefault` | the opposite of it; `--no-l1-use-lazy` too |
//! | `l1-init-size-gb` | – | no effect: memory is committed on first use |
//! | `l1-align-bytes`, `extra_config: local_cpu.pinned_align_bytes` | `l1.align` | |
//! | `l1-use-hugepages`, `local_cpu_use_hugepages` | `l1.hugepages` | true is `explicit`, false is `none` |
//! | `shm-name`, `extra_config: shm_name` | `l1.shm_name` | |
//! | `l1-write-ttl-seconds`, `l1-read-ttl-seconds`, `pin_timeout_sec`, `pin_check_interval_sec` | – | no effect: memory is freed by its last owner, never by a timer |
//! | `eviction-policy`, `cache_policy` | `eviction.policy` | |
//! | `eviction-trigger-watermark`, `eviction-ratio` | – | no effect: eviction frees the bytes that are needed, when they are |
//! | `l2-store-policy` | `store.policy` | |
//! | `l2-prefetch-policy` | `prefetch.policy` | |
//! | `l2-prefetch-max-in-flight` | – | no effect: loads do not queue for a place, each ends by its deadline |
//! | `l2-adapter` (may be repeated) | `l2.adapters` | |
//! | `local_disk` | `local_disk.path` | `file://` is taken off; several are separated by commas |
//! | `max_local_disk_size` | `local_disk.size` | a bare number counts 2^30 bytes; 0 turns the tier off |
//! | `local_disk_path_sharding` | `local_disk.path_sharding` | `by_gpu`, and `by_uuid` or `by_key`, the default here |
//! | `extra_config: use_odirect`, `disk_io_threads` | `local_disk.use_odirect`, `local_disk.num_workers` | 0 threads are one |
//! | `blocking_timeout_secs` | `deadlines.load_timeout` | |
//! | `chunk_size`, `local_cpu`, `use_only_staging_buffer` | the same | |
//! | `periodic-notifier-interval-ms`, `enable-extra-logging` | – | no effect |
//!
//! Names of LMCache that mean something which is not built in this version (`gds_path`, `remote_url`, `l1-manager`, …)
//! are refused with that reason, and any other name with the nearest one there is.

/// How a value is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Bool,
    /// A whole number from 0 to `u32::MAX`.
    Count,
    /// A number in (0, 1].
    Fraction,
    /// A size whose bare number counts so many bytes.
    Size(u64),
    Span,
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    Adapters,
    /// Sizes by tenant.
    Quotas,
}

/// How the value under an accepted name becomes the field's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum As {
    /// It is the field's.
    Same,
    /// A size in GiB.
    Gib,
    /// The opposite boolean.
    Not,
    /// A directory, perhaps as a `file://` URL.
    Directory,
    /// A number of threads of which 0 means no extra ones.
    Threads,
}

/// A setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
}

impl Field {
    /// Whether an empty text means that nothing is set, as it does in LMCache.
    pub(crate) fn is_optional_text(&self) -> bool {
        matches!(self.path, "l1.shm_name" | "local_disk.path")
    }
}

/// What a known name means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meaning {
    /// It sets a field.
    Field(&'static Field, As),
    /// It is read, and then has no effect for this reason.
    NoEffect(Kind, &'static str),
    /// It is refused for this reason.
    Refused(&'static str),
    /// An object, or JSON text of one, whose keys are names that start with the group's.
    Group,
}

/// An alias's meaning, with the field by its path.
#[derive(Clone, Copy)]
enum To {
    Field(&'static str, As),
    NoEffect(Kind, &'static str),
    Refused(&'static str),
    Group,
}

const HUGE: &[&str] = &["none", "transparent", "explicit"];

/// Every setting, in the order `config show` lists them.
pub(crate) static FIELDS: &[Field] = &[
    Field { path: "chunk_size", kind: Kind::Count, help: "tokens per chunk" },
    Field { path: "digests", kind: Kind::Bool, help: "check a digest of the bytes on every load" },
    Field {
        path: "local_cpu",
        kind: Kind::Bool,
        help: "L1 is a cache; false makes it a buffer on the way to L2",
    },
    Field {
        path: "use_only_staging_buffer",
        kind: Kind::Bool,
        help: "L1 is only a buffer (with local_cpu=false)",
    },
    Field { path: "l1.size", kind: Kind::Size(1), help: "bytes of host memory for stored chunks" },
    Field {
        path: "l1.staging_size",
        kind: Kind::Size(1),
        help: "bytes beside it for chunks on their way from L2",
    },
    Field { path: "l1.align", kind: Kind::Size(1), help: "alignment of buffers in bytes, at most 4096" },
    Field {
        path: "l1.hugepages",
        kind: Kind::Choice(HUGE),
        help: "none, transparent or explicit huge pages",
    },
    Field { path: "l1.shm_name", kind: Kind::Text, help: "put L1 in POSIX shared memory of this name" },
    Field { path: "l1.prefault", kind: Kind::Bool, help: "fault all memory in at the start" },
    Field { path: "l1.numa", kind: Kind::Count, help: "take memory from this NUMA node" },
    Field { path: "l1.mlock", kind: Kind::Bool, help: "lock memory against swapping" },
    Field { path: "eviction.policy", kind: Kind::Text, help: "what leaves L1 when room is needed" },
    Field {
        path: "eviction.default_quota",
        kind: Kind::Size(1),
        help: "bytes of L1 for each tenant (cache salt) without a quota of its own; unset, they share",
    },
    Field {
        path: "eviction.quotas",
        kind: Kind::Quotas,
        help: "bytes of L1 for a tenant, as SALT=SIZE, with --eviction-policy IsolatedLRU",
    },
    Field {
        path: "admission",
        kind: Kind::Text,
        help: "what may come into L1: always, second_sighting, tinylfu, duel",
    },
    Field { path: "store.policy", kind: Kind::Text, help: "what is written to L2 and what then leaves L1" },
    Field { path: "store.retries", kind: Kind::Count, help: "further tries of a failed store" },
    Field {
        path: "store.backoff",
        kind: Kind::Span,
        help: "wait before the first further try; doubles with each",
    },
    Field { path: "store.backoff_max", kind: Kind::Span, help: "longest wait between tries" },
    Field { path: "prefetch.policy", kind: Kind::Text, help: "what becomes of chunks loaded from L2" },
    Field { path: "deadlines.load_timeout", kind: Kind::Span, help: "limit of a lookup with its load" },
    Field { path: "deadlines.store_timeout", kind: Kind::Span, help: "limit of one try to store a batch" },
    Field { path: "deadlines.shutdown_timeout", kind: Kind::Span, help: "limit of waiting at the end" },
    Field { path: "l2.adapters", kind: Kind::Adapters, help: "adapters as JSON objects" },
    Field {
        path: "local_disk.path",
        kind: Kind::Text,
        help: "directory of LMCache's short form of an fs adapter, or several, separated by commas",
    },
    Field {
        path: "local_disk.path_sharding",
        kind: Kind::Choice(&["by_gpu", "by_uuid", "by_key"]),
        help: "how one of several is chosen",
    },
    Field { path: "local_disk.size", kind: Kind::Size(1), help: "its bytes on disk; 0 turns it off" },
    Field { path: "local_disk.use_odirect", kind: Kind::Bool, help: "whether it opens files for direct I/O" },
    Field { path: "local_disk.num_workers", kind: Kind::Count, help: "its threads" },
];

const TIMERS: &str = "memory is freed by its last owner, never by a timer";
const EXACT: &str = "eviction frees the bytes that are needed when they are needed";
const GDS: &str = "GPUDirect Storage is an adapter here: l2.adapters with {\"type\": \"gds\", \"gds_path\": …} takes this key";
const REMOTE: &str = "Mooncake Store is an adapter here: l2.adapters with {\"type\": \"mooncake_store\", …} takes this key, also inside extra_config; other remote stores are not built in this version";
const ENGINE: &str = "that is for the serving engine's connector to decide";
const PLUGINS: &str = "plugins are registered in code here";

/// Names beside the fields' own, in their one-word form.
static ALIASES: &[(&str, To)] = {
    use As::{Directory, Gib, Not, Same, Threads};
    use To::{Field, Group, NoEffect, Refused};
    &[
        ("l1_size_gb", Field("l1.size", Gib)),
        ("max_local_cpu_size", Field("l1.size", Gib)),
        ("l1_staging_size_gb", Field("l1.staging_size", Gib)),
        ("l1_lazy", Field("l1.prefault", Not)),
        ("l1_use_lazy", Field("l1.prefault", Not)),
        ("l1_init_size", NoEffect(Kind::Size(1), "memory is committed on first use")),
        ("l1_init_size_gb", NoEffect(Kind::Size(1 << 30), "memory is committed on first use")),
        ("l1_align_bytes", Field("l1.align", Same)),
        ("extra_config_local_cpu_pinned_align_bytes", Field("l1.align", Same)),
        ("l1_use_hugepages", Field("l1.hugepages", Same)),
        ("local_cpu_use_hugepages", Field("l1.hugepages", Same)),
        ("shm_name", Field("l1.shm_name", Same)),
        ("extra_config_shm_name", Field("l1.shm_name", Same)),
        ("l1_write_ttl_seconds", NoEffect(Kind::Span, TIMERS)),
        ("l1_read_ttl_seconds", NoEffect(Kind::Span, TIMERS)),
        ("pin_timeout_sec", NoEffect(Kind::Span, TIMERS)),
        ("pin_check_interval_sec", NoEffect(Kind::Span, TIMERS)),
        ("cache_policy", Field("eviction.policy", Same)),
        ("eviction_trigger_watermark", NoEffect(Kind::Fraction, EXACT)),
        ("eviction_ratio", NoEffect(Kind::Fraction, EXACT)),
        ("eviction_eviction_ratio", NoEffect(Kind::Fraction, EXACT)),
        ("l2_store_policy", Field("store.policy", Same)),
        ("l2_prefetch_policy", Field("prefetch.policy", Same)),
        (
            "l2_prefetch_max_in_flight",
            NoEffect(Kind::Count, "loads do not queue for a place; each ends by its deadline"),
        ),
        ("l2_adapter", Field("l2.adapters", Same)),
        ("local_disk", Field("local_disk.path", Directory)),
        ("max_local_disk_size", Field("local_disk.size", Gib)),
        ("extra_config", Group),
        ("extra_config_use_odirect", Field("local_disk.use_odirect", Same)),
        ("extra_config_disk_io_threads", Field("local_disk.num_workers", Threads)),
        ("blocking_timeout_secs", Field("deadlines.load_timeout", Same)),
        ("load_timeout", Field("deadlines.load_timeout", Same)),
        ("periodic_notifier_interval_ms", NoEffect(Kind::Count, "nothing here polls")),
        ("enable_extra_logging", NoEffect(Kind::Bool, "the log filter says what is logged")),
        ("gds_path", Refused(GDS)),
        ("gds_path_sharding", Refused(GDS)),
        ("gds_buffer_size", Refused(GDS)),
        ("use_gds", Refused(GDS)),
        ("gds_backend", Refused(GDS)),
        ("gds_l1_path", Refused(GDS)),
        ("gds_l1_use_direct_io", Refused(GDS)),
        ("gds_l1_backend", Refused(GDS)),
        ("extra_config_use_direct_io", Refused(GDS)),
        ("extra_config_gds_io_threads", Refused(GDS)),
        ("extra_config_max_alloc_attempts", Refused(GDS)),
        ("extra_config_allocation_attempt_delay_secs", Refused(GDS)),
        ("remote_url", Refused(REMOTE)),
        ("remote_serde", Refused(REMOTE)),
        ("extra_config_save_chunk_meta", Refused(REMOTE)),
        ("extra_config_transfer_timeout", Refused(REMOTE)),
        ("extra_config_storage_root_dir", Refused(REMOTE)),
        ("l1_devdax_path", Refused("DAX devices are not built in this version")),
        (
            "l1_manager",
            Refused("there is one L1, of host memory; its fields are given one by one: l1.size, l1.align, …"),
        ),
        ("reserve_local_cpu_size", Refused("give the size that L1 is to have: l1.size")),
        ("numa_mode", Refused("name the node: l1.numa")),
        ("save_unfull_chunk", Refused(ENGINE)),
        ("use_layerwise", Refused(ENGINE)),
        ("extra_config_save_only_first_rank", Refused(ENGINE)),
        ("extra_config_first_rank_max_local_cpu_size", Refused(ENGINE)),
        (
            "extra_config_audit_backend_enabled",
            Refused("every load is checked against its digest already: digests"),
        ),
    ]
};

/// Starts of names that are refused.
static REFUSED_STARTS: &[(&str, &str)] = &[
    ("extra_config_mooncake_", REMOTE),
    ("extra_config_rust_raw_block_", "raw block devices are not built in this version"),
    ("extra_config_storage_plugin_", PLUGINS),
];

/// A name in the form that is compared: one lower-case word with `_`.
pub(crate) fn word(name: &str) -> String {
    name.trim().to_lowercase().replace("__", "_").replace(['-', '.'], "_")
}

/// The field of this path.
pub(crate) fn field(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|f| f.path == path)
}

/// What a name in its one-word form means; `None` if nobody knows it.
pub(crate) fn meaning(word: &str) -> Option<Meaning> {
    if let Some(f) = FIELDS.iter().find(|f| f.path.replace('.', "_") == word) {
        return Some(Meaning::Field(f, As::Same));
    }
    if let Some((_, to)) = ALIASES.iter().find(|(name, _)| *name == word) {
        return match *to {
            To::Field(path, how) => field(path).map(|f| Meaning::Field(f, how)),
            To::NoEffect(kind, why) => Some(Meaning::NoEffect(kind, why)),
            To::Refused(why) => Some(Meaning::Refused(why)),
            To::Group => Some(Meaning::Group),
        };
    }
    REFUSED_STARTS.iter().find(|(start, _)| word.starts_with(start)).map(|(_, why)| Meaning::Refused(why))
}

/// Whether names start with this word: it is a table's.
pub(crate) fn starts_a_name(word: &str) -> bool {
    FIELDS
        .iter()
        .any(|f| f.path.replace('.', "_").strip_prefix(word).is_some_and(|rest| rest.starts_with('_')))
}

/// The known word nearest to this one, if any is near.
pub(crate) fn nearest_word(word: &str) -> Option<String> {
    let fields = FIELDS.iter().map(|f| f.path.replace('.', "_"));
    let aliases =
        ALIASES.iter().filter(|(_, to)| !matches!(to, To::Refused(_))).map(|(name, _)| (*name).to_owned());
    nearest(word, fields.chain(aliases))
}

/// The candidate nearest to `word`, if any is near enough to be worth saying.
pub(crate) fn nearest(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    // The measure is quadratic in the length, and nobody misspells a name into a page.
    if word.len() > 200 {
        return None;
    }
    candidates
        .into_iter()
        .map(|c| {
            (strsim::normalized_damerau_levenshtein(word, &c).max(0.9 * strsim::jaro_winkler(word, &c)), c)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.6)
        .map(|(_, c)| c)
}

/// A setting as a command line offers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlagSpec {
    /// The name without its dashes, in kebab case.
    pub name: String,
    /// Whether it is a switch: the value may be left out, and `--no-NAME` turns it off.
    pub switch: bool,
    /// Whether it may be repeated.
    pub repeats: bool,
    /// A line of help, for the settings' own names; LMCache's say which setting they mean.
    pub help: String,
}

/// Every flag that the `flags` layer knows: our names first, then LMCache's. The words inside `extra_config`
/// and those that are refused are left out; a command line that passes them on all the same gets the reason.
pub fn flag_specs() -> Vec<FlagSpec> {
    let spec = |name: &str, kind: Kind, how: As, help: String| FlagSpec {
        name: name.replace(['.', '_'], "-"),
        switch: kind == Kind::Bool || how == As::Not || name.ends_with("use_hugepages"),
        repeats: matches!(kind, Kind::Adapters | Kind::Quotas),
        help,
    };
    let own = FIELDS.iter().map(|f| spec(f.path, f.kind, As::Same, f.help.to_owned()));
    let aliases = ALIASES.iter().filter(|(name, _)| !name.starts_with("extra_config_")).filter_map(
        |(name, to)| match to {
            To::Field(path, how) => {
                field(path).map(|f| spec(name, f.kind, *how, format!("LMCache's name for {}", f.path)))
            }
            To::NoEffect(kind, why) => {
                Some(spec(name, *kind, As::Same, format!("accepted without effect: {why}")))
            }
            To::Group => Some(spec(name, Kind::Text, As::Same, "LMCache's further keys as JSON".to_owned())),
            To::Refused(_) => None,
        },
    );
    let lmcache_env = spec("lmcache_env", Kind::Bool, As::Same, "read LMCACHE_* variables, too".to_owned());
    own.chain([lmcache_env]).chain(aliases).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_means_one_thing_and_every_alias_leads_somewhere() {
        let mut seen = std::collections::BTreeSet::new();
        for name in
            FIELDS.iter().map(|f| f.path.replace('.', "_")).chain(ALIASES.iter().map(|a| a.0.to_owned()))
        {
            assert_eq!(word(&name), name);
            assert!(meaning(&name).is_some(), "{name}");
            assert!(seen.insert(name.clone()), "{name} twice");
        }
    }

    #[test]
    fn the_nearest_name_is_found_and_nonsense_has_none() {
        for (typo, name) in [
            ("l1_sise_gb", "l1_size_gb"),
            ("evictionpolicy", "eviction_policy"),
            ("l2_adaptor", "l2_adapter"),
            ("chunksize", "chunk_size"),
            ("use_staging_buffer", "use_only_staging_buffer"),
        ] {
            assert_eq!(nearest_word(typo).as_deref(), Some(name), "{typo}");
        }
        assert_eq!(nearest_word("zzzz"), None);
        assert_eq!(nearest_word(&"x".repeat(1 << 20)), None);
    }
}
