//! What is known of an entry when it is used, as one of a few classes.

/// Uses are counted up to this.
pub(super) const MOST_USES: usize = 4;
/// What the segments of entries used once are, and of those used again.
const SEGMENTS: [usize; 2] = [2, 3];
/// Kinds of entries: uses and segment.
pub(super) const KINDS: usize = SEGMENTS[0] + (MOST_USES - 1) * SEGMENTS[1];
/// Kinds, for the last chunk of a request and for the others.
pub(super) const CLASSES: usize = 2 * KINDS;

/// How a request's chain met what was known before it: how many leading chunks were resident or ghosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) length: u32,
    pub(super) matched: u32,
}

/// The class of an entry that has now been used so many times.
pub(super) fn class(uses: usize, chain: Chain, position: u32) -> usize {
    let Chain { length, matched } = chain;
    let kind = if uses <= 1 {
        // A root that nobody knew, or what follows a known prefix.
        usize::from(matched > 0)
    } else {
        let segment = if matched.saturating_add(1) >= length {
            0
        } else if matched >= length.div_ceil(2) {
            1
        } else {
            2
        };
        SEGMENTS[0] + (uses.min(MOST_USES) - 2) * SEGMENTS[1] + segment
    };
    // The last chunk comes first: of equals it goes first.
    2 * kind + usize::from(position.saturating_add(1) < length)
}

/// The kind of a class.
pub(super) fn kind(class: usize) -> usize {
    class / 2
}

/// Whether the class is of chunks with others after them in their request: 0 or 1.
pub(super) fn inner(class: usize) -> usize {
    class % 2
}

/// How many times entries of a kind were used, at least.
pub(super) fn uses(kind: usize) -> usize {
    if kind < SEGMENTS[0] { 1 } else { 2 + (kind - SEGMENTS[0]) / SEGMENTS[1] }
}
