//! The bytes of a simulated file: sparse, and cheap to copy.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit in which space is taken.
pub(super) const BLOCK: usize = 4096;

/// A file's content. Blocks are shared between copies until one of them writes; what was never written is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Bytes {
    len: u64,
    /// Bytes at and beyond `len` are zero in every block.
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
    /// Blocks set aside from the start of the file.
    reserved: u64,
}

/// The pieces of `len` bytes from `offset` on by block: block, where in it, how many bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let inside = (at % BLOCK as u64) as usize;
        let n = (end - at).min((BLOCK - inside) as u64) as usize;
        let block = at / BLOCK as u64;
        at += n as u64;
        (n > 0).then_some((block, inside, n))
    })
}

impl Bytes {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Blocks that the file takes.
    pub(super) fn taken(&self) -> u64 {
        self.reserved + self.blocks.range(self.reserved..).count() as u64
    }

    /// How many of these bytes can be written if only `free` more blocks can be taken.
    pub(super) fn fits(&self, offset: u64, len: usize, mut free: u64) -> usize {
        let mut fits = 0;
        for (block, _, n) in pieces(offset, len) {
            if block >= self.reserved && !self.blocks.contains_key(&block) {
                match free.checked_sub(1) {
                    Some(left) => free = left,
                    None => break,
                }
            }
            fits += n;
        }
        fits
    }

    /// Shows up to `len` bytes from `offset` on, piece by piece with their place; how many there were.
    pub(super) fn read(&self, offset: u64, len: usize, mut show: impl FnMut(usize, &[u8])) -> usize {
        let len = (self.len.saturating_sub(offset)).min(len as u64) as usize;
        let mut done = 0;
        for (block, inside, n) in pieces(offset, len) {
            match self.blocks.get(&block) {
                Some(b) => show(done, &b[inside..inside + n]),
                None => show(done, &[0; BLOCK][..n]),
            }
            done += n;
        }
        len
    }

    pub(super) fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        for (block, inside, n) in pieces(offset, bytes.len()) {
            let (now, later) = bytes.split_at(n);
            let block = self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[inside..inside + n].copy_from_slice(now);
            bytes = later;
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            // Space set aside beyond the new end is given back too, as a truncation does.
            self.reserved = self.reserved.min(len.div_ceil(BLOCK as u64));
            self.blocks.split_off(&len.div_ceil(BLOCK as u64));
            if let Some(last) = self.blocks.get_mut(&(len / BLOCK as u64)) {
                Arc::make_mut(last)[(len % BLOCK as u64) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    /// Makes the file at least this long, with zeros.
    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Sets blocks aside for the first `len` bytes.
    pub(super) fn reserve(&mut self, len: u64) {
        self.reserved = self.reserved.max(len.div_ceil(BLOCK as u64));
    }

    /// Blocks that [`Self::reserve`] would take.
    pub(super) fn missing(&self, len: u64) -> u64 {
        let to = len.div_ceil(BLOCK as u64).max(self.reserved);
        to - self.reserved - self.blocks.range(self.reserved..to).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(b: &Bytes) -> Vec<u8> {
        let mut out = vec![0xAA; b.len() as usize];
        b.read(0, out.len(), |at, p| out[at..at + p.len()].copy_from_slice(p));
        out
    }

    #[test]
    fn holes_are_zero_and_take_no_space() {
        let mut b = Bytes::default();
        b.write(3 * BLOCK as u64 - 1, &[1, 2]);
        assert_eq!((b.len(), b.taken()), (3 * BLOCK as u64 + 1, 2));
        let bytes = all(&b);
        assert!(bytes[..3 * BLOCK - 1].iter().all(|b| *b == 0));
        assert_eq!(bytes[3 * BLOCK - 1..], [1, 2]);
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let mut b = Bytes::default();
        b.write(0, &[9; 10_000]);
        let copy = b.clone();
        b.set_len(5_000);
        b.set_len(10_000);
        assert_eq!(all(&b)[..5_000], [9; 5_000]);
        assert_eq!(all(&b)[5_000..], [0; 5_000]);
        assert_eq!(b.taken(), 2);
        assert_eq!(all(&copy), [9; 10_000], "copies are independent");
    }

    #[test]
    fn space_is_counted_once() {
        let mut b = Bytes::default();
        b.write(BLOCK as u64, &[1]);
        assert_eq!(b.missing(3 * BLOCK as u64), 2);
        b.reserve(3 * BLOCK as u64);
        assert_eq!(b.taken(), 3);
        assert_eq!(b.fits(0, 5 * BLOCK, 1), 4 * BLOCK);
        assert_eq!(b.fits(0, 5 * BLOCK, 0), 3 * BLOCK);
        b.write(0, &[1; 3 * BLOCK]);
        assert_eq!((b.taken(), b.missing(3 * BLOCK as u64)), (3, 0));
    }
}
