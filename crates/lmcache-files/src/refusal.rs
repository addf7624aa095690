//! Why a file in a directory of LMCache's is no object here.

use std::fmt;

/// Why a file is passed over. One bad file is counted and never ends a scan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The name is none of LMCache's, or the file is not where its name belongs.
    Foreign,
    /// A file that its writer has not published, or never will.
    Temporary,
    /// The name or the header breaks a rule of its format.
    Malformed,
    /// The name stands for more than one key.
    Ambiguous,
    /// The header has another version.
    Version,
    /// The file is shorter or longer than what describes it says, or empty.
    Truncated,
    /// One of an object's two files is not there.
    Half,
    /// The key has something that no key has here, such as tags.
    Unmapped,
    /// Another file is the same object.
    Duplicate,
    /// The disk did not give it.
    Unreadable,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::Foreign,
        Self::Temporary,
        Self::Malformed,
        Self::Ambiguous,
        Self::Version,
        Self::Truncated,
        Self::Half,
        Self::Unmapped,
        Self::Duplicate,
        Self::Unreadable,
    ];

    /// The label in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Temporary => "temporary",
            Self::Malformed => "malformed",
            Self::Ambiguous => "ambiguous",
            Self::Version => "version",
            Self::Truncated => "truncated",
            Self::Half => "half",
            Self::Unmapped => "unmapped",
            Self::Duplicate => "duplicate",
            Self::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many files were passed over, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused([u64; Refusal::ALL.len()]);

impl Refused {
    /// Counts one.
    pub fn add(&mut self, why: Refusal) {
        self.0[why as usize] += 1;
    }

    /// Counts all of another count.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(n, more)| *n += more);
    }

    /// How many for this reason.
    pub fn of(&self, why: Refusal) -> u64 {
        self.0[why as usize]
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons there were, with their counts.
    pub fn reasons(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().zip(self.0).filter(|(_, n)| *n > 0)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.reasons().map(|(why, n)| (why.name(), n))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let mut refused = Refused::default();
        for (i, why) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, i);
            (0..=i).for_each(|_| refused.add(why));
        }
        let mut twice = refused;
        twice.merge(&refused);
        assert_eq!((refused.of(Refusal::Version), twice.of(Refusal::Version)), (5, 10));
        assert_eq!((refused.total(), refused.reasons().count()), (55, 10));
    }
}
