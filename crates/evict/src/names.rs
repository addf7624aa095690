//! Policies by name.

use crate::{
    AdaptiveReplacement, EvictionPolicy, Fifo, IsolatedLru, Lfu, LifeTable, Lru, Mru, Noop, S3Fifo, Sieve,
    WTinyLfu,
};
use std::fmt;

/// Makes an empty policy.
type Make = fn() -> Box<dyn EvictionPolicy>;

const POLICIES: &[(&str, Make)] = &[
    ("noop", || Box::new(Noop)),
    ("FIFO", || Box::<Fifo>::default()),
    ("LRU", || Box::<Lru>::default()),
    ("MRU", || Box::<Mru>::default()),
    ("LFU", || Box::<Lfu>::default()),
    ("W-TinyLFU", || Box::<WTinyLfu>::default()),
    ("ARC", || Box::<AdaptiveReplacement>::default()),
    ("S3-FIFO", || Box::<S3Fifo>::default()),
    ("SIEVE", || Box::<Sieve>::default()),
    ("life-table", || Box::<LifeTable>::default()),
    ("IsolatedLRU", || Box::<IsolatedLru>::default()),
];

/// The names [`by_name`] takes, as they are usually written.
pub const NAMES: [&str; POLICIES.len()] = names(POLICIES);

/// The names of a list.
pub(crate) const fn names<T, const N: usize>(list: &[(&'static str, T)]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = list[at].0;
        at += 1;
    }
    names
}

/// An empty policy by its name, in any case and with or without `-` and `_`: `S3-FIFO` is `s3fifo`.
///
/// # Errors
/// When the name is not one of [`NAMES`].
pub fn by_name(name: &str) -> Result<Box<dyn EvictionPolicy>, UnknownPolicy> {
    find(name, POLICIES).map(|make| make()).ok_or_else(|| UnknownPolicy::new("eviction policy", name, &NAMES))
}

/// The value of the entry whose name is `name`.
pub(crate) fn find<T: Copy>(name: &str, known: &[(&'static str, T)]) -> Option<T> {
    let name = plain(name);
    known.iter().find(|(known, _)| plain(known) == name).map(|&(_, value)| value)
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// A name that is none of the known ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownPolicy {
    kind: &'static str,
    name: String,
    known: &'static [&'static str],
}

impl UnknownPolicy {
    pub(crate) fn new(kind: &'static str, name: &str, known: &'static [&'static str]) -> Self {
        Self { kind, name: name.into(), known }
    }

    /// The name that was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names that would have been accepted.
    pub fn known(&self) -> &'static [&'static str] {
        self.known
    }

    /// The known name that is nearest, if any is near.
    pub fn nearest(&self) -> Option<&'static str> {
        let name = plain(&self.name);
        let (distance, nearest) = self
            .known
            .iter()
            .map(|known| (distance(&name, &plain(known)), *known))
            .min_by_key(|(d, _)| *d)?;
        (distance <= name.chars().count().div_ceil(2)).then_some(nearest)
    }
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} {:?}; known: {}", self.kind, self.name, self.known.join(", "))?;
        match self.nearest() {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for UnknownPolicy {}

/// The edits (insert, delete, replace) from one word to another.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_way_of_writing_a_name_is_taken() {
        for name in NAMES {
            for written in
                [name.to_string(), name.to_lowercase(), name.to_uppercase(), name.replace('-', "_")]
            {
                assert_eq!(by_name(&written).expect("a known name").name(), name);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = by_name("LRUU").expect_err("no such policy");
        assert_eq!(error.nearest(), Some("LRU"));
        let said = error.to_string();
        for name in NAMES {
            assert!(said.contains(name), "{said}");
        }
        assert!(said.ends_with("did you mean LRU?"), "{said}");
        assert_eq!(by_name("something else entirely").expect_err("no such policy").nearest(), None);
        assert_eq!(by_name("").expect_err("no such policy").nearest(), None);
    }
}
