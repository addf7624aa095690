//! Names and files, and the operations that change them. The same code changes the running disk and makes crash images.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::Arc;

use super::bytes::Bytes;
use super::rng::Rng;
use crate::FileKind;

/// A file's or directory's number; never used again.
pub(super) type Ino = u64;
/// The number of `/`.
pub(super) const ROOT: Ino = 1;

/// A place for a name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Slot {
    pub(super) dir: Ino,
    pub(super) name: OsString,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(Bytes),
    Dir(BTreeMap<OsString, Ino>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    /// The number of the operation that changed it last.
    pub(super) changed: u64,
}

/// A change. Every one is recorded in the order it took effect.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create { at: Slot, ino: Ino, kind: FileKind },
    Rename { from: Slot, to: Slot, ino: Ino, dir: bool },
    Remove { at: Slot, ino: Ino, dir: bool },
    Write { ino: Ino, offset: u64, bytes: Arc<[u8]> },
    SetLen { ino: Ino, len: u64 },
    Reserve { ino: Ino, len: u64 },
    Sync { ino: Ino },
}

/// What a crash leaves of a change.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// Of a write, the new length and no data: it reads as zeros where the file grew.
    Length,
    /// Of a write, the first so many units.
    Head(u64),
    /// Of a write, all but the first so many units.
    Tail(u64),
    /// Of a write, the units that this seed picks.
    Some(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<Ino, Node>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node { body: Body::Dir(BTreeMap::new()), changed: 0 };
        Self { nodes: BTreeMap::from([(ROOT, root)]) }
    }

    pub(super) fn dir(&self, ino: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        match &self.nodes.get(&ino)?.body {
            Body::Dir(entries) => Some(entries),
            Body::File(_) => None,
        }
    }

    pub(super) fn file(&self, ino: Ino) -> Option<&Bytes> {
        match &self.nodes.get(&ino)?.body {
            Body::File(bytes) => Some(bytes),
            Body::Dir(_) => None,
        }
    }

    pub(super) fn get(&self, at: &Slot) -> Option<Ino> {
        self.dir(at.dir)?.get(&at.name).copied()
    }

    fn link(&mut self, at: &Slot, ino: Ino, number: u64) {
        if let Some(Node { body: Body::Dir(entries), changed }) = self.nodes.get_mut(&at.dir) {
            entries.insert(at.name.clone(), ino);
            *changed = number;
        }
    }

    /// Removes a name if it still leads to `ino`: in a crash image the operations between may be lost.
    fn unlink(&mut self, at: &Slot, ino: Ino, number: u64) {
        if let Some(Node { body: Body::Dir(entries), changed }) = self.nodes.get_mut(&at.dir)
            && entries.get(&at.name) == Some(&ino)
        {
            entries.remove(&at.name);
            *changed = number;
        }
    }

    fn bytes(&mut self, ino: Ino, number: u64, f: impl FnOnce(&mut Bytes)) {
        if let Some(Node { body: Body::File(bytes), changed }) = self.nodes.get_mut(&ino) {
            f(bytes);
            *changed = number;
        }
    }

    /// Makes a change, as far as `fate` leaves it; writes are torn in units of `unit` bytes.
    pub(super) fn apply(&mut self, change: &Change, number: u64, fate: &Fate, unit: u64) {
        let kept = *fate == Fate::Kept;
        match change {
            Change::Create { at, ino, kind } => {
                let body = match kind {
                    FileKind::Dir => Body::Dir(BTreeMap::new()),
                    FileKind::File | FileKind::Other => Body::File(Bytes::default()),
                };
                // What was made exists whether or not its name is lost: a later rename may have given it another one.
                self.nodes.insert(*ino, Node { body, changed: number });
                if kept {
                    self.link(at, *ino, number);
                }
            }
            Change::Rename { from, to, ino, .. } if kept => {
                self.unlink(from, *ino, number);
                self.link(to, *ino, number);
            }
            Change::Remove { at, ino, .. } if kept => self.unlink(at, *ino, number),
            Change::SetLen { ino, len } if kept => self.bytes(*ino, number, |b| b.set_len(*len)),
            Change::Reserve { ino, len } if kept => self.bytes(*ino, number, |b| b.reserve(*len)),
            Change::Write { ino, offset, bytes } => {
                self.bytes(*ino, number, |b| write(b, *offset, bytes, fate, unit))
            }
            _ => {}
        }
    }

    /// Forgets what no name leads to.
    pub(super) fn sweep(&mut self) {
        let mut reached = BTreeSet::new();
        let mut next = vec![ROOT];
        while let Some(ino) = next.pop() {
            if reached.insert(ino) {
                next.extend(self.dir(ino).into_iter().flat_map(|d| d.values().copied()));
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }
}

/// Writes what is left of a write.
fn write(to: &mut Bytes, offset: u64, bytes: &[u8], fate: &Fate, unit: u64) {
    let mut rng = Rng::new(match fate {
        Fate::Some(seed) => *seed,
        _ => 0,
    });
    match fate {
        Fate::Kept => return to.write(offset, bytes),
        Fate::Lost => return,
        Fate::Length => return to.grow(offset + bytes.len() as u64),
        Fate::Head(_) | Fate::Tail(_) | Fate::Some(_) => {}
    }
    // Devices write whole units of the file's offsets, wherever the write began.
    let end = offset + bytes.len() as u64;
    let mut at = offset;
    for n in 0.. {
        let until = ((at / unit + 1) * unit).min(end);
        let keep = match fate {
            Fate::Head(units) => n < *units,
            Fate::Tail(units) => n >= *units,
            _ => rng.next().is_multiple_of(2),
        };
        if keep {
            to.write(at, &bytes[(at - offset) as usize..(until - offset) as usize]);
        }
        if until == end {
            return;
        }
        at = until;
    }
}

/// Into how many units a write falls.
pub(super) fn units(offset: u64, len: usize, unit: u64) -> u64 {
    if len == 0 { 0 } else { (offset + len as u64 - 1) / unit - offset / unit + 1 }
}
