//! The driver, and its devices.

use core::ffi::{c_char, c_int};
use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUuuid};
use kvstrata_core::{Affinity, Error, ErrorKind, Result, Retry};

use crate::api::{Api, Code};

/// The CUDA driver of this machine.
#[derive(Debug)]
pub struct Cuda {
    api: Api,
    version: u32,
    devices: u32,
}

impl Cuda {
    /// Opens the driver.
    ///
    /// # Errors
    /// `Unavailable` without a driver or a device, with the reason.
    pub fn open() -> Result<Arc<Self>> {
        const OP: &str = "open the CUDA driver";
        let api = Api::load()?;
        // SAFETY: takes no pointer; may be called again.
        let code = unsafe { (api.init)(0) };
        if code != Code::SUCCESS {
            let why = api.error(OP, code);
            // Whatever keeps the driver from starting, on this machine there is no CUDA.
            return Err(Error::new(
                ErrorKind::Unavailable,
                OP,
                format!("it does not start: {}", why.message()),
            )
            .retrying(Retry::Never)
            .with("cuda_error", code.0));
        }
        let (mut version, mut devices) = (0, 0);
        // SAFETY: the number outlives the call.
        api.check(OP, unsafe { (api.driver_version)(&raw mut version) })?;
        // SAFETY: as above.
        api.check(OP, unsafe { (api.device_count)(&raw mut devices) })?;
        if devices == 0 {
            let why = "there is a CUDA driver and no device, or CUDA_VISIBLE_DEVICES shows none";
            return Err(Error::new(ErrorKind::Unavailable, OP, why).retrying(Retry::Never));
        }
        Ok(Arc::new(Self { api, version: version.unsigned_abs(), devices: devices.unsigned_abs() }))
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// The newest CUDA that the driver is for, as 1000 * major + 10 * minor.
    pub fn driver_version(&self) -> u32 {
        self.version
    }

    /// How many devices this process sees.
    pub fn device_count(&self) -> u32 {
        self.devices
    }

    /// Whether scattered copies are one call, or one each.
    pub fn copies_in_batches(&self) -> bool {
        self.api.copy_batch.is_some() || self.api.copy_batch_v2.is_some()
    }

    /// A device, by its ordinal in this process. Retains its primary context, which other users of CUDA in this process
    /// share.
    ///
    /// # Errors
    /// `NotFound` if there is no such device; what the driver says otherwise.
    pub fn device(self: &Arc<Self>, ordinal: u32) -> Result<Arc<Device>> {
        const OP: &str = "open CUDA device";
        let index = c_int::try_from(ordinal).ok().filter(|_| ordinal < self.devices).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, OP, "there is no device of this ordinal")
                .with("ordinal", ordinal)
                .with("devices", self.devices)
        })?;
        let api = self.api;
        let mut raw: CUdevice = 0;
        // SAFETY: the place outlives the call.
        api.check(OP, unsafe { (api.device_get)(&raw mut raw, index) })?;
        let mut uuid = CUuuid { bytes: [0; 16] };
        let get_uuid = api.device_uuid_v2.unwrap_or(api.device_uuid);
        // SAFETY: as above.
        api.check(OP, unsafe { get_uuid(&raw mut uuid, raw) })?;
        let name = text(&api, OP, |to, len| {
            // SAFETY: the buffer is `len` long.
            unsafe { (api.device_name)(to, len, raw) }
        })?;
        let pci = text(&api, OP, |to, len| {
            // SAFETY: as above.
            unsafe { (api.device_pci)(to, len, raw) }
        })?;
        let mut memory = 0;
        // SAFETY: the place outlives the call.
        api.check(OP, unsafe { (api.device_memory)(&raw mut memory, raw) })?;
        let pci = PciAddress(pci.to_ascii_lowercase());
        let numa_node = pci.numa_node().or_else(|| host_numa_node(&api, raw));
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: the place outlives the call; given back when the device is dropped.
        api.check(OP, unsafe { (api.context_retain)(&raw mut context, raw) })?;
        Ok(Arc::new(Device {
            cuda: Arc::clone(self),
            raw,
            context: Context(context),
            ordinal,
            uuid: Uuid(uuid.bytes.map(c_char::cast_unsigned)),
            name,
            pci,
            numa_node,
            memory: memory as u64,
        }))
    }

    /// Every device that this process sees.
    ///
    /// # Errors
    /// As [`Self::device`].
    pub fn devices(self: &Arc<Self>) -> Result<Vec<Arc<Device>>> {
        (0..self.devices).map(|ordinal| self.device(ordinal)).collect()
    }

    /// The device of this UUID, wherever `CUDA_VISIBLE_DEVICES` has put it.
    ///
    /// # Errors
    /// `NotFound` if this process does not see it; what the driver says otherwise.
    pub fn device_by_uuid(self: &Arc<Self>, uuid: Uuid) -> Result<Arc<Device>> {
        let devices = self.devices()?;
        devices.into_iter().find(|d| d.uuid == uuid).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "open CUDA device", "this process sees no device of this UUID")
                .with("uuid", uuid)
        })
    }
}

/// A text that the driver writes.
fn text(api: &Api, op: &'static str, write: impl FnOnce(*mut c_char, c_int) -> Code) -> Result<String> {
    let mut buffer = [0 as c_char; 256];
    // One less than there is room: it ends with a zero in any case.
    api.check(op, write(buffer.as_mut_ptr(), 255))?;
    // SAFETY: ends with a zero byte, and lives as long as the borrow.
    Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}

