//! Which way bytes go between a GPU and a path: a pure decision from what was found out.

use std::fmt;

use kvstrata_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// A way between GPU memory and a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// cuFile past the host's memory: nvidia-fs or the kernel's peer-to-peer DMA, proved by cuFile's own counters.
    Direct,
    /// Pinned host memory of the adapter's, with copies on streams of its own.
    Bounce,
    /// cuFile's own way through host memory. Only when asked for.
    Compat,
}

impl Way {
    /// The name in settings, logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bounce => "bounce",
            Self::Compat => "compat",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a short run moved, in bytes per second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// From the file to the GPU.
    pub read: f64,
    /// From the GPU to the file.
    pub write: f64,
}

impl Rates {
    /// The time for one byte there and one back: what ways are compared by.
    fn both(self) -> f64 {
        1.0 / self.read + 1.0 / self.write
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {:.2}, write {:.2} GB/s", self.read / 1e9, self.write / 1e9)
    }
}

/// What is known of a path and a GPU when the way is chosen. A reason is a sentence without its full stop.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name of the path's file system.
    pub fs: String,
    /// What cuFile proved by moving bytes without being allowed to go through the host, or why it did not.
    pub direct: Result<String, String>,
    /// What cuFile did when it may go through the host, or why it did not. Looked at only if compat is asked for.
    pub compat: Result<String, String>,
    /// What both ways moved here; `None` if direct is not there to be measured.
    pub measured: Option<Measured>,
}

/// The two ways side by side.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// Past the host.
    pub direct: Rates,
    /// Through the adapter's pinned memory.
    pub bounce: Rates,
}

/// The way of a path and a GPU, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The way.
    pub way: Way,
    /// Why, in words.
    pub why: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.way, self.why)
    }
}

/// What the settings say about ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// This way and no other.
    pub way: Option<Way>,
    /// LMCache's switch: cuFile never (`false`), or also where its file system speaks against it (`true`).
    pub use_gds: Option<bool>,
}

/// The file systems in memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// A file system over others, which cuFile does not see.
const OVERLAY: &str = "overlay";
/// The file system whose clients LMCache gives to cuFile alone.
const WEKA: &str = "wekafs";

/// Whether files of this file system lie in the host's memory.
pub(crate) fn in_memory(fs: &str) -> bool {
    IN_MEMORY.contains(&fs)
}

/// Why there is nothing to ask cuFile about, if that is so: settings or the file system have decided.
pub fn decided(asked: Asked, fs: &str) -> Result<Option<Choice>> {
    const OP: &str = "choose the way of GPU memory";
    let bounce = |why: String| Ok(Some(Choice { way: Way::Bounce, why }));
    if asked.use_gds == Some(false) {
        if fs == WEKA {
            return Err(Error::invalid(
                OP,
                "a wekafs path is used through cuFile, as in LMCache: true is accepted",
            )
            .with("use_gds", false));
        }
        if let Some(way @ (Way::Direct | Way::Compat)) = asked.way {
            return Err(Error::invalid(OP, "this way needs cuFile, which another key switches off")
                .with("gds_way", way)
                .with("use_gds", false));
        }
        return bounce("use_gds is off".into());
    }
    match asked.way {
        Some(Way::Bounce) => bounce("asked for".into()),
        None if asked.use_gds.is_none() && (in_memory(fs) || fs == OVERLAY) => {
            bounce(format!("{fs} has no device that a GPU could reach, and use_gds does not ask for cuFile"))
        }
        _ => Ok(None),
    }
}

