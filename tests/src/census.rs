//! What a process holds of the system's, to be compared with what it held before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a process holds of the system's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Census {
    /// What the descriptors are of, and how many of each.
    pub descriptors: BTreeMap<String, usize>,
    /// Threads.
    pub threads: usize,
    /// Mappings of files and shared memory.
    pub named: BTreeMap<String, usize>,
    /// Bytes of all other mappings but the heap: the kernel joins and splits those as it likes, so their number says little.
    pub anonymous: u64,
}

impl Census {
    /// Of this process (`self`), or of the one with this number.
    ///
    /// # Panics
    /// If there is no such process, or it is another user's.
    pub fn take(process: &str) -> Self {
        let mut census =
            Self { descriptors: BTreeMap::new(), threads: 0, named: BTreeMap::new(), anonymous: 0 };
        let of = |what: &str| format!("/proc/{process}/{what}");
        for entry in std::fs::read_dir(of("fd")).expect("descriptors") {
            // The one of this listing is gone by the time that it is looked at, or is among all of them alike.
            let Ok(target) = std::fs::read_link(entry.expect("a descriptor").path()) else { continue };
            let what = target.to_string_lossy().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
            *census.descriptors.entry(what).or_default() += 1;
        }
        census.threads = std::fs::read_dir(of("task")).expect("threads").count();
        let maps = std::fs::read_to_string(of("maps")).expect("mappings");
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (from, to) = fields.next().and_then(|range| range.split_once('-')).expect("a range");
            let at = |hex| u64::from_str_radix(hex, 16).expect("an address");
            match fields.nth(4) {
                Some("[heap]" | "[stack]") => {}
                Some(name) if !name.starts_with("[anon") => {
                    *census.named.entry(name.to_owned()).or_default() += 1;
                }
                _ => census.anonymous += at(to) - at(from),
            }
        }
        census
    }

    /// What of descriptors and named mappings is more here than it was before, one line for each kind.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let more = |what: &str, now: &BTreeMap<String, usize>, then: &BTreeMap<String, usize>| {
            let more = now.iter().filter_map(|(name, n)| {
                let had = then.get(name).copied().unwrap_or_default();
                (*n > had).then(|| format!("{what} {name}: {n}, and {had} before"))
            });
            more.collect::<Vec<_>>()
        };
        let descriptors = more("descriptor", &self.descriptors, &before.descriptors);
        [descriptors, more("mapping", &self.named, &before.named)].concat()
    }

    /// Takes it again and again until nothing is beyond what was before, or patience ends.
    pub fn settled(process: &str, before: &Self, patience: Duration) -> Self {
        let until = Instant::now() + patience;
        loop {
            let now = Self::take(process);
            if now.beyond(before).is_empty() || Instant::now() > until {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
