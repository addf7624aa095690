//! The stores of one request into segments, some at a time: digests and room are made, the log written and the engine asked
//! once for a group of objects, and another group follows as soon as one is written. So a request of any size has enough
//! under way while the rest is made ready, and takes header blocks and room from others for what is being written only.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstrata_disk::{Claim, Store};
use kvstrata_io::{Disk, IoEngine};
use kvstrata_l2::closed;
use parking_lot::Mutex;

use crate::batch::Outgoing;
use crate::jobs::Storing;

/// Groups of a request that are on their way at once: the device has the others while one is made ready.
const LANES: usize = 4;
/// An object more than either makes the next group.
const OBJECTS: usize = 128;
const BYTES: usize = 8 << 20;
/// As that for the first one, so that the device has something to do soon.
const FIRST_OBJECTS: usize = 16;
const FIRST_BYTES: usize = 2 << 20;

type Ready<D> = (Claim<D>, Storing<D>);

/// What one request has to write, in its order.
pub(crate) struct Groups<D: Disk> {
    store: Arc<Store<D>>,
    waiting: Mutex<VecDeque<Ready<D>>>,
}

impl<D: Disk> Groups<D> {
    /// Writes the objects, the first group from here if nothing has to be waited for.
    pub(crate) fn begin(store: &Arc<Store<D>>, ready: VecDeque<Ready<D>>) {
        let groups = Arc::new(Self { store: Arc::clone(store), waiting: Mutex::new(ready) });
        groups.at_once();
        (1..LANES).for_each(|_| groups.spawn());
    }

    /// Writes the next group on a thread of the engine's.
    pub(crate) fn spawn(self: &Arc<Self>) {
        if self.waiting.lock().is_empty() {
            return;
        }
        let groups = Arc::clone(self);
        if self.store.disk().engine().spawn(false, Box::new(move || groups.next())).is_err() {
            for (claim, storing) in self.take(usize::MAX, usize::MAX) {
                drop(claim);
                storing.answer(Err(closed("store object")));
            }
        }
    }

    fn take(&self, objects: usize, bytes: usize) -> Vec<Ready<D>> {
        let mut waiting = self.waiting.lock();
        let mut left = bytes;
        let fit = waiting.iter().take(objects).take_while(|(_, storing)| {
            let fits = storing.buf.len() <= left;
            left = left.saturating_sub(storing.buf.len());
            fits
        });
        let n = fit.count().max(1).min(waiting.len());
        waiting.drain(..n).collect()
    }

    fn put_back(&self, group: Vec<Ready<D>>) {
        let mut waiting = self.waiting.lock();
        group.into_iter().rev().for_each(|ready| waiting.push_front(ready));
    }

    fn at_once(self: &Arc<Self>) {
        let mut rest = self.take(FIRST_OBJECTS, FIRST_BYTES).into_iter();
        let (mut together, mut back) = (Outgoing::new(), Vec::new());
        for (claim, storing) in rest.by_ref() {
            let Some((mut claim, storing)) = storing.with_digest(claim) else { continue };
            if !claim.try_reserve() {
                back.push((claim, storing));
                break;
            }
            if let Err(ready) = together.add(claim, storing) {
                back.push(ready);
                break;
            }
        }
        back.extend(rest);
        self.put_back(back);
        if together.is_empty() {
            return self.spawn();
        }
        together.submit(&self.store, Some(Arc::clone(self)));
    }

    /// Makes room for the next group and has it written. Blocks.
    fn next(self: &Arc<Self>) {
        loop {
            // Whoever has given up is not made room for.
            let group = self.take(OBJECTS, BYTES).into_iter();
            let open = group.filter(|(_, storing)| storing.done.is_open(storing.position));
            let mut group: Vec<_> = open.filter_map(|(claim, storing)| storing.with_digest(claim)).collect();
            let mut claims: Vec<_> = group.iter_mut().map(|(claim, _)| claim).collect();
            let reserved = self.store.reserve_all(&mut claims);
            let (mut together, mut back) = (Outgoing::new(), Vec::new());
            for ((claim, storing), reserved) in group.into_iter().zip(reserved) {
                if let Err(e) = reserved {
                    let e = claim.give_up(e);
                    storing.answer(Err(e));
                } else if let Err(ready) = together.add(claim, storing) {
                    back.push(ready);
                }
            }
            if together.is_empty() && !back.is_empty() {
                // Others have all header blocks, or the segment has to be opened.
                let (claim, storing) = back.remove(0);
                storing.run(claim);
            }
            self.put_back(back);
            if !together.is_empty() {
                return together.submit(&self.store, Some(Arc::clone(self)));
            }
            if self.waiting.lock().is_empty() {
                return;
            }
        }
    }
}
