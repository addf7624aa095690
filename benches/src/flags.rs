//! What a bench is told on its command line.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

/// Flags with a value each.
///
/// ```
/// let given = ["--bench", "--rounds", "3"].map(String::from);
/// let flags = kvstrata_benches::Flags::of(given.into_iter(), &["--dir", "--rounds"])?;
/// assert_eq!((flags.number("--rounds", 7)?, flags.text("--dir")), (3, None));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Those of this program; only these are taken.
    ///
    /// # Errors
    /// What is not taken, with what is.
    pub fn read(taken: &[&str]) -> Result<Self, String> {
        Self::of(std::env::args().skip(1), taken)
    }

    /// As [`Self::read`], of these arguments. What cargo adds (`--bench`) is skipped.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of(given: impl Iterator<Item = String>, taken: &[&str]) -> Result<Self, String> {
        let (mut given, mut flags) = (given.filter(|a| a != "--bench"), BTreeMap::new());
        while let Some(flag) = given.next() {
            if !taken.contains(&flag.as_str()) {
                return Err(format!("{flag}: taken are {}", taken.join(", ")));
            }
            let value = given.next().ok_or_else(|| format!("{flag} takes a value"))?;
            flags.insert(flag, value);
        }
        Ok(Self(flags))
    }

    /// What is said after a flag.
    pub fn text(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).map(String::as_str)
    }

    /// The file or directory after a flag.
    pub fn path(&self, flag: &str) -> Option<PathBuf> {
        self.text(flag).map(PathBuf::from)
    }

    /// The number after a flag, or this one.
    ///
    /// # Errors
    /// If it is none.
    pub fn number<N: FromStr<Err: Display>>(&self, flag: &str, or: N) -> Result<N, String> {
        self.text(flag).map_or(Ok(or), |text| text.parse().map_err(|e| format!("{flag} {text}: {e}")))
    }
}
