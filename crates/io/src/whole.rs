//! Whole transfers out of the kernel's partial ones, over memory that is not a slice.

use std::io::{Error, ErrorKind, Result};
use std::marker::PhantomData;
use std::ptr::NonNull;

use kvstrata_mem::{ReadBuf, Region, RegionKind, WriteBuf};

/// Where a direct transfer that came back short may go on: at a multiple of this. No device has larger logical blocks,
/// and buffers are handed out in units of it.
const RESUME: usize = 4096;

/// Memory that a read may fill: `len` bytes that nobody else touches for `'a`.
pub(crate) struct Fill<'a> {
    ptr: NonNull<u8>,
    len: usize,
    of: PhantomData<&'a mut [u8]>,
}

impl<'a> Fill<'a> {
    pub(crate) fn slice(to: &'a mut [u8]) -> Self {
        Self { ptr: NonNull::from(&mut *to).cast(), len: to.len(), of: PhantomData }
    }

    /// The first `len` bytes set aside for `buf`, which may be more than its length.
    pub(crate) fn buf(buf: &'a mut WriteBuf, len: usize) -> Result<Self> {
        check(buf.region().as_ref(), len, buf.capacity())?;
        Ok(Self { ptr: buf.as_ptr(), len, of: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The byte at `at`, for the kernel; `len() - at` bytes may be written there.
    pub(crate) fn at(&mut self, at: usize) -> NonNull<u8> {
        assert!(at <= self.len, "byte {at} of {}", self.len);
        // SAFETY: inside the memory, or one past its end.
        unsafe { self.ptr.add(at) }
    }

    /// Copies `from` to `at`.
    pub(crate) fn put(&mut self, at: usize, from: &[u8]) {
        assert!(from.len() <= self.len - at, "{} bytes at {at} of {}", from.len(), self.len);
        let to = self.at(at).as_ptr();
        // SAFETY: the range was checked, the memory is ours alone, and `from` is a borrow of something else.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }
}

/// Memory that a write may read: `len` bytes that stay mapped for `'a`. Another process may change shared memory
/// meanwhile, so it is only ever copied.
pub(crate) struct Spill<'a> {
    ptr: NonNull<u8>,
    len: usize,
    of: PhantomData<&'a [u8]>,
}

impl<'a> Spill<'a> {
    pub(crate) fn slice(from: &'a [u8]) -> Self {
        Self { ptr: NonNull::from(from).cast(), len: from.len(), of: PhantomData }
    }

    /// The first `len` bytes set aside for `buf`, which may be more than its length.
    pub(crate) fn buf(buf: &'a ReadBuf, len: usize) -> Result<Self> {
        check(buf.region().as_ref(), len, buf.capacity())?;
        Ok(Self { ptr: buf.as_ptr(), len, of: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The byte at `at`, for the kernel; `len() - at` bytes may be read there.
    pub(crate) fn at(&self, at: usize) -> NonNull<u8> {
        assert!(at <= self.len, "byte {at} of {}", self.len);
        // SAFETY: inside the memory, or one past its end.
        unsafe { self.ptr.add(at) }
    }

    /// Copies the bytes from `at` on.
    pub(crate) fn get(&self, at: usize, to: &mut [u8]) {
        assert!(to.len() <= self.len - at, "{} bytes at {at} of {}", to.len(), self.len);
        let from = self.at(at).as_ptr();
        // SAFETY: the range was checked, and `to` is a unique borrow of something else.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, to.len()) }
    }
}

fn check(region: &dyn Region, len: usize, capacity: usize) -> Result<()> {
    if len > capacity {
        let why = format!("{len} bytes asked of a buffer with {capacity} set aside");
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    if region.kind() == RegionKind::Device {
        return Err(Error::new(ErrorKind::Unsupported, "a file call cannot reach device memory"));
    }
    Ok(())
}

/// Repeats `raw(memory, at)`, a partial read to the memory from `at` on, until all is there or the file ends. Says how
/// many bytes there were.
pub(crate) fn read(
    to: &mut Fill<'_>,
    direct: bool,
    mut raw: impl FnMut(&mut Fill<'_>, usize) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    while done < to.len() {
        let at = resume(done, direct);
        match raw(to, at) {
            // A direct read cannot go on in the middle of a block: the block is read again, and if that brings nothing
            // new, the file ends there.
            Ok(n) if at + n > done => done = at + n,
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// As [`read`], but less than everything is `UnexpectedEof`.
pub(crate) fn read_exact(
    to: &mut Fill<'_>,
    direct: bool,
    raw: impl FnMut(&mut Fill<'_>, usize) -> Result<usize>,
) -> Result<()> {
    match read(to, direct, raw)? {
        n if n == to.len() => Ok(()),
        n => Err(Error::new(
            ErrorKind::UnexpectedEof,
            format!("the file ends after {n} of {} bytes", to.len()),
        )),
    }
}

/// Repeats `raw(memory, at)`, a partial write of the memory from `at` on, until all is written.
pub(crate) fn write(
    from: &Spill<'_>,
    direct: bool,
    mut raw: impl FnMut(&Spill<'_>, usize) -> Result<usize>,
) -> Result<()> {
    let mut done = 0;
    while done < from.len() {
        let at = resume(done, direct);
        match raw(from, at) {
            Ok(n) if at + n > done => done = at + n,
            Ok(_) => {
                let why = format!("the file took {done} of {} bytes and no more", from.len());
                return Err(Error::new(ErrorKind::WriteZero, why));
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Where a transfer goes on of which so many bytes are done.
pub(crate) fn resume(done: usize, direct: bool) -> usize {
    if direct { done - done % RESUME } else { done }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `len` bytes that hands out at most `step` at a time and is interrupted before each.
    fn file(len: usize, step: usize) -> impl FnMut(&mut Fill<'_>, usize) -> Result<usize> {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut interrupt = false;
        move |to, at| {
            interrupt = !interrupt;
            if interrupt {
                return Err(ErrorKind::Interrupted.into());
            }
            let n = step.min(len.saturating_sub(at)).min(to.len() - at);
            to.put(at, &bytes[at.min(len)..at.min(len) + n]);
            Ok(n)
        }
    }

    #[test]
    fn short_and_interrupted_reads_are_made_whole() {
        for (len, step, direct) in
            [(100, 7, false), (20_000, 5_000, true), (20_000, 4_096, true), (0, 1, true)]
        {
            let mut to = vec![0xAA; 24_576];
            let n = read(&mut Fill::slice(&mut to), direct, file(len, step)).unwrap();
            assert_eq!(n, len, "step {step}, direct {direct}");
            assert!(to[..len].iter().enumerate().all(|(i, b)| *b == i as u8));
            assert!(to[len..].iter().all(|b| *b == 0xAA));
        }
    }

    #[test]
    fn direct_transfers_go_on_at_block_boundaries_only() {
        let mut seen = Vec::new();
        let from = vec![7; 20_000];
        write(&Spill::slice(&from), true, |from, at| {
            seen.push(at);
            Ok((from.len() - at).min(5_000))
        })
        .unwrap();
        assert!(seen.iter().all(|at| at % RESUME == 0), "{seen:?}");
    }

    #[test]
    fn a_file_that_takes_nothing_ends_the_write() {
        let e = write(&Spill::slice(&[1, 2, 3]), false, |_, at| Ok(usize::from(at == 0))).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::WriteZero);
    }

    #[test]
    fn the_end_of_the_file_is_an_error_of_an_exact_read_only() {
        let mut to = [0; 10];
        let e = read_exact(&mut Fill::slice(&mut to), false, file(9, 4)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::UnexpectedEof);
        read_exact(&mut Fill::slice(&mut to), false, file(10, 4)).unwrap();
    }
}
