use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

/// Evicts nothing: for a tier that is a buffer, where entries leave when their work is done.
///
/// Memory: none.
#[derive(Debug, Default)]
pub struct Noop;

impl EvictionPolicy for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }
    fn set_capacity(&mut self, _: u64) {}
    fn insert(&mut self, _: Entry, _: &Access) {}
    fn touch(&mut self, _: Slot, _: &Access) {}
    fn missed(&mut self, _: u64, _: &Access) {}
    fn pin(&mut self, _: Slot) {}
    fn unpin(&mut self, _: Slot) {}
    fn remove(&mut self, _: Slot, _: Removal) {}
    fn victims(&mut self, _: u64, _: &mut Vec<Slot>) -> u64 {
        0
    }
    fn memory(&self) -> usize {
        0
    }
}