/// The node of the host's memory that is next to the device, as drivers since 12.2 say it.
fn host_numa_node(api: &Api, raw: CUdevice) -> Option<u32> {
    const HOST_NUMA_ID: u32 = 134;
    let mut node = -1;
    // SAFETY: the place outlives the call.
    let code = unsafe { (api.device_attribute)(&raw mut node, HOST_NUMA_ID, raw) };
    (code == Code::SUCCESS).then(|| u32::try_from(node).ok()).flatten()
}

/// Which device it is, whatever its ordinal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

/// As NVIDIA's tools write it: `GPU-0f1e2d3c-…`.
impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if matches!(i, 0 | 4 | 6 | 8 | 10) { "-" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            let message = "a GPU's UUID is GPU- and 32 hexadecimal digits, as nvidia-smi -L prints it";
            Error::invalid("read GPU UUID", message).with("uuid", text)
        };
        let digits: Vec<u8> = text
            .strip_prefix("GPU-")
            .ok_or_else(refused)?
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(refused))
            .collect::<Result<_>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if digits.len() == 32 { bytes.try_into().map(Self).map_err(|_| refused()) } else { Err(refused()) }
    }
}

/// Where the device sits: `0000:1b:00.0`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PciAddress(String);

impl PciAddress {
    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The NUMA node that the kernel puts it on.
    fn numa_node(&self) -> Option<u32> {
        let file = format!("/sys/bus/pci/devices/{}/numa_node", self.0);
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number to the driver, good on any thread.
#[derive(Debug)]
struct Context(CUcontext);

// SAFETY: a context may be made current on any thread, on several at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A device, with its primary context.
#[derive(Debug)]
pub struct Device {
    cuda: Arc<Cuda>,
    raw: CUdevice,
    context: Context,
    ordinal: u32,
    uuid: Uuid,
    name: String,
    pci: PciAddress,
    numa_node: Option<u32>,
    memory: u64,
}

impl Device {
    pub(crate) fn api(&self) -> &Api {
        self.cuda.api()
    }

    /// The driver.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Its place among the devices that this process sees.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Its UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What NVIDIA calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it sits.
    pub fn pci(&self) -> &PciAddress {
        &self.pci
    }

    /// The NUMA node whose memory is next to it, if the machine says.
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// Its memory in bytes.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// What requests of this device carry.
    pub fn affinity(&self) -> Affinity {
        Affinity { ordinal: Some(self.ordinal), uuid: Some(self.uuid.0) }
    }

    /// Free and all memory, in bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_memory(&self) -> Result<(u64, u64)> {
        const OP: &str = "ask for GPU memory";
        let _current = self.enter(OP)?;
        let (mut free, mut all) = (0, 0);
        // SAFETY: both places outlive the call.
        self.api().check(OP, unsafe { (self.api().mem_info)(&raw mut free, &raw mut all) })?;
        Ok((free as u64, all as u64))
    }

    /// The ordinal of the device whose memory is at an address.
    ///
    /// # Errors
    /// What the driver says, for instance of an address that is no memory of its own.
    pub fn owner_of(&self, address: NonNull<u8>) -> Result<u32> {
        const OP: &str = "ask whose memory it is";
        const DEVICE_ORDINAL: u32 = 9;
        let _current = self.enter(OP)?;
        let mut ordinal: c_int = -1;
        let to = (&raw mut ordinal).cast();
        let raw = address.as_ptr().expose_provenance() as CUdeviceptr;
        // SAFETY: the attribute is an int, whose place outlives the call; the address is only looked up.
        self.api().check(OP, unsafe { (self.api().pointer_attribute)(to, DEVICE_ORDINAL, raw) })?;
        u32::try_from(ordinal).map_err(|_| Error::new(ErrorKind::NotFound, OP, "it is no device's memory"))
    }

    /// Makes the device's context the thread's current one, until the result is dropped; then the one before is current
    /// again. What this crate does needs no such thing; calls of cuFile do.
    ///
    /// # Errors
    /// What the driver says.
    pub fn make_current(&self) -> Result<Current<'_>> {
        self.enter("make CUDA device current")
    }

    pub(crate) fn enter(&self, op: &'static str) -> Result<Current<'_>> {
        // SAFETY: the context is retained as long as the device lives.
        self.api().check(op, unsafe { (self.api().context_push)(self.context.0) })?;
        Ok(Current { device: self, thread: PhantomData })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once by this value. At the end of the process the driver may be gone before: then it says so.
        let _ = unsafe { (self.api().context_release)(self.raw) };
    }
}

/// The device's context is this thread's current one.
#[derive(Debug)]
#[must_use = "dropping it makes the context before current again"]
pub struct Current<'a> {
    device: &'a Device,
    /// It is about this thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped: CUcontext = std::ptr::null_mut();
        // SAFETY: pushed by this thread; the place outlives the call.
        let _ = unsafe { (self.device.api().context_pop)(&raw mut popped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_nvidias_tools_do() {
        let text = "GPU-00010203-0405-0607-0809-0a0b0c0d0eff";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(uuid.0[15], 0xff);
        assert_eq!(uuid.to_string(), text);
        for bad in
            ["", "GPU-", "00010203-0405-0607-0809-0a0b0c0d0eff", "GPU-0001", &format!("{text}00"), "GPU-zz"]
        {
            let e = bad.parse::<Uuid>().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{bad}");
            assert!(e.to_string().contains("nvidia-smi"), "{e}");
        }
    }

    #[test]
    fn without_a_driver_or_a_device_the_reason_is_given() {
        match Cuda::open() {
            Ok(cuda) => {
                assert!(cuda.device_count() > 0);
                let e = cuda.device(cuda.device_count()).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::NotFound);
            }
            Err(e) => {
                assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Never));
                assert!(e.message().contains("CUDA") || e.message().contains("start"), "{e}");
            }
        }
    }
}
