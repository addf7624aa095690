//! What the mock keeps.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use kvstrata_core::{Digest, Error, ErrorKind, LayoutId, ObjectKey, Result};
use kvstrata_l2::{Found, ListPage, PutSink, StoreUsage, Stored};
use parking_lot::Mutex;

/// How to damage a kept object, for tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Flips the lowest bit of the byte at this offset (taken modulo the length).
    Flip(usize),
    /// Keeps only this many of its bytes.
    Truncate(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) data: Vec<u8>,
    pub(crate) layout: LayoutId,
    /// The length the object was stored with.
    pub(crate) len: usize,
    pub(crate) digest: Option<Digest>,
}

impl Object {
    pub(crate) fn found(&self) -> Found {
        Found { len: self.data.len() as u64, layout: Some(self.layout), digest: self.digest }
    }

    /// Whether a store of this layout and digest has nothing to add.
    fn is(&self, layout: LayoutId, digest: Option<Digest>) -> bool {
        self.layout == layout && self.digest == digest && self.data.len() == self.len
    }
}

/// Keyed by the key's fingerprint, which is also the order of listings.
type Map = BTreeMap<[u8; 32], (ObjectKey, Arc<Object>)>;

#[derive(Debug, Default)]
struct State {
    map: Map,
    used: u64,
    declined: u64,
}

#[derive(Debug)]
pub(crate) struct Objects {
    capacity: u64,
    state: Mutex<State>,
}

/// Bytes set aside for an object that is not there yet; given back when dropped.
pub(crate) struct Room<'a> {
    objects: &'a Objects,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.objects.state.lock().used -= self.bytes;
    }
}

impl Objects {
    pub(crate) fn new(capacity: u64) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    pub(crate) fn is_stored(&self, key: &ObjectKey, layout: LayoutId, digest: Option<Digest>) -> bool {
        self.get(key).is_some_and(|o| o.is(layout, digest))
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<Room<'_>> {
        let mut state = self.state.lock();
        match state.used.checked_add(bytes).filter(|used| *used <= self.capacity) {
            Some(used) => {
                state.used = used;
                Ok(Room { objects: self, bytes })
            }
            None => {
                state.declined += 1;
                Err(Error::new(ErrorKind::NoSpace, "store in mock", "the mock is full")
                    .with("bytes", bytes)
                    .with("used", state.used)
                    .with("capacity", self.capacity))
            }
        }
    }

    /// Publishes the object and answers its key, unless the key was answered already.
    pub(crate) fn publish(
        &self,
        key: ObjectKey,
        object: Object,
        room: Room<'_>,
        position: usize,
        done: &PutSink,
    ) {
        // `room` must not be dropped under this lock: it takes it itself.
        let mut state = self.state.lock();
        let Some(claim) = done.claim(position) else {
            drop(state);
            return drop(room);
        };
        let (answer, replaced) = match state.map.entry(*key.fingerprint256()) {
            Entry::Occupied(there) if there.get().1.is(object.layout, object.digest) => {
                (Stored::Present, None)
            }
            Entry::Occupied(mut there) => (Stored::Written, Some(there.insert((key, Arc::new(object))).1)),
            Entry::Vacant(free) => {
                free.insert((key, Arc::new(object)));
                (Stored::Written, None)
            }
        };
        if let Some(old) = replaced {
            state.used -= old.len as u64;
        }
        drop(state);
        match answer {
            // The object owns the room from now on.
            Stored::Written => std::mem::forget(room),
            Stored::Present => drop(room),
        }
        claim.answer(Ok(answer));
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.state.lock().map.get(key.fingerprint256()).map(|(_, o)| Arc::clone(o))
    }

    pub(crate) fn remove(&self, key: &ObjectKey) -> bool {
        let mut state = self.state.lock();
        let gone = state.map.remove(key.fingerprint256());
        if let Some((_, object)) = &gone {
            state.used -= object.len as u64;
        }
        gone.is_some()
    }

    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        let gone = std::mem::take(&mut state.map);
        state.used -= gone.values().map(|(_, o)| o.len as u64).sum::<u64>();
    }

    pub(crate) fn list(&self, after: Option<[u8; 32]>, limit: usize) -> ListPage {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state.lock();
        let mut rest = state.map.range((after.map_or(Unbounded, Excluded), Unbounded));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let next = page.last().filter(|_| rest.next().is_some()).map(|(fp, _)| hex(fp));
        ListPage { entries: page.into_iter().map(|(_, (k, o))| (k.clone(), o.found())).collect(), next }
    }

    pub(crate) fn usage(&self) -> StoreUsage {
        let state = self.state.lock();
        StoreUsage {
            used: state.used,
            capacity: Some(self.capacity),
            objects: state.map.len() as u64,
            evicted: 0,
            declined: state.declined,
        }
    }

    pub(crate) fn damage(&self, key: &ObjectKey, damage: Damage) -> bool {
        let mut state = self.state.lock();
        let Some((_, object)) = state.map.get_mut(key.fingerprint256()) else { return false };
        let object = Arc::make_mut(object);
        match damage {
            Damage::Flip(at) => {
                let n = object.data.len();
                if n > 0 {
                    object.data[at % n] ^= 1;
                }
            }
            Damage::Truncate(len) => object.data.truncate(len),
        }
        true
    }

    /// Puts the bytes and descriptions of two objects under each other's key.
    pub(crate) fn swap(&self, a: &ObjectKey, b: &ObjectKey) -> bool {
        let mut state = self.state.lock();
        let [Some(of_a), Some(of_b)] =
            [a, b].map(|k| state.map.get(k.fingerprint256()).map(|(_, o)| Arc::clone(o)))
        else {
            return false;
        };
        for (key, object) in [(a, of_b), (b, of_a)] {
            state.map.insert(*key.fingerprint256(), (key.clone(), object));
        }
        true
    }
}

fn hex(fingerprint: &[u8; 32]) -> String {
    fingerprint.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads a cursor that [`Objects::list`] gave out.
pub(crate) fn unhex(cursor: &str) -> Result<[u8; 32]> {
    let bad = || Error::invalid("list mock", "not a cursor of this listing").with("cursor", cursor);
    let mut out = [0; 32];
    if cursor.len() != 64 || !cursor.is_ascii() {
        return Err(bad());
    }
    for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&cursor[at..at + 2], 16).map_err(|_| bad())?;
    }
    Ok(out)
}
