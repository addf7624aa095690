//! The driver: what is set before it is open, and what it says while it is.

use core::ffi::c_int;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use crate::status::check;
use crate::{
    BoolParam, Calls, Cause, DrvProps, Failure, Library, P2pFlags, SizeParam, StringParam, TargetType,
};

/// Why opening the driver would not come back on this machine, if that can be told beforehand.
pub fn open_hazard() -> Option<&'static str> {
    let absent = !Path::new("/proc/modules").exists();
    absent.then_some("there is no /proc/modules, and cuFileDriverOpen spins for ever without it")
}

/// A function of the table, or the failure that says that it is not there.
pub(crate) fn have<F: Copy>(call: &'static str, function: Option<F>) -> Result<F, Failure> {
    function.ok_or(Failure { call, cause: Cause::Missing })
}

impl Library {
    /// Makes a setting. `DRIVER_ALREADY_OPEN` once the driver is.
    ///
    /// # Errors
    /// What the library says.
    pub fn set_size(&self, parameter: SizeParam, value: usize) -> Result<(), Failure> {
        const CALL: &str = "cuFileSetParameterSizeT";
        let function = have(CALL, self.calls().set_size)?;
        // SAFETY: numbers only.
        check(CALL, unsafe { function(parameter, value) })
    }

    /// What a setting is.
    ///
    /// # Errors
    /// What the library says.
    pub fn size(&self, parameter: SizeParam) -> Result<usize, Failure> {
        const CALL: &str = "cuFileGetParameterSizeT";
        let function = have(CALL, self.calls().get_size)?;
        let mut value = 0;
        // SAFETY: the value outlives the call.
        check(CALL, unsafe { function(parameter, &raw mut value) })?;
        Ok(value)
    }

    /// The least and the most that a setting may be.
    ///
    /// # Errors
    /// What the library says.
    pub fn size_range(&self, parameter: SizeParam) -> Result<(usize, usize), Failure> {
        const CALL: &str = "cuFileGetParameterMinMaxValue";
        let function = have(CALL, self.calls().get_min_max)?;
        let (mut least, mut most) = (0, 0);
        // SAFETY: both outlive the call.
        check(CALL, unsafe { function(parameter, &raw mut least, &raw mut most) })?;
        Ok((least, most))
    }

    /// Makes a setting, before the driver is open.
    ///
    /// # Errors
    /// What the library says.
    pub fn set_bool(&self, parameter: BoolParam, value: bool) -> Result<(), Failure> {
        const CALL: &str = "cuFileSetParameterBool";
        let function = have(CALL, self.calls().set_bool)?;
        // SAFETY: numbers only.
        check(CALL, unsafe { function(parameter, value) })
    }

    /// What a setting is.
    ///
    /// # Errors
    /// What the library says.
    pub fn bool(&self, parameter: BoolParam) -> Result<bool, Failure> {
        const CALL: &str = "cuFileGetParameterBool";
        let function = have(CALL, self.calls().get_bool)?;
        // A byte, so that nothing depends on what the library takes for true.
        let mut value = 0u8;
        let place = (&raw mut value).cast::<bool>();
        // SAFETY: the value outlives the call.
        check(CALL, unsafe { function(parameter, place) })?;
        Ok(value != 0)
    }

    /// Makes a setting, before the driver is open.
    ///
    /// # Errors
    /// What the library says; an argument with a zero byte is refused.
    pub fn set_string(&self, parameter: StringParam, value: &str) -> Result<(), Failure> {
        const CALL: &str = "cuFileSetParameterString";
        let function = have(CALL, self.calls().set_string)?;
        let value = CString::new(value).map_err(|_| Failure::argument(CALL, "the text has a zero byte"))?;
        // SAFETY: the text ends with a zero byte and outlives the call, which copies it.
        check(CALL, unsafe { function(parameter, value.as_ptr()) })
    }

    /// Opens the driver. It is counted: each [`Driver`] is one more.
    ///
    /// **May never return**: see [`open_hazard`]. Have a process of its own try it first.
    ///
    /// # Errors
    /// What the library says: `PLATFORM_NOT_SUPPORTED` without a GPU, `NVFS_SETUP_ERROR` without a CUDA driver.
    pub fn open_driver(self: &Arc<Self>) -> Result<Arc<Driver>, Failure> {
        const CALL: &str = "cuFileDriverOpen";
        let function = have(CALL, self.calls().driver_open)?;
        // SAFETY: takes nothing.
        check(CALL, unsafe { function() })?;
        Ok(Arc::new(Driver { library: Arc::clone(self) }))
    }
}

/// The open driver. Dropping the last one closes it; what was registered with it holds it.
#[derive(Debug)]
pub struct Driver {
    library: Arc<Library>,
}

impl Driver {
    /// The library.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    pub(crate) fn calls(&self) -> &Calls {
        self.library.calls()
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// What the library says.
    pub fn properties(&self) -> Result<DrvProps, Failure> {
        const CALL: &str = "cuFileDriverGetProperties";
        let function = have(CALL, self.calls().get_properties)?;
        let mut properties = DrvProps::default();
        // SAFETY: the struct is the library's, and outlives the call.
        check(CALL, unsafe { function(&raw mut properties) })?;
        Ok(properties)
    }

    /// Which ways to the device are in use for such files.
    ///
    /// # Errors
    /// What the library says; missing before 1.16.
    pub fn p2p_flags(&self, target: TargetType) -> Result<P2pFlags, Failure> {
        const CALL: &str = "cuFileDriverGetP2PFlags";
        let function = have(CALL, self.calls().get_p2p_flags)?;
        let mut flags = P2pFlags::default();
        // SAFETY: the flags outlive the call.
        check(CALL, unsafe { function(target, &raw mut flags) })?;
        Ok(flags)
    }

    /// How much of a GPU's memory the bus can reach, in KiB.
    ///
    /// # Errors
    /// What the library says.
    pub fn bar_size_kb(&self, ordinal: c_int) -> Result<usize, Failure> {
        const CALL: &str = "cuFileGetBARSizeInKB";
        let function = have(CALL, self.calls().get_bar_size_kb)?;
        let mut size = 0;
        // SAFETY: the size outlives the call.
        check(CALL, unsafe { function(ordinal, &raw mut size) })?;
        Ok(size)
    }

    /// How often the driver is open in this process.
    ///
    /// # Errors
    /// If this version does not say.
    pub fn use_count(&self) -> Result<i64, Failure> {
        let function = have("cuFileUseCount", self.calls().use_count)?;
        // SAFETY: takes nothing.
        Ok(unsafe { function() })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(close) = self.calls().driver_close {
            // SAFETY: opened once by this value; everything that was registered with it held it and is gone.
            let _ = unsafe { close() };
        }
    }
}
