//! What is known of an entry when it is used, as one of a few classes.

/// Uses are counted up to this.
pub(super) const MOST_USES: usize = 4;
/// What the segments of entries used once are, and of those used again.
const SEGMENTS: [usize; 2] = [2, 3];
/// Kinds of entries: uses and segment.
pub(super) const KINDS: usize = SEGMENTS[0] + (MOST_USES - 1) * SEGMENTS[1];
/// What the sizes of entries used once are, and of those used again.
const LENGTHS: [usize; 2] = [8, 3];
/// Sizes, of both sorts.
pub(super) const SIZES: usize = LENGTHS[0] + LENGTHS[1];
/// Kinds and sizes of entries used once.
const ONCE: usize = SEGMENTS[0] * LENGTHS[0];
/// Kinds with sizes, for the last chunk of a request and for the others.
pub(super) const CLASSES: usize = 2 * (ONCE + (KINDS - SEGMENTS[0]) * LENGTHS[1]);

/// How a request's chain met what was known before it: how many leading chunks were resident or ghosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) length: u32,
    pub(super) matched: u32,
}

/// The class of an entry that has now been used so many times.
pub(super) fn class(uses: usize, chain: Chain, position: u32) -> usize {
    let Chain { length, matched } = chain;
    let shape = if uses <= 1 {
        // A root that nobody knew, or what follows a known prefix; and how much came with it, by doublings.
        let new = length.saturating_sub(matched).max(1).ilog2() as usize;
        usize::from(matched > 0) * LENGTHS[0] + new.min(LENGTHS[0] - 1)
    } else {
        let segment = if matched.saturating_add(1) >= length {
            0
        } else if matched >= length.div_ceil(2) {
            1
        } else {
            2
        };
        let size = usize::from(length >= 8) + usize::from(length >= 64);
        ONCE + ((uses.min(MOST_USES) - 2) * SEGMENTS[1] + segment) * LENGTHS[1] + size
    };
    // The last chunk comes first: of equals it goes first.
    2 * shape + usize::from(position.saturating_add(1) < length)
}

/// The kind of a class.
pub(super) fn kind(class: usize) -> usize {
    let shape = class / 2;
    if shape < ONCE { shape / LENGTHS[0] } else { SEGMENTS[0] + (shape - ONCE) / LENGTHS[1] }
}

/// How long the chains of a class are, or what is new in them if its entries were used once.
pub(super) fn size(class: usize) -> usize {
    let shape = class / 2;
    if shape < ONCE { shape % LENGTHS[0] } else { LENGTHS[0] + (shape - ONCE) % LENGTHS[1] }
}

/// Whether the class is of chunks with others after them in their request: 0 or 1.
pub(super) fn inner(class: usize) -> usize {
    class % 2
}

/// How many times entries of a kind were used, at least.
pub(super) fn uses(kind: usize) -> usize {
    if kind < SEGMENTS[0] { 1 } else { 2 + (kind - SEGMENTS[0]) / SEGMENTS[1] }
}
