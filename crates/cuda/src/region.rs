//! Memory that the driver gives.

use core::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mem::{Region, RegionId, RegionKind, UNIT};

use crate::Device;

/// The driver gives memory of a device in pieces of this size. Whole ones are never shared with another allocation, which
/// would go along with a handle for another process.
const GRANULE: usize = 2 << 20;

fn check_len(op: &'static str, len: usize) -> Result<()> {
    if len == 0 || !len.is_multiple_of(UNIT) {
        return Err(Error::invalid(op, "a region is a positive multiple of 4096 bytes").with("len", len));
    }
    Ok(())
}

/// An address of the driver as one of Rust's.
pub(crate) fn address(op: &'static str, raw: CUdeviceptr) -> Result<NonNull<u8>> {
    let address = usize::try_from(raw).ok().and_then(std::num::NonZeroUsize::new);
    // It is never dereferenced here: the driver and the device are the only ones that go there.
    address.map(NonNull::without_provenance).ok_or_else(|| {
        Error::new(ErrorKind::Internal, op, "the driver gave an address that is none").with("address", raw)
    })
}

/// Where a region is from, and so how it is given back.
#[derive(Clone, Copy)]
pub(crate) enum Origin {
    Pinned,
    Allocated,
    Imported,
}

/// A range that the driver allocated or mapped, and takes back when the value goes. `K` tells a [`PinnedRegion`], a
/// [`DeviceRegion`] and an [`ImportedRegion`](crate::ipc::ImportedRegion) apart.
pub struct DriverRegion<K> {
    id: RegionId,
    origin: Origin,
    /// What the driver knows it by; `base` is the first multiple of 4 KiB in it.
    raw: CUdeviceptr,
    base: NonNull<u8>,
    len: usize,
    device: Arc<Device>,
    kind: PhantomData<fn() -> K>,
}

// SAFETY: the memory is owned by the value and reached only through `Region`, whose users synchronise.
unsafe impl<K> Send for DriverRegion<K> {}
// SAFETY: as above.
unsafe impl<K> Sync for DriverRegion<K> {}

impl<K> DriverRegion<K> {
    /// Of a range that the driver gave or mapped, and that nobody else gives back.
    pub(crate) fn over(
        device: &Arc<Device>,
        origin: Origin,
        raw: CUdeviceptr,
        base: NonNull<u8>,
        len: usize,
    ) -> Self {
        Self { id: RegionId::unique(), origin, raw, base, len, device: Arc::clone(device), kind: PhantomData }
    }

    /// The device it is on, or was allocated with.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn raw(&self) -> CUdeviceptr {
        self.raw
    }
}

impl<K> Drop for DriverRegion<K> {
    fn drop(&mut self) {
        let api = self.device.api();
        // At the end of the process the driver may be gone before.
        let Ok(_current) = self.device.enter("give memory back to the driver") else { return };
        let _ = match self.origin {
            // SAFETY: allocated by `PinnedRegion::new`, and freed once.
            Origin::Pinned => unsafe { (api.host_free)(self.base.as_ptr().cast::<c_void>()) },
            // SAFETY: allocated by `DeviceRegion::new`, and freed once.
            Origin::Allocated => unsafe { (api.mem_free)(self.raw) },
            // SAFETY: opened by `ImportedRegion::open`, and closed once.
            Origin::Imported => unsafe { (api.ipc_mem_close)(self.raw) },
        };
    }
}

// SAFETY: the driver keeps the range for as long as the value lives. What is made here was zeroed, whoever exports memory
// zeroed it, and each `new` and `open` checked the alignment.
unsafe impl<K: 'static> Region for DriverRegion<K> {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.len
    }
    fn kind(&self) -> RegionKind {
        match self.origin {
            Origin::Pinned => RegionKind::Private,
            Origin::Allocated | Origin::Imported => RegionKind::Device,
        }
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<K> fmt::Debug for DriverRegion<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::Pinned => write!(f, "PinnedRegion({} bytes)", self.len),
            Origin::Allocated => write!(f, "DeviceRegion({} bytes on {})", self.len, self.device.uuid()),
            Origin::Imported => write!(f, "ImportedRegion({} bytes on {})", self.len, self.device.uuid()),
        }
    }
}

