//! Copies in a stream.

use std::ptr::NonNull;

use cudarc::driver::sys::{
    CUdeviceptr, CUmemLocation, CUmemLocationType, CUmemcpyAttributes, CUmemcpySrcAccessOrder,
};
use kvstrata_core::{Error, ErrorKind, Result};

use crate::Stream;
use crate::api::Code;

/// One copy: from the host to a device, back, or within one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Where the bytes go.
    pub to: NonNull<u8>,
    /// Where they come from.
    pub from: NonNull<u8>,
    /// How many. None is fine, and does nothing.
    pub bytes: usize,
}

// SAFETY: two addresses and a number; who uses them answers for what is there.
unsafe impl Send for Transfer {}
// SAFETY: as above.
unsafe impl Sync for Transfer {}

/// An address as the driver takes it: one space for the host and all devices.
fn raw(address: NonNull<u8>) -> CUdeviceptr {
    address.as_ptr().expose_provenance() as CUdeviceptr
}

impl Stream {
    /// Copies, after what was given to the stream before. The host does not wait, unless its memory is not pinned.
    ///
    /// # Safety
    /// Both ranges stay valid until the copy is done, do not overlap, and nobody writes the one or uses the other meanwhile.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn copy(&self, transfer: Transfer) -> Result<()> {
        const OP: &str = "copy in CUDA stream";
        if transfer.bytes == 0 {
            return Ok(());
        }
        let api = self.device().api();
        let _current = self.device().enter(OP)?;
        let (to, from) = (raw(transfer.to), raw(transfer.from));
        // SAFETY: the caller says that both ranges are good.
        let code = unsafe { (api.copy_async)(to, from, transfer.bytes, self.raw_stream()) };
        api.check(OP, code).map_err(|e| e.with("bytes", transfer.bytes))
    }

    /// Many copies, in any order among themselves. One call where the driver has it ([`crate::Cuda::copies_in_batches`]), and one
    /// each where it does not.
    ///
    /// # Safety
    /// As [`Self::copy`], for each. No two write the same bytes.
    ///
    /// # Errors
    /// What the driver says. Some of the copies may have been done then.
    pub unsafe fn copy_all(&self, transfers: &[Transfer]) -> Result<()> {
        // The default stream takes no batches, and one copy is none.
        if transfers.len() > 1 && !self.raw().is_null() {
            // SAFETY: as the caller's.
            match unsafe { self.copy_batch(transfers) } {
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                done => return done,
            }
        }
        // SAFETY: as the caller's.
        unsafe { self.copy_each(transfers) }
    }

    /// Many copies, in order, with a call each.
    ///
    /// # Safety
    /// As [`Self::copy`], for each.
    ///
    /// # Errors
    /// As [`Self::copy_all`].
    pub unsafe fn copy_each(&self, transfers: &[Transfer]) -> Result<()> {
        // SAFETY: as the caller's.
        transfers.iter().try_for_each(|t| unsafe { self.copy(*t) })
    }

    /// # Safety
    /// As [`Self::copy_all`].
    unsafe fn copy_batch(&self, transfers: &[Transfer]) -> Result<()> {
        const OP: &str = "copy a batch in CUDA stream";
        let api = self.device().api();
        let some = || transfers.iter().filter(|t| t.bytes > 0);
        let mut to: Vec<CUdeviceptr> = some().map(|t| raw(t.to)).collect();
        let mut from: Vec<CUdeviceptr> = some().map(|t| raw(t.from)).collect();
        let mut sizes: Vec<usize> = some().map(|t| t.bytes).collect();
        let count = to.len();
        if count == 0 {
            return Ok(());
        }
        let anywhere = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        // All copies are alike: the sources are read in the stream's order, as single copies do.
        let mut alike = CUmemcpyAttributes {
            srcAccessOrder: CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: anywhere,
            dstLocHint: anywhere,
            flags: 0,
        };
        let mut from_first = 0usize;
        let (to, from, sizes) = (to.as_mut_ptr(), from.as_mut_ptr(), sizes.as_mut_ptr());
        let stream = self.raw_stream();
        let _current = self.device().enter(OP)?;
        let code = if let Some(batch) = api.copy_batch {
            let mut failed = usize::MAX;
            // SAFETY: the lists have `count` entries and outlive the call; the caller says that the ranges are good.
            unsafe {
                batch(to, from, sizes, count, &raw mut alike, &raw mut from_first, 1, &raw mut failed, stream)
            }
        } else if let Some(batch) = api.copy_batch_v2 {
            // SAFETY: as above.
            unsafe { batch(to, from, sizes, count, &raw mut alike, &raw mut from_first, 1, stream) }
        } else {
            Code::NOT_SUPPORTED
        };
        if code == Code::NOT_SUPPORTED {
            return Err(Error::new(ErrorKind::Unsupported, OP, "this driver copies no batches"));
        }
        api.check(OP, code).map_err(|e| e.with("copies", count))
    }

    /// Sets memory of a device, after what was given to the stream before.
    ///
    /// # Safety
    /// The range stays valid until it is done, and nobody uses it meanwhile.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn fill(&self, to: NonNull<u8>, byte: u8, bytes: usize) -> Result<()> {
        const OP: &str = "fill in CUDA stream";
        if bytes == 0 {
            return Ok(());
        }
        let api = self.device().api();
        let _current = self.device().enter(OP)?;
        // SAFETY: the caller says that the range is good.
        api.check(OP, unsafe { (api.fill_async)(raw(to), byte, bytes, self.raw_stream()) })
    }
}
