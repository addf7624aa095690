//! Patterns in memory of the host and of the device.

use std::ptr::NonNull;

use kvstrata_core::Result;
use kvstrata_cuda::{Device, PinnedRegion, Stream, Transfer};
use kvstrata_mem::Region;
use libtest_mimic::Failed;
use std::sync::Arc;

/// What block `i` of a pattern begins with is found in no other block, and no other seed's.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        let mixed =
            (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
        word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
    }
    bytes
}

pub(super) fn equal(what: &str, expected: &[u8], seen: &[u8]) -> Result<(), Failed> {
    match expected.iter().zip(seen).position(|(a, b)| a != b) {
        None if expected.len() == seen.len() => Ok(()),
        at => Err(format!("{what}: {} and {} bytes differ at {at:?}", expected.len(), seen.len()).into()),
    }
}

/// The bytes of a host region.
pub(super) fn set(region: &dyn Region, at: usize, bytes: &[u8]) {
    assert!(at + bytes.len() <= region.len());
    // SAFETY: within the region.
    let to = unsafe { region.base().add(at) };
    // SAFETY: as above; the tests run one at a time, and wait for their copies.
    unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

pub(super) fn get(region: &dyn Region, at: usize, len: usize) -> Vec<u8> {
    assert!(at + len <= region.len());
    let mut bytes = vec![0; len];
    // SAFETY: within the region.
    let from = unsafe { region.base().add(at) };
    // SAFETY: as above.
    unsafe { from.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
    bytes
}

/// An address of the host or the device, some bytes on.
pub(super) fn at(base: NonNull<u8>, offset: usize) -> NonNull<u8> {
    base.map_addr(|a| a.saturating_add(offset))
}

/// Copies and waits.
pub(super) fn copy(stream: &Stream, to: NonNull<u8>, from: NonNull<u8>, bytes: usize) -> Result<()> {
    // SAFETY: the tests name ranges of regions that they hold, and wait right here.
    unsafe { stream.copy(Transfer { to, from, bytes }) }?;
    stream.synchronize()
}

/// What lies on the device, by way of pinned memory.
pub(super) fn download(device: &Arc<Device>, from: NonNull<u8>, len: usize) -> Result<Vec<u8>> {
    let host = PinnedRegion::new(device, len.next_multiple_of(4096))?;
    copy(&device.stream()?, host.base(), from, len)?;
    Ok(get(&*host, 0, len))
}

/// Puts bytes on the device.
pub(super) fn upload(device: &Arc<Device>, to: NonNull<u8>, bytes: &[u8]) -> Result<()> {
    let host = PinnedRegion::new(device, bytes.len().next_multiple_of(4096))?;
    set(&*host, 0, bytes);
    copy(&device.stream()?, to, host.base(), bytes.len())
}