/// Host memory that the driver allocated and pinned: the copy engine of every device reaches it at full speed. Not
/// write-combined, so the CPU reads it at full speed too.
pub type PinnedRegion = DriverRegion<Pinned>;

/// What a [`PinnedRegion`] is.
#[derive(Debug)]
pub enum Pinned {}

impl PinnedRegion {
    /// A region of `len` zero bytes.
    ///
    /// # Errors
    /// `Invalid` unless `len` is a positive multiple of 4 KiB; `NoSpace` if there is too little memory; what the driver says
    /// otherwise.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Arc<Self>> {
        const OP: &str = "allocate pinned memory";
        /// For every context of the process; and neither mapped for kernels nor write-combined.
        const PORTABLE: u32 = 1;
        check_len(OP, len)?;
        let _current = device.enter(OP)?;
        let mut base: *mut c_void = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        let code = unsafe { (device.api().host_alloc)(&raw mut base, len, PORTABLE) };
        device.api().check(OP, code).map_err(|e| e.with("len", len))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| Error::new(ErrorKind::Internal, OP, "the driver gave no address"))?;
        let region = Self::over(device, Origin::Pinned, base.addr().get() as CUdeviceptr, base, len);
        if !base.addr().get().is_multiple_of(UNIT) {
            let message = "the driver gave an address that is no multiple of 4096";
            return Err(Error::new(ErrorKind::Internal, OP, message).with("address", base.addr()));
        }
        // SAFETY: just allocated for `len` bytes, and nobody else knows of it.
        unsafe { base.as_ptr().write_bytes(0, len) };
        Ok(Arc::new(region))
    }
}

/// Memory of a device.
pub type DeviceRegion = DriverRegion<OnDevice>;

/// What a [`DeviceRegion`] is.
#[derive(Debug)]
pub enum OnDevice {}

impl DeviceRegion {
    /// A region of `len` zero bytes. The device sets whole 2 MiB aside.
    ///
    /// # Errors
    /// `Invalid` unless `len` is a positive multiple of 4 KiB; `NoSpace` if the device has too little memory; what the driver
    /// says otherwise.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Arc<Self>> {
        const OP: &str = "allocate GPU memory";
        check_len(OP, len)?;
        if len as u64 > device.memory() {
            let message = "the device has less memory";
            return Err(Error::new(ErrorKind::NoSpace, OP, message)
                .with("len", len)
                .with("memory", device.memory()));
        }
        let api = device.api();
        let _current = device.enter(OP)?;
        let allocate = |bytes: usize| {
            let mut allocation: CUdeviceptr = 0;
            // SAFETY: the place outlives the call.
            let code = unsafe { (api.mem_alloc)(&raw mut allocation, bytes) };
            api.check(OP, code).map(|()| allocation).map_err(|e| e.with("len", len))
        };
        let whole = len.next_multiple_of(GRANULE);
        let mut allocation = allocate(whole)?;
        if !allocation.is_multiple_of(UNIT as u64) {
            // SAFETY: allocated above, and freed once.
            let _ = unsafe { (api.mem_free)(allocation) };
            allocation = allocate(whole + UNIT)?;
        }
        let base = address(OP, allocation.next_multiple_of(UNIT as u64))?;
        let region = Self::over(device, Origin::Allocated, allocation, base, len);
        // SAFETY: the range was just allocated, and nobody else knows of it.
        api.check(OP, unsafe { (api.fill)(allocation, 0, whole) })?;
        // The filling is in the default stream, which other streams do not wait for.
        // SAFETY: a null stream is the default one.
        api.check(OP, unsafe { (api.stream_synchronize)(std::ptr::null_mut()) })?;
        Ok(Arc::new(region))
    }
}
