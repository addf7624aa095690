//! The driver's answers as errors.

use std::ffi::CStr;

use kvstrata_core::{Error, ErrorKind, Result, Retry};

use crate::api::{Api, Code};

impl Code {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const NOT_READY: Self = Self(600);
    pub(crate) const NOT_SUPPORTED: Self = Self(801);
}

/// What an answer means to a caller, and whether it may be another one later.
fn meaning(code: Code) -> (ErrorKind, Retry) {
    match code.0 {
        // OUT_OF_MEMORY.
        2 => (ErrorKind::NoSpace, Retry::Later),
        // NOT_INITIALIZED, DEINITIALIZED, STUB_LIBRARY, DEVICE_UNAVAILABLE, NO_DEVICE, DEVICE_NOT_LICENSED, the versions
        // of driver and library that do not fit, and the driver's process that is gone.
        3 | 4 | 34 | 46 | 100 | 102 | 803..=810 => (ErrorKind::Unavailable, Retry::Never),
        1 | 101 | 201 | 400 => (ErrorKind::Internal, Retry::Never),
        // ALREADY_MAPPED, HOST_MEMORY_ALREADY_REGISTERED.
        208 | 712 => (ErrorKind::Busy, Retry::Later),
        // NOT_PERMITTED, NOT_SUPPORTED.
        800 | 801 => (ErrorKind::Unsupported, Retry::Never),
        // SYSTEM_NOT_READY.
        802 => (ErrorKind::Unavailable, Retry::Later),
        // Faults of the device or of a kernel: nothing in this context works any more.
        _ => (ErrorKind::Io, Retry::Never),
    }
}

impl Api {
    /// Nothing, or the error that the answer is.
    pub(crate) fn check(&self, op: &'static str, code: Code) -> Result<()> {
        if code == Code::SUCCESS { Ok(()) } else { Err(self.error(op, code)) }
    }

    pub(crate) fn error(&self, op: &'static str, code: Code) -> Error {
        let mut name = std::ptr::null();
        // SAFETY: the place outlives the call.
        let known = unsafe { (self.error_name)(code, &raw mut name) };
        let name = if known == Code::SUCCESS && !name.is_null() {
            // SAFETY: the driver's names are texts that live as long as it.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            "an error that this driver does not name".into()
        };
        let (kind, retry) = meaning(code);
        Error::new(kind, op, name).retrying(retry).with("cuda_error", code.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_kinds_and_unknown_ones_are_carried() {
        assert_eq!(meaning(Code(2)), (ErrorKind::NoSpace, Retry::Later));
        assert_eq!(meaning(Code(100)).0, ErrorKind::Unavailable);
        assert_eq!(meaning(Code(712)).0, ErrorKind::Busy);
        assert_eq!(meaning(Code(700)), (ErrorKind::Io, Retry::Never), "an illegal address ends the context");
        assert_eq!(meaning(Code(123_456)).0, ErrorKind::Io);
    }
}