/// Chooses, when [`decided`] left it open.
///
/// # Errors
/// `Unavailable` with the reason if a way is asked for that is not there.
pub fn choose(asked: Asked, facts: &Facts) -> Result<Choice> {
    const OP: &str = "choose the way of GPU memory";
    let only = |way: Way, there: &Result<String, String>| match there {
        Ok(proof) => Ok(Choice { way, why: format!("asked for; {proof}") }),
        Err(why) => {
            let message = format!("the way that is asked for is not there: {why}");
            Err(Error::new(ErrorKind::Unavailable, OP, message).with("gds_way", way).with("fs", &facts.fs))
        }
    };
    match asked.way {
        Some(Way::Direct) => return only(Way::Direct, &facts.direct),
        Some(Way::Compat) => return only(Way::Compat, &facts.compat),
        Some(Way::Bounce) => return Ok(Choice { way: Way::Bounce, why: "asked for".into() }),
        None => {}
    }
    let proof = match &facts.direct {
        Ok(proof) => proof,
        Err(why) => {
            return Ok(Choice { way: Way::Bounce, why: format!("cuFile is not proved direct: {why}") });
        }
    };
    if facts.fs == WEKA {
        return Ok(Choice { way: Way::Direct, why: format!("wekafs is used through cuFile; {proof}") });
    }
    Ok(match facts.measured {
        None => Choice { way: Way::Bounce, why: format!("{proof}, but it could not be measured") },
        Some(m) if m.direct.both() <= m.bounce.both() => {
            Choice { way: Way::Direct, why: format!("{proof}; measured {}; bounce {}", m.direct, m.bounce) }
        }
        Some(m) => {
            Choice { way: Way::Bounce, why: format!("measured {}; direct only {}", m.bounce, m.direct) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(direct: Result<&str, &str>, measured: Option<(f64, f64)>) -> Facts {
        let rates = |g: f64| Rates { read: g * 1e9, write: g * 1e9 };
        Facts {
            fs: "ext4".into(),
            direct: direct.map(str::to_owned).map_err(str::to_owned),
            compat: Err("nobody asked".into()),
            measured: measured.map(|(d, b)| Measured { direct: rates(d), bounce: rates(b) }),
        }
    }

    fn auto(facts: &Facts) -> (Way, String) {
        let choice = choose(Asked::default(), facts).unwrap();
        (choice.way, choice.why)
    }

    #[test]
    fn nothing_is_direct_that_was_not_proved_and_nothing_chosen_that_lost() {
        let (way, why) = auto(&facts(Err("no nvidia-fs"), None));
        assert_eq!(way, Way::Bounce);
        assert!(why.contains("no nvidia-fs"), "{why}");
        assert_eq!(auto(&facts(Ok("proved"), None)).0, Way::Bounce, "not measured is not won");
        assert_eq!(auto(&facts(Ok("proved"), Some((12.0, 8.0)))).0, Way::Direct);
        assert_eq!(
            auto(&facts(Ok("proved"), Some((12.0, 12.0)))).0,
            Way::Direct,
            "the CPU is free for others"
        );
        let (way, why) = auto(&facts(Ok("proved"), Some((12.0, 21.0))));
        assert_eq!(way, Way::Bounce);
        assert!(why.contains("21.00") && why.contains("12.00"), "{why}");
    }

    #[test]
    fn a_slow_direction_counts_as_much_as_a_fast_one() {
        let mut f = facts(Ok("proved"), Some((10.0, 10.0)));
        let m = f.measured.as_mut().unwrap();
        (m.direct.read, m.direct.write) = (20e9, 4e9);
        assert_eq!(auto(&f).0, Way::Bounce);
    }

    #[test]
    fn compat_is_never_chosen_by_itself() {
        let mut f = facts(Err("no nvidia-fs"), None);
        f.compat = Ok("it works".into());
        assert_eq!(auto(&f).0, Way::Bounce);
        let asked = Asked { way: Some(Way::Compat), ..Asked::default() };
        assert_eq!(choose(asked, &f).unwrap().way, Way::Compat);
    }

    #[test]
    fn a_way_that_is_asked_for_and_not_there_is_unavailable_with_the_reason() {
        for way in [Way::Direct, Way::Compat] {
            let e = choose(Asked { way: Some(way), ..Asked::default() }, &facts(Err("no nvidia-fs"), None))
                .unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unavailable);
            let why = if way == Way::Direct { "no nvidia-fs" } else { "nobody asked" };
            assert!(e.to_string().contains(why) && e.to_string().contains("gds_way"), "{e}");
        }
    }

    #[test]
    fn file_systems_decide_as_in_lmcache_unless_cufile_is_asked_for() {
        let with = |use_gds| Asked { way: None, use_gds };
        for fs in ["tmpfs", "overlay", "ramfs"] {
            let why = decided(with(None), fs).unwrap().unwrap().why;
            assert!(why.starts_with(fs), "{why}");
            assert_eq!(decided(with(Some(true)), fs).unwrap(), None);
        }
        assert_eq!(decided(with(None), "ext4").unwrap(), None);
        assert_eq!(decided(with(Some(false)), "ext4").unwrap().unwrap().way, Way::Bounce);
        let e = decided(with(Some(false)), "wekafs").unwrap_err();
        assert!(e.to_string().contains("use_gds"), "{e}");
        let mut weka = facts(Ok("proved"), None);
        weka.fs = "wekafs".into();
        assert_eq!(auto(&weka).0, Way::Direct, "without being measured");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for way in [Way::Direct, Way::Compat] {
            let e = decided(Asked { way: Some(way), use_gds: Some(false) }, "ext4").unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
        }
        let both = Asked { way: Some(Way::Bounce), use_gds: Some(true) };
        assert_eq!(decided(both, "tmpfs").unwrap().unwrap().why, "asked for");
    }
}
