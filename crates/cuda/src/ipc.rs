//! Device memory and events for another process.
//!
//! A handle is bytes that the other process is given over any channel. It opens it to memory that is the same memory, or to
//! an event that its streams can wait for. A process cannot open its own.

use core::ffi::c_char;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUipcEventHandle, CUipcMemHandle};
use kvstrata_core::{Error, Result};
use kvstrata_mem::{Region, UNIT};

use crate::region::{DriverRegion, Origin, address};
use crate::{Device, DeviceRegion, Event};

/// A [`DeviceRegion`] for another process. Plain bytes: any channel will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemHandle {
    /// What the driver calls it.
    pub handle: [u8; 64],
    /// From the start of what the driver maps, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// An event for another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventHandle(pub [u8; 64]);

impl DeviceRegion {
    /// A handle, with which another process opens this memory. The region must outlive its use there.
    ///
    /// # Errors
    /// What the driver says.
    pub fn export(&self) -> Result<MemHandle> {
        const OP: &str = "export GPU memory";
        let _current = self.device().enter(OP)?;
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        let api = self.device().api();
        // SAFETY: the place outlives the call, and the allocation the value.
        api.check(OP, unsafe { (api.ipc_mem_export)(&raw mut handle, self.raw()) })?;
        Ok(MemHandle {
            handle: handle.reserved.map(c_char::cast_unsigned),
            offset: self.base().addr().get() as u64 - self.raw(),
            len: self.len() as u64,
        })
    }
}

impl Event {
    /// A handle, with which another process opens this event.
    ///
    /// # Errors
    /// What the driver says, of an event that was not made for others ([`crate::EventUse::Shared`]) for instance.
    pub fn export(&self) -> Result<EventHandle> {
        const OP: &str = "export CUDA event";
        let _current = self.device().enter(OP)?;
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        let api = self.device().api();
        // SAFETY: the place outlives the call, and the event the value.
        api.check(OP, unsafe { (api.ipc_event_export)(&raw mut handle, self.raw()) })?;
        Ok(EventHandle(handle.reserved.map(c_char::cast_unsigned)))
    }
}

impl Device {
    /// Opens another process's event.
    ///
    /// # Errors
    /// What the driver says of a handle that is none.
    pub fn open_event(self: &Arc<Self>, handle: &EventHandle) -> Result<Event> {
        const OP: &str = "open CUDA event of another process";
        let _current = self.enter(OP)?;
        let mut raw: CUevent = std::ptr::null_mut();
        let handle = CUipcEventHandle { reserved: handle.0.map(u8::cast_signed) };
        // SAFETY: the place outlives the call.
        self.api().check(OP, unsafe { (self.api().ipc_event_open)(&raw mut raw, handle) })?;
        Ok(Event::from_raw(self, raw))
    }
}

/// Memory of a device that another process allocated.
pub type ImportedRegion = DriverRegion<Imported>;

/// What an [`ImportedRegion`] is.
#[derive(Debug)]
pub enum Imported {}

impl ImportedRegion {
    /// Opens another process's memory.
    ///
    /// # Safety
    /// Offset and length are what the other process's [`DeviceRegion::export`] said, and its region outlives this one.
    ///
    /// # Errors
    /// `Invalid` for a length or an offset that is no multiple of 4 KiB; what the driver says of a handle that is none.
    pub unsafe fn open(device: &Arc<Device>, handle: &MemHandle) -> Result<Arc<Self>> {
        const OP: &str = "open GPU memory of another process";
        const LAZY_PEER_ACCESS: u32 = 1;
        let unit = UNIT as u64;
        if handle.len == 0 || !handle.len.is_multiple_of(unit) || handle.len > device.memory() {
            let message = "the length is a positive multiple of 4096 bytes, and not more than the device has";
            return Err(Error::invalid(OP, message).with("len", handle.len));
        }
        if handle.offset >= unit {
            return Err(Error::invalid(OP, "the offset is below 4096 bytes").with("offset", handle.offset));
        }
        let _current = device.enter(OP)?;
        let mut mapping: CUdeviceptr = 0;
        let raw = CUipcMemHandle { reserved: handle.handle.map(u8::cast_signed) };
        // SAFETY: the place outlives the call.
        let code = unsafe { (device.api().ipc_mem_open)(&raw mut mapping, raw, LAZY_PEER_ACCESS) };
        device.api().check(OP, code)?;
        let close = |e: Error| {
            // SAFETY: opened above, and closed once.
            let _ = unsafe { (device.api().ipc_mem_close)(mapping) };
            e
        };
        let base = address(OP, mapping + handle.offset).map_err(close)?;
        if !base.addr().get().is_multiple_of(UNIT) {
            let message = "the memory does not begin at a multiple of 4096";
            return Err(close(Error::invalid(OP, message).with("offset", handle.offset)));
        }
        let len = handle.len as usize;
        Ok(Arc::new(Self::over(device, Origin::Imported, mapping, base, len)))
    }
}
