//! Copies to be timed, over memory of their own.

use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_mem::{HeapRegion, HugePages, MemfdRegion, MmapRegion, Region, RegionOptions, UNIT};

use crate::{Device, DeviceRegion, HostRegistration, PinnedRegion, Stream, Transfer};

/// What kind of host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostMemory {
    /// The driver's own ([`PinnedRegion`]).
    Pinned,
    /// Private memory, pinned after the fact ([`HostRegistration`]).
    Registered,
    /// Shared memory, pinned after the fact.
    RegisteredShared,
    /// Memory that the driver cannot reach by itself.
    Pageable,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To the device.
    Up,
    /// To the host.
    Down,
    /// As much each way, at the same time.
    Both,
}

/// How many copies are given to a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scatter {
    /// One call each.
    Loop,
    /// One call for all, where the driver has it.
    Batch,
}

/// Host and device memory, and two streams between them. Every call waits for what it began, so it can be timed; who calls
/// has the clock.
#[derive(Debug)]
pub struct CopyRig {
    streams: [Stream; 2],
    // Unpinned before the memory goes.
    _pin: Option<HostRegistration>,
    host: Arc<dyn Region>,
    gpu: Arc<DeviceRegion>,
}

impl CopyRig {
    /// Memory of `bytes` bytes on each side, all of it touched.
    ///
    /// # Errors
    /// `Invalid` unless `bytes` is a positive multiple of 4 KiB; what regions and the driver say otherwise.
    pub fn new(device: &Arc<Device>, memory: HostMemory, bytes: usize) -> Result<Self> {
        let options =
            RegionOptions { prefault: true, huge_pages: HugePages::Transparent, ..RegionOptions::default() };
        let shared = RegionOptions { prefault: true, ..RegionOptions::default() };
        let gpu = DeviceRegion::new(device, bytes)?;
        let host: Arc<dyn Region> = match memory {
            HostMemory::Pinned => PinnedRegion::new(device, bytes)?,
            HostMemory::Registered => MmapRegion::new(bytes, &options)?,
            HostMemory::RegisteredShared => MemfdRegion::new("copies", bytes, &shared)?,
            HostMemory::Pageable => HeapRegion::new(bytes)?,
        };
        let pins = matches!(memory, HostMemory::Registered | HostMemory::RegisteredShared);
        let pin = if pins { Some(HostRegistration::new(device, &host)?) } else { None };
        let streams = [device.stream()?, device.stream()?];
        let rig = Self { streams, _pin: pin, host, gpu };
        // Memory of the global allocator has no pages before somebody writes there.
        rig.copy(Way::Down, bytes)?;
        Ok(rig)
    }

    /// Bytes on each side.
    pub fn bytes(&self) -> usize {
        self.gpu.len()
    }

    /// Moves all bytes, in pieces of `piece`, and waits.
    ///
    /// # Errors
    /// `Invalid` for a piece of no bytes; what the driver says.
    pub fn copy(&self, way: Way, piece: usize) -> Result<()> {
        if piece == 0 {
            return Err(
                Error::invalid("measure copies", "a piece has at least one byte").with("piece", piece)
            );
        }
        let half = (self.bytes() / 2).next_multiple_of(UNIT).min(self.bytes());
        let parts: &[(Way, usize, usize)] = match way {
            Way::Up => &[(Way::Up, 0, self.bytes())],
            Way::Down => &[(Way::Down, 0, self.bytes())],
            Way::Both => &[(Way::Up, 0, half), (Way::Down, half, self.bytes())],
        };
        self.run(|rig| {
            let mut at: Vec<usize> = parts.iter().map(|(_, first, _)| *first).collect();
            // In turns, so that neither direction gets a head start.
            while parts.iter().zip(&at).any(|((_, _, end), at)| at < end) {
                for (n, (way, _, end)) in parts.iter().enumerate() {
                    let bytes = piece.min(end - at[n]);
                    let transfer = rig.transfer(*way, at[n], at[n], bytes);
                    // SAFETY: within both regions, which this value owns, and `run` waits.
                    unsafe { rig.streams[n].copy(transfer) }?;
                    at[n] += bytes;
                }
            }
            Ok(())
        })
    }

    /// Moves `count` blocks that lie scattered on the device to as many in a row on the host, or back, and waits.
    ///
    /// # Errors
    /// `Invalid` if there is no room for so many; what the driver says.
    pub fn scattered(&self, way: Way, block: usize, count: usize, how: Scatter) -> Result<()> {
        const OP: &str = "measure scattered copies";
        if block == 0 || count == 0 || block.checked_mul(count).is_none_or(|all| all > self.bytes()) {
            let message = "blocks times their size are 1 byte to the memory's size";
            return Err(Error::invalid(OP, message).with("block", block).with("count", count));
        }
        // A step that shares no factor with the count visits every block.
        let step = (count / 2 + 1..).find(|s| gcd(*s, count) == 1).unwrap_or(1);
        let list: Vec<Transfer> =
            (0..count).map(|i| self.transfer(way, i * block, i * step % count * block, block)).collect();
        self.run(|rig| match how {
            // SAFETY: within both regions, which this value owns, no two blocks overlap, and `run` waits.
            Scatter::Loop => unsafe { rig.streams[0].copy_each(&list) },
            // SAFETY: as above.
            Scatter::Batch => unsafe { rig.streams[0].copy_all(&list) },
        })
    }

    fn transfer(&self, way: Way, host: usize, gpu: usize, bytes: usize) -> Transfer {
        let at = |base: std::ptr::NonNull<u8>, offset| base.map_addr(|a| a.saturating_add(offset));
        let (host, gpu) = (at(self.host.base(), host), at(self.gpu.base(), gpu));
        match way {
            Way::Up | Way::Both => Transfer { to: gpu, from: host, bytes },
            Way::Down => Transfer { to: host, from: gpu, bytes },
        }
    }

    /// Begins copies and waits for them, also for those before one that failed.
    fn run(&self, begin: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let begun = begin(self);
        let [first, second] = &self.streams;
        let waited = [first.synchronize(), second.synchronize()].into_iter().collect::<Result<()>>();
        begun.and(waited)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
