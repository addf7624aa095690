//! What a crash may leave behind.

use std::collections::{HashMap, HashSet};
use std::iter::FusedIterator;

use super::rng::Rng;
use super::tree::{Change, Fate, Ino, Tree, units};
use super::{SimDisk, SimMode, SimOptions};

/// Which crash images are made. All of them would be too many: after `n` changes that were not synced there are more
/// than 2^n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashOptions {
    /// The unit in bytes that a device writes whole: 512 or 4096, usually.
    pub unit: u32,
    /// Every subset of this many changes is tried: the latest that are not synced, together with all and with none of
    /// the earlier ones. Each of them that is a write is also torn in several ways. At most 16.
    pub window: u32,
    /// This many further images at each moment, with chance deciding about every change that is not synced.
    pub samples: u32,
    /// Decides the chance.
    pub seed: u64,
}

impl Default for CrashOptions {
    fn default() -> Self {
        Self { unit: 4096, window: 3, samples: 4, seed: 0 }
    }
}

/// A disk as a crash may leave it.
#[derive(Debug)]
pub struct CrashImage {
    /// The disk, as it is found at the next start: no file is open, nothing is locked, and there are no faults.
    pub disk: SimDisk,
    /// The crash came after so many changes and syncs.
    pub after: usize,
    /// What became of those that were not synced, in words.
    pub story: String,
}

/// The images, moment by moment from the first recorded change to the last. Each is made when it is asked for.
#[derive(Debug)]
pub struct CrashImages {
    log: Vec<Change>,
    /// By change, the number of changes at which it was synced.
    synced: Vec<usize>,
    /// All changes before this one are durable at the moment in hand, and are in the tree.
    folded: usize,
    base: Tree,
    /// The changes before the first recorded one: times go on, also in an image.
    before: u64,
    after: usize,
    fates: std::vec::IntoIter<Fates>,
    options: CrashOptions,
    disk: SimOptions,
}

/// The fates of the changes that are not synced, by their place in the log.
type Fates = Vec<(usize, Fate)>;

impl CrashImages {
    pub(super) fn new(
        (base, before): (Tree, u64),
        log: Vec<Change>,
        options: CrashOptions,
        disk: SimOptions,
    ) -> Self {
        let synced = synced(&log);
        let disk = SimOptions { mode: SimMode::Inline, ..disk };
        let mut images = Self {
            log,
            synced,
            folded: 0,
            base,
            before,
            after: 0,
            fates: Vec::new().into_iter(),
            options,
            disk,
        };
        images.enter(0);
        images
    }

    /// The image that keeps all changes, or none that is not synced, or those that a seed picks.
    pub(super) fn now(mut self, crash: Crash) -> SimDisk {
        self.enter(self.log.len());
        let open = self.open();
        let fates = match crash {
            Crash::Keep => open.iter().map(|i| (*i, Fate::Kept)).collect(),
            Crash::Lose => open.iter().map(|i| (*i, Fate::Lost)).collect(),
            Crash::Chance(seed) => self.chance(&open, &mut Rng::new(seed)),
        };
        self.image(self.closed(fates)).disk
    }

    /// The changes that are not durable at the moment in hand.
    fn open(&self) -> Vec<usize> {
        let after = self.after;
        let sync = |i: usize| matches!(self.log[i], Change::Sync { .. });
        (self.folded..after).filter(|i| self.synced[*i] > after && !sync(*i)).collect()
    }

    /// Goes to a moment: takes what is durable by now into the tree, and plans the images.
    fn enter(&mut self, after: usize) {
        self.after = after;
        while self.folded < after && self.synced[self.folded] <= after {
            let i = self.folded;
            self.base.apply(&self.log[i], self.before + i as u64 + 1, &Fate::Kept, 1);
            self.folded += 1;
        }
        let open = self.open();
        let whole = |kept: &dyn Fn(usize) -> bool| -> Fates {
            open.iter()
                .enumerate()
                .map(|(n, i)| (*i, if kept(n) { Fate::Kept } else { Fate::Lost }))
                .collect()
        };
        let late = open.len().saturating_sub(self.options.window.min(16) as usize);
        let mut plans = Vec::new();
        for subset in 0..1u64 << (open.len() - late) {
            let kept = |n: usize| subset >> (n - late) & 1 == 1;
            plans.push(whole(&|n| n < late || kept(n)));
            plans.push(whole(&|n| n >= late && kept(n)));
        }
        for n in late..open.len() {
            for fate in self.tears(open[n]) {
                let mut torn = whole(&|_| true);
                torn[n].1 = fate;
                plans.push(torn);
            }
        }
        let mut rng = Rng::new(self.options.seed ^ (after as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93));
        if !open.is_empty() {
            for _ in 0..self.options.samples {
                plans.push(self.chance(&open, &mut rng));
            }
        }
        let mut seen = HashSet::new();
        let plans = plans.into_iter().map(|p| self.closed(p)).filter(|p| seen.insert(p.clone()));
        self.fates = plans.collect::<Vec<_>>().into_iter();
    }

    /// The ways to tear a write.
    fn tears(&self, change: usize) -> Vec<Fate> {
        let Change::Write { offset, bytes, .. } = &self.log[change] else { return Vec::new() };
        let units = units(*offset, bytes.len(), self.options.unit.into());
        let mut tears = vec![Fate::Length];
        if units > 1 {
            tears.extend([Fate::Head(1), Fate::Head(units - 1), Fate::Tail(1), Fate::Tail(units - 1)]);
        }
        if units > 3 {
            tears.extend([Fate::Head(units / 2), Fate::Some(change as u64)]);
        }
        tears
    }

