//! Which resident follows which.

use crate::Slot;

const NONE: u32 = u32::MAX;
/// Children looked at before a resident counts as one without any that may go.
const LOOKS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// The slot before it and which of its tenants: a slot that was given to another is not its parent any more.
    parent: u32,
    parent_life: u32,
    /// How many tenants the slot had.
    life: u32,
    /// Its children, least recently used first.
    first: u32,
    last: u32,
    /// Its place among its parent's children.
    next: u32,
    prev: u32,
    /// The last walk that came here.
    walk: u32,
}

const FREE: Link =
    Link { parent: NONE, parent_life: 0, life: 0, first: NONE, last: NONE, next: NONE, prev: NONE, walk: 0 };

/// The tree of prefixes, by slot, and a walk that visits a subtree from its leaves.
///
/// A parent may be named before it is resident, since batches come last chunk first.
#[derive(Debug, Default)]
pub(super) struct Chains {
    links: Vec<Link>,
    walk: u32,
    /// Where the walk stands: from its root down, each with the next child to look at.
    path: Vec<(u32, u32)>,
}

impl Chains {
    fn link(&mut self, slot: u32) -> &mut Link {
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, FREE);
        }
        &mut self.links[index]
    }

    /// A slot has a new tenant, which follows `parent`. Children may have come before it.
    pub(super) fn insert(&mut self, slot: Slot, parent: Option<Slot>) {
        let parent = parent.filter(|parent| *parent != slot).map_or(NONE, |parent| parent.0);
        let parent_life = if parent == NONE { 0 } else { self.link(parent).life };
        let link = self.link(slot.0);
        (link.parent, link.parent_life) = (parent, parent_life);
        self.append(slot.0);
    }

    /// The tenant is gone. Its children have no parent from now on.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.unlink(slot.0);
        let link = self.link(slot.0);
        *link = Link { life: link.life.wrapping_add(1), ..FREE };
    }

    /// It is the most recently used child of its parent.
    pub(super) fn touch(&mut self, slot: Slot) {
        self.unlink(slot.0);
        self.append(slot.0);
    }

    /// The parent, if it is the one that was named.
    fn parent(&mut self, slot: u32) -> Option<u32> {
        let Link { parent, parent_life, .. } = *self.link(slot);
        (parent != NONE && self.link(parent).life == parent_life).then_some(parent)
    }

    fn append(&mut self, slot: u32) {
        let Some(parent) = self.parent(slot) else { return };
        let last = std::mem::replace(&mut self.link(parent).last, slot);
        let link = self.link(slot);
        (link.prev, link.next) = (last, NONE);
        match last {
            NONE => self.link(parent).first = slot,
            _ => self.link(last).next = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(parent) = self.parent(slot) else { return };
        let Link { prev, next, .. } = *self.link(slot);
        match prev {
            NONE => self.link(parent).first = next,
            _ => self.link(prev).next = next,
        }
        match next {
            NONE => self.link(parent).last = prev,
            _ => self.link(next).prev = prev,
        }
    }

    /// Starts a series of walks: what was visited before may be visited again.
    pub(super) fn begin(&mut self) {
        self.walk = self.walk.wrapping_add(1);
        self.path.clear();
    }

    /// Whether a walk of this series came here.
    pub(super) fn visited(&self, slot: Slot) -> bool {
        self.links[slot.index()].walk == self.walk
    }

    /// Walks from `root`, which was not visited, in the subtree that `may_go`.
    pub(super) fn walk_from(&mut self, root: Slot) {
        self.enter(root.0);
    }

    /// The next slot of the walk: one without children that may go and were not visited. The root comes last.
    pub(super) fn next(&mut self, may_go: impl Fn(Slot) -> bool) -> Option<Slot> {
        while let Some((_, child)) = self.path.last_mut() {
            let mut looks = LOOKS;
            let mut found = NONE;
            while *child != NONE && looks > 0 {
                let link = self.links[*child as usize];
                if link.walk != self.walk && may_go(Slot(*child)) {
                    found = *child;
                }
                *child = link.next;
                looks -= 1;
                if found != NONE {
                    break;
                }
            }
            if found == NONE {
                break;
            }
            self.enter(found);
        }
        self.path.pop().map(|(slot, _)| Slot(slot))
    }

    fn enter(&mut self, slot: u32) {
        let walk = self.walk;
        let link = self.link(slot);
        link.walk = walk;
        let first = link.first;
        self.path.push((slot, first));
    }

    pub(super) fn memory(&self) -> usize {
        self.links.capacity() * size_of::<Link>() + self.path.capacity() * size_of::<(u32, u32)>()
    }
}
