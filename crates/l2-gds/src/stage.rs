//! The pinned memory between a GPU and a file.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{Timer, timed_out};
use kvstrata_mem::{Allocate, Pool, Region, Slab, SpaceWatch, UNIT, WriteBuf};
use parking_lot::{Condvar, Mutex};

/// The smallest and the largest piece that a chunk goes through in: small enough that copies and transfers overlap within
/// one chunk, and large enough that a disk is not kept busy by requests instead of bytes.
const PIECE: (usize, usize) = (256 << 10, 1 << 20);
/// Into how many pieces a chunk is cut at least, if they do not get too small.
const PIECES: usize = 4;
/// What a chunk that is read by its own thread goes through in turn: it overlaps one piece's copy with the next one's read,
/// and stays in a processor's cache.
pub(crate) const IN_TURN: usize = 2 << 20;
/// How long a wait for memory lasts before it looks again: a release may come between a look and the wait.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Whose bytes go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum User {
    /// Loads may take all of it.
    Load,
    /// Stores leave a quarter for loads.
    Store,
}

/// The memory, handed out for whole chunks in pieces.
#[derive(Debug)]
pub(crate) struct Stage {
    loads: Arc<Pool>,
    stores: Arc<Pool>,
    freed: Arc<Freed>,
    /// Held while pieces are taken: two chunks that each got half of theirs would wait for ever.
    taking: Mutex<()>,
    timer: Arc<dyn Timer>,
}

#[derive(Debug, Default)]
struct Freed {
    lock: Mutex<()>,
    some: Condvar,
}

impl SpaceWatch for Freed {
    fn freed(&self, _: u64) {
        let _seen = self.lock.lock();
        self.some.notify_all();
    }
}

impl Stage {
    pub(crate) fn new(region: Arc<dyn Region>, timer: Arc<dyn Timer>) -> Result<Self> {
        let bytes = region.len() as u64;
        let slab = Slab::new(vec![region])?;
        let freed = Arc::<Freed>::default();
        let (loads, stores) = (slab.pool("loads", bytes), slab.pool("stores", bytes - bytes / 4));
        loads.watch_space(Arc::clone(&freed) as Arc<dyn SpaceWatch>);
        Ok(Self { loads, stores, freed, taking: Mutex::new(()), timer })
    }

    /// Memory for a chunk of `len` bytes, in pieces in order. Waits until `deadline` for what others give back.
    ///
    /// # Errors
    /// `Invalid` for more than there is, `TimedOut`.
    pub(crate) fn take(&self, user: User, len: usize, deadline: Instant) -> Result<Vec<WriteBuf>> {
        const OP: &str = "take bounce buffers";
        let pool = if user == User::Load { &self.loads } else { &self.stores };
        let most = pool.usage().limit;
        if len.next_multiple_of(UNIT) as u64 > most {
            return Err(Error::invalid(
                OP,
                "the chunk is larger than the bounce buffers; gds_buffer_size makes more",
            )
            .with("bytes", len)
            .with("bounce_bytes", most));
        }
        loop {
            match self.try_take(pool, len) {
                Err(e) if e.kind() == ErrorKind::NoSpace => {}
                taken => return taken,
            }
            let now = self.timer.now();
            if now >= deadline {
                return Err(timed_out(OP, deadline));
            }
            let mut seen = self.freed.lock.lock();
            self.freed.some.wait_for(&mut seen, LOOK_AGAIN.min(deadline.since(now)));
        }
    }

    fn try_take(&self, pool: &Pool, len: usize) -> Result<Vec<WriteBuf>> {
        let pieces = sizes(len);
        let _alone = self.taking.lock();
        pieces.map(|bytes| pool.reserve(bytes, UNIT)).collect()
    }
}

/// The pieces of a chunk, in order.
fn sizes(len: usize) -> impl Iterator<Item = usize> {
    let piece = len.div_ceil(PIECES).next_multiple_of(UNIT).clamp(PIECE.0, PIECE.1);
    (0..len).step_by(piece).map(move |at| piece.min(len - at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_l2::TokioTimer;
    use kvstrata_mem::HeapRegion;

    #[test]
    fn pieces_cover_a_chunk_and_all_but_the_last_are_whole_blocks() {
        for len in [1, 4096, 5000, 65_536, 1 << 20, (1 << 20) + 1, 2_621_440, 16 << 20, (64 << 20) + 4095] {
            let all: Vec<usize> = sizes(len).collect();
            assert_eq!(all.iter().sum::<usize>(), len);
            assert!(all[..all.len() - 1].iter().all(|n| n % UNIT == 0 && *n <= PIECE.1), "{len}: {all:?}");
        }
        assert_eq!(sizes(1 << 20).count(), 4);
        assert_eq!(sizes(100 << 10).count(), 1, "not below the smallest");
    }

    #[test]
    fn stores_leave_room_for_loads_and_who_waits_is_woken_or_times_out() {
        let stage =
            Arc::new(Stage::new(HeapRegion::new(4 << 20).unwrap(), Arc::new(TokioTimer::start())).unwrap());
        let far = stage.timer.now() + Duration::from_secs(60);
        let stores = stage.take(User::Store, 3 << 20, far).unwrap();
        assert_eq!(stage.take(User::Store, 4096, Instant::ZERO).unwrap_err().kind(), ErrorKind::TimedOut);
        let load = stage.take(User::Load, 1 << 20, Instant::ZERO).unwrap();
        let e = stage.take(User::Store, (3 << 20) + 1, far).unwrap_err();
        assert!(e.to_string().contains("gds_buffer_size"), "{e}");
        let waits = {
            let stage = Arc::clone(&stage);
            std::thread::spawn(move || stage.take(User::Load, 2 << 20, far).map(|b| b.len()))
        };
        drop(stores);
        assert_eq!(waits.join().unwrap().unwrap(), 4);
        drop(load);
    }
}