    fn chance(&self, open: &[usize], rng: &mut Rng) -> Fates {
        let mut fate = |i: usize| match (rng.below(4), &self.log[i]) {
            (0, _) => Fate::Lost,
            (1, Change::Write { .. }) => Fate::Some(rng.next()),
            _ => Fate::Kept,
        };
        open.iter().map(|i| (*i, fate(*i))).collect()
    }

    /// Adds what must have been kept too. File systems change names in transactions that keep their order: a change is
    /// never there without the earlier ones to the same name or the same file, and a directory is not removed or moved
    /// without all earlier changes to names. Otherwise images would lose files that nobody touched.
    fn closed(&self, mut fates: Fates) -> Fates {
        let (mut slots, mut inos, mut all) = (HashSet::new(), HashSet::new(), false);
        let mut open = fates.iter_mut().rev().peekable();
        for i in (self.folded..self.after).rev() {
            let fate = open.next_if(|(at, _)| *at == i).map(|(_, fate)| fate);
            let (ino, touched, pulls) = match &self.log[i] {
                Change::Create { at, ino, .. } => (ino, [Some(at), None], false),
                Change::Remove { at, ino, dir } => (ino, [Some(at), None], *dir),
                Change::Rename { from, to, ino, dir } => (ino, [Some(from), Some(to)], *dir),
                _ => continue,
            };
            let pulled = all || inos.contains(ino) || touched.iter().flatten().any(|s| slots.contains(s));
            let kept = match fate {
                None => true,
                Some(fate) if pulled => {
                    *fate = Fate::Kept;
                    true
                }
                Some(fate) => *fate == Fate::Kept,
            };
            if kept {
                slots.extend(touched.into_iter().flatten());
                inos.insert(ino);
                all |= pulls;
            }
        }
        fates
    }

    fn image(&self, fates: Fates) -> CrashImage {
        let mut tree = self.base.clone();
        let unit = self.options.unit.into();
        let mut open = fates.iter().peekable();
        let mut story = String::new();
        for i in self.folded..self.after {
            let fate = open.next_if(|(at, _)| *at == i).map_or(&Fate::Kept, |(_, fate)| fate);
            tree.apply(&self.log[i], self.before + i as u64 + 1, fate, unit);
            if *fate != Fate::Kept {
                tell(&mut story, i, &self.log[i], fate);
            }
        }
        tree.sweep();
        let story = if story.is_empty() { "nothing is lost".into() } else { story };
        CrashImage { disk: SimDisk::over(tree, self.disk.clone()), after: self.after, story }
    }
}

impl Iterator for CrashImages {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        loop {
            if let Some(fates) = self.fates.next() {
                return Some(self.image(fates));
            }
            if self.after == self.log.len() {
                return None;
            }
            self.enter(self.after + 1);
        }
    }
}

impl FusedIterator for CrashImages {}

/// What a crash now leaves of the changes that are not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// All of them: the process died, the machine did not.
    Keep,
    /// None of them.
    Lose,
    /// What this seed picks, writes torn.
    Chance(u64),
}

/// By change, at how many changes a sync covers it. A rename is one transaction: a sync of either directory covers it.
fn synced(log: &[Change]) -> Vec<usize> {
    let mut next: HashMap<Ino, usize> = HashMap::new();
    let mut synced = vec![usize::MAX; log.len()];
    for (i, change) in log.iter().enumerate().rev() {
        let at = |ino: &Ino| next.get(ino).copied().unwrap_or(usize::MAX);
        synced[i] = match change {
            Change::Sync { ino } => {
                next.insert(*ino, i + 1);
                i + 1
            }
            Change::Create { at: slot, .. } | Change::Remove { at: slot, .. } => at(&slot.dir),
            Change::Rename { from, to, .. } => at(&from.dir).min(at(&to.dir)),
            Change::Write { ino, .. } | Change::SetLen { ino, .. } | Change::Reserve { ino, .. } => at(ino),
        };
    }
    synced
}

fn tell(story: &mut String, i: usize, change: &Change, fate: &Fate) {
    use std::fmt::Write;
    let what = match change {
        Change::Create { at, ino, .. } => format!("the creation of {:?} ({ino})", at.name),
        Change::Rename { from, to, ino, .. } => {
            format!("the renaming of {:?} to {:?} ({ino})", from.name, to.name)
        }
        Change::Remove { at, ino, .. } => format!("the removal of {:?} ({ino})", at.name),
        Change::Write { ino, offset, bytes } => {
            format!("the write of {} bytes at {offset} of {ino}", bytes.len())
        }
        Change::SetLen { ino, len } => format!("the length {len} of {ino}"),
        Change::Reserve { ino, .. } => format!("the allocation of {ino}"),
        Change::Sync { ino } => format!("the sync of {ino}"),
    };
    let how = match fate {
        Fate::Kept | Fate::Lost => "is lost".to_owned(),
        Fate::Length => "left its length only".to_owned(),
        Fate::Head(n) => format!("left its first {n} units"),
        Fate::Tail(n) => format!("left all but its first {n} units"),
        Fate::Some(seed) => format!("left the units that {seed} picks"),
    };
    write!(story, "{}#{i}, {what}, {how}", if story.is_empty() { "" } else { "; " })
        .expect("strings take all");
}
