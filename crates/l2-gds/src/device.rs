//! What the adapter needs of GPUs. CUDA is one answer to it; a pretended GPU in host memory lets everything but CUDA itself
//! be tested where there is none.

use std::any::Any;
use std::fmt::Debug;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::Result;
use kvstrata_mem::Region;

/// A point in a GPU's work, of the kind that [`Gpus`] of the same crate understand.
pub trait Event: Any + Send + Sync + Debug {}

/// The GPUs of a machine, by their ordinals.
///
/// # Safety
/// Memory that is handed out here is what its [`Region`] says, and copies that were queued touch nothing but what they were
/// given, and that no later than [`Copies::drain`] returns.
pub unsafe trait Gpus: Send + Sync + Debug + 'static {
    /// The GPUs' ordinals, as the process sees them.
    fn ordinals(&self) -> Vec<u32>;
    /// Which GPU a region's memory is of.
    ///
    /// # Errors
    /// If it is of none.
    fn owner(&self, region: &dyn Region) -> Result<u32>;
    /// Host memory that all GPUs copy from and to at full speed.
    ///
    /// # Errors
    /// What the driver says.
    fn pinned(&self, bytes: usize) -> Result<Arc<dyn Region>>;
    /// Memory of a GPU.
    ///
    /// # Errors
    /// What the driver says.
    fn memory(&self, ordinal: u32, bytes: usize) -> Result<Arc<dyn Region>>;
    /// A queue of copies of one GPU.
    ///
    /// # Errors
    /// What the driver says.
    fn copies(&self, ordinal: u32) -> Result<Box<dyn Copies>>;
    /// Runs `work` with a GPU's context as the thread's current one, as libraries expect that are given its memory.
    ///
    /// # Errors
    /// What the driver says; `work` was not run then.
    fn within(&self, ordinal: u32, work: &mut dyn FnMut()) -> Result<()>;
}

/// Which way a copy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the GPU to pinned memory.
    ToHost,
    /// From pinned memory to the GPU.
    ToDevice,
}

/// Copies of one GPU, carried out in the order in which they were queued, while the caller goes on.
///
/// Obligations (tests of the same number):
///
/// 1. Copies are made in their order, each exactly.
/// 2. What is queued after [`after`](Self::after) waits for the event; [`signal`](Self::signal) is reached when all
///    before it is done. Neither keeps the caller.
/// 3. [`reached`](Self::reached) returns when everything before the mark is done, and later copies go on meanwhile.
/// 4. After [`drain`](Self::drain), and after a drop, no memory is touched any more.
pub trait Copies: Send + Debug {
    /// Queues a copy.
    ///
    /// # Safety
    /// Both ends are good for `len` bytes, one in pinned memory and one in the GPU's, and stay so, with nobody else writing
    /// them, until a mark behind the copy is reached or the queue was drained.
    ///
    /// # Errors
    /// What the driver says; nothing was queued then.
    unsafe fn copy(&mut self, way: Direction, to: NonNull<u8>, from: NonNull<u8>, len: usize) -> Result<()>;
    /// Makes everything queued from now on wait for `event`, on the GPU.
    ///
    /// # Errors
    /// What the driver says, or an event that is not one of its own.
    fn after(&mut self, event: &dyn Event) -> Result<()>;
    /// Lets `event` be reached when everything queued so far is done.
    ///
    /// # Errors
    /// As [`Self::after`].
    fn signal(&mut self, event: &dyn Event) -> Result<()>;
    /// A mark behind everything queued so far.
    ///
    /// # Errors
    /// What the driver says.
    fn mark(&mut self) -> Result<Mark>;
    /// Waits for a mark; the thread sleeps.
    ///
    /// # Errors
    /// What a copy before it failed with.
    fn reached(&mut self, mark: Mark) -> Result<()>;
    /// Waits until nothing is queued any more.
    fn drain(&mut self);
}

/// A place in a queue of copies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark(pub u64);
