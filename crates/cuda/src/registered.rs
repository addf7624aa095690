//! Pinning regions that somebody else made.

use core::ffi::c_void;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_mem::{Region, RegionId, RegionKind, RegionWatch};
use parking_lot::Mutex;

use crate::Device;
use crate::api::Code;

/// A region of host memory that the driver has pinned. The region outlives the pin: dropping this unpins first, and only
/// then lets go of the region.
pub struct HostRegistration {
    // `drop` unpins; the fields go afterwards.
    region: Arc<dyn Region>,
    device: Arc<Device>,
    /// It was pinned before, by whoever allocated it.
    borrowed: bool,
}

impl HostRegistration {
    /// Pins the region, for every device of the process. Takes tens of milliseconds per GiB. Memory that is pinned already is left as
    /// it is.
    ///
    /// # Errors
    /// `Unsupported` for device memory; `NoSpace` if so much may not be pinned; what the driver says otherwise.
    pub fn new(device: &Arc<Device>, region: &Arc<dyn Region>) -> Result<Self> {
        const OP: &str = "pin host memory";
        const PORTABLE: u32 = 1;
        if region.kind() == RegionKind::Device {
            let message = "the region is a device's memory, which needs no pinning";
            return Err(Error::new(kvstrata_core::ErrorKind::Unsupported, OP, message));
        }
        let api = device.api();
        let _current = device.enter(OP)?;
        let base = region.base().as_ptr().cast::<c_void>();
        let mut flags = 0;
        // SAFETY: the place outlives the call, which only looks the address up.
        let borrowed = unsafe { (api.host_flags)(&raw mut flags, base) } == Code::SUCCESS;
        if !borrowed {
            // SAFETY: the region is mapped, and stays so for as long as this value holds it.
            let code = unsafe { (api.host_register)(base, region.len(), PORTABLE) };
            api.check(OP, code).map_err(|e| e.with("len", region.len()))?;
        }
        Ok(Self { region: Arc::clone(region), device: Arc::clone(device), borrowed })
    }

    /// The region.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.region
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        if self.borrowed {
            return;
        }
        if let Ok(_current) = self.device.enter("unpin host memory") {
            // SAFETY: pinned by `new`, and the region is still mapped.
            let code = unsafe { (self.device.api().host_unregister)(self.region.base().as_ptr().cast()) };
            if let Err(e) = self.device.api().check("unpin host memory", code) {
                tracing::warn!(error = %e, region = self.region.id().get(), "memory stays pinned");
            }
        }
    }
}

impl fmt::Debug for HostRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostRegistration({:?})", self.region)
    }
}

/// Pins every region of an allocator for as long as it is there. Give it to [`kvstrata_mem::Allocate::watch_regions`].
///
/// A region that cannot be pinned is used all the same: copies from and to it are slower. It is logged, and told by
/// [`Self::failures`].
#[derive(Debug)]
pub struct HostRegistrations {
    device: Arc<Device>,
    live: Mutex<BTreeMap<RegionId, HostRegistration>>,
    failed: Mutex<BTreeMap<RegionId, Error>>,
}

impl HostRegistrations {
    /// None yet.
    pub fn new(device: &Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device: Arc::clone(device), live: Mutex::default(), failed: Mutex::default() })
    }

    /// Bytes that are pinned now.
    pub fn bytes(&self) -> u64 {
        self.live.lock().values().map(|r| r.region.len() as u64).sum()
    }

    /// Whether this region is pinned.
    pub fn holds(&self, region: RegionId) -> bool {
        self.live.lock().contains_key(&region)
    }

    /// What could not be pinned, and why.
    pub fn failures(&self) -> Vec<(RegionId, Error)> {
        self.failed.lock().iter().map(|(id, e)| (*id, e.clone())).collect()
    }
}

impl RegionWatch for HostRegistrations {
    fn added(&self, region: &Arc<dyn Region>) {
        if region.kind() == RegionKind::Device {
            return;
        }
        match HostRegistration::new(&self.device, region) {
            Ok(pinned) => {
                let before = self.live.lock().insert(region.id(), pinned);
                drop(before);
            }
            Err(e) => {
                tracing::warn!(error = %e, region = region.id().get(), "memory is not pinned: copies are slower");
                self.failed.lock().insert(region.id(), e);
            }
        }
    }

    fn removed(&self, region: &Arc<dyn Region>) {
        self.failed.lock().remove(&region.id());
        let pinned = self.live.lock().remove(&region.id());
        drop(pinned);
    }
}
