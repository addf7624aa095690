//! Changed bytes.

use kvstrata_core::Result;
use kvstrata_mem::{Allocate, HeapRegion, ReadBuf, Slab, UNIT, WriteBuf};

/// What lies on a medium that was cut there.
const SECTOR: usize = 512;

/// What a buffer holds behind the end of a short read.
const STALE: u8 = 0xa5;

/// A copy in memory of its own with `change` made to it; `None` if that changes nothing.
pub(crate) fn changed(buf: &ReadBuf, change: impl FnOnce(&mut [u8])) -> Result<Option<ReadBuf>> {
    let len = buf.len();
    let slab = Slab::new(vec![HeapRegion::new(len.max(1).next_multiple_of(UNIT))?])?;
    let mut copy = slab.pool("fault", u64::MAX).reserve(len, UNIT)?;
    let mut before = Vec::with_capacity(len);
    buf.visit(|piece| before.extend_from_slice(piece))?;
    let mut after = before.clone();
    change(&mut after);
    if after == before {
        return Ok(None);
    }
    copy.write_at(0, &after)?;
    Ok(Some(copy.seal(len)))
}

/// The first bytes of a buffer as a buffer of its own.
pub(crate) fn shortened(buf: &ReadBuf, len: usize) -> Result<ReadBuf> {
    let slab = Slab::new(vec![HeapRegion::new(len.max(1).next_multiple_of(UNIT))?])?;
    let mut copy = slab.pool("fault", u64::MAX).reserve(len, UNIT)?;
    let mut at = 0;
    let mut out = Ok(());
    buf.visit(|piece| {
        let n = piece.len().min(len - at);
        if out.is_ok() {
            out = copy.write_at(at, &piece[..n]);
        }
        at += n;
    })?;
    out?;
    Ok(copy.seal(len))
}

/// Where a write is torn: at a sector, if there is one inside.
pub(crate) fn tear(len: usize, roll: u64) -> usize {
    let sectors = len.saturating_sub(1) / SECTOR;
    if sectors == 0 { cut(len, roll) } else { (roll % sectors as u64 + 1) as usize * SECTOR }
}

/// Where an object is cut off: anywhere before its end.
pub(crate) fn cut(len: usize, roll: u64) -> usize {
    (roll % len.max(1) as u64) as usize
}

/// Flips one bit.
pub(crate) fn flip(bytes: &mut [u8], roll: u64) {
    if let Some(at) = roll.checked_rem(bytes.len() as u64) {
        bytes[at as usize] ^= 1 << ((roll >> 61) & 7);
    }
}

/// Flips one bit of a buffer that was loaded.
pub(crate) fn flip_loaded(buf: &mut WriteBuf, roll: u64) -> Result<()> {
    let Some(at) = roll.checked_rem(buf.len() as u64) else { return Ok(()) };
    let mut byte = [0];
    buf.read_at(at as usize, &mut byte)?;
    flip(&mut byte, roll >> 61 << 61);
    buf.write_at(at as usize, &byte)
}

/// Makes what lies behind `from` something that was never loaded.
pub(crate) fn cut_loaded(buf: &mut WriteBuf, from: usize) -> Result<()> {
    let piece = [STALE; 4096];
    for at in (from..buf.len()).step_by(piece.len()) {
        let n = piece.len().min(buf.len() - at);
        buf.write_at(at, &piece[..n])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize) -> WriteBuf {
        let slab = Slab::new(vec![HeapRegion::new(1 << 16).unwrap()]).unwrap();
        let mut buf = slab.pool("test", 1 << 16).reserve(len, UNIT).unwrap();
        buf.write_at(0, &vec![7; len]).unwrap();
        buf
    }

    #[test]
    fn copies_differ_in_what_was_changed_and_in_nothing_else() {
        let buf = filled(5000).seal(5000);
        for roll in [0, 4999, 5000, u64::MAX, 0x1234_5678_9abc_def0] {
            let bad = changed(&buf, |b| flip(b, roll)).unwrap().unwrap();
            let bits: u32 = bad.as_slice().unwrap().iter().map(|b| (b ^ 7).count_ones()).sum();
            assert_eq!((bad.len(), bits), (5000, 1));
            let mut loaded = filled(5000);
            flip_loaded(&mut loaded, roll).unwrap();
            assert_eq!(loaded.seal(5000).as_slice(), bad.as_slice(), "both ways flip the same bit");
            let at = tear(5000, roll);
            assert!(at.is_multiple_of(512) && (512..5000).contains(&at));
            assert!(tear(100, roll) < 100 && cut(1, roll) == 0);
        }
        assert!(changed(&buf, |_| {}).unwrap().is_none());
        assert_eq!(shortened(&buf, 4097).unwrap().as_slice().unwrap(), [7; 4097]);
        let mut short = filled(9000);
        cut_loaded(&mut short, 10).unwrap();
        let short = short.seal(9000);
        let (kept, rest) = short.as_slice().unwrap().split_at(10);
        assert!(kept == [7; 10] && rest.iter().all(|b| *b == STALE));
    }
}
