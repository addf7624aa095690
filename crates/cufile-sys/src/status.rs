//! The library's answers.

use core::ffi::{c_int, c_uint};
use core::fmt;

use crate::FileError;

/// An answer of the library (`CUfileOpError`): 0, or 5001 and up.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub c_uint);

/// An answer of the CUDA driver inside one of the library's (`CUresult`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CudaResult(pub c_uint);

macro_rules! statuses {
    ($($const:ident = $code:literal $words:literal,)*) => {
        impl Status {
            $(#[doc = $words] pub const $const: Self = Self($code);)*

            /// The name in NVIDIA's header, as its documentation and its logs have it; `CU_FILE_UNKNOWN` for a code that it does not list.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($code => concat!("CU_FILE_", stringify!($const)),)*
                    _ => "CU_FILE_UNKNOWN",
                }
            }

            /// What it means, in words.
            pub fn words(self) -> &'static str {
                match self.0 {
                    $($code => $words,)*
                    _ => "a code that is not known here",
                }
            }

            /// Every code that is known here.
            pub const ALL: &'static [Self] = &[$(Self($code),)*];
        }
    };
}

statuses! {
    SUCCESS = 0 "it worked",
    DRIVER_NOT_INITIALIZED = 5001 "the driver is not open, or nvidia-fs is not loaded and compat mode is not allowed",
    DRIVER_INVALID_PROPS = 5002 "a driver property has an invalid value",
    DRIVER_UNSUPPORTED_LIMIT = 5003 "a driver property is out of its range",
    DRIVER_VERSION_MISMATCH = 5004 "nvidia-fs and the library do not fit together: update the older one",
    DRIVER_VERSION_READ_ERROR = 5005 "the version of nvidia-fs cannot be read",
    DRIVER_CLOSING = 5006 "the driver is being closed",
    PLATFORM_NOT_SUPPORTED = 5007 "no GPU was found, or this platform is not supported",
    IO_NOT_SUPPORTED = 5008 "this file's file system or device is not supported",
    DEVICE_NOT_SUPPORTED = 5009 "this GPU is not supported",
    NVFS_DRIVER_ERROR = 5010 "nvidia-fs failed an ioctl: see the kernel's log",
    CUDA_DRIVER_ERROR = 5011 "the CUDA driver failed; its own code says why",
    CUDA_POINTER_INVALID = 5012 "the address is no CUDA memory",
    CUDA_MEMORY_TYPE_INVALID = 5013 "this kind of memory is not supported",
    CUDA_POINTER_RANGE_ERROR = 5014 "the range goes past the end of its allocation",
    CUDA_CONTEXT_MISMATCH = 5015 "the memory belongs to another CUDA context than the one of this thread",
    INVALID_MAPPING_SIZE = 5016 "more memory than may be pinned: raise max_device_pinned_mem_size",
    INVALID_MAPPING_RANGE = 5017 "the range goes past what was registered",
    INVALID_FILE_TYPE = 5018 "only regular files and block devices are supported",
    INVALID_FILE_OPEN_FLAG = 5019 "the file was opened with a flag that is not supported",
    DIO_NOT_SET = 5020 "the file was not opened with O_DIRECT",
    INVALID_VALUE = 5022 "an argument is invalid or above its configured limit",
    MEMORY_ALREADY_REGISTERED = 5023 "the memory is registered already",
    MEMORY_NOT_REGISTERED = 5024 "the memory is not registered",
    PERMISSION_DENIED = 5025 "the driver or the file may not be used by this user",
    DRIVER_ALREADY_OPEN = 5026 "this setting must be made before the driver is opened",
    HANDLE_NOT_REGISTERED = 5027 "the file is not registered, or cannot be: there is no udev record of its block device",
    HANDLE_ALREADY_REGISTERED = 5028 "the file is registered already",
    DEVICE_NOT_FOUND = 5029 "the GPU was not found",
    INTERNAL_ERROR = 5030 "the library failed inside: see its log",
    GETNEWFD_FAILED = 5031 "no file descriptor could be had",
    NVFS_SETUP_ERROR = 5033 "the library could not be set up: no CUDA driver, or nvidia-fs failed to start",
    IO_DISABLED = 5034 "the configuration switches it off for this file",
    BATCH_SUBMIT_FAILED = 5035 "a batch was not taken",
    GPU_MEMORY_PINNING_FAILED = 5036 "GPU memory could not be pinned: its BAR1 may be too small",
    BATCH_FULL = 5037 "the batch has no room for so many entries",
    ASYNC_NOT_SUPPORTED = 5038 "stream-ordered calls are not supported here",
    INTERNAL_BATCH_SETUP_ERROR = 5039 "setting up a batch failed inside; trying later may help",
    INTERNAL_BATCH_SUBMIT_ERROR = 5040 "submitting a batch failed inside; trying later may help",
    INTERNAL_BATCH_GETSTATUS_ERROR = 5041 "asking for a batch failed inside; trying later may help",
    INTERNAL_BATCH_CANCEL_ERROR = 5042 "calling off a batch failed inside; trying later may help",
    NOMEM_ERROR = 5043 "the library has no memory; trying later may help",
    IO_ERROR = 5044 "the transfer failed",
    INTERNAL_BUF_REGISTER_ERROR = 5045 "registering memory failed inside",
    HASH_OPR_ERROR = 5046 "one of the library's tables failed",
    INVALID_CONTEXT_ERROR = 5047 "the CUDA context is gone or invalid",
    NVFS_INTERNAL_DRIVER_ERROR = 5048 "nvidia-fs failed inside: see the kernel's log",
    BATCH_NOCOMPAT_ERROR = 5049 "the batch needs compat mode, which is off",
    IO_MAX_ERROR = 5050 "the end of the list; no error of its own",
}

impl Status {
    /// Whether it worked.
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.0, self.name(), self.words())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({} {})", self.0, self.name())
    }
}

/// A call that did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The function.
    pub call: &'static str,
    /// Why.
    pub cause: Cause,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This version of the library does not have the function.
    Missing,
    /// The library's answer, with the CUDA driver's where that is the cause.
    Status(Status, Option<CudaResult>),
    /// The operating system's error number.
    Os(i32),
    /// The argument, refused before the library saw it.
    Argument(&'static str),
}

impl Failure {
    pub(crate) fn argument(call: &'static str, why: &'static str) -> Self {
        Self { call, cause: Cause::Argument(why) }
    }

    /// The library's code, if it gave one.
    pub fn status(&self) -> Option<Status> {
        match self.cause {
            Cause::Status(status, _) => Some(status),
            _ => None,
        }
    }

    /// The operating system's error, if it is one.
    pub fn errno(&self) -> Option<i32> {
        match self.cause {
            Cause::Os(errno) => Some(errno),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        match &self.cause {
            Cause::Missing => f.write_str("this version of the library does not have it"),
            Cause::Status(status, None) => write!(f, "{status}"),
            Cause::Status(status, Some(cuda)) => write!(f, "{status} (CUDA error {})", cuda.0),
            Cause::Os(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
            Cause::Argument(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// What a call that returns a `CUfileError_t` said.
pub(crate) fn check(call: &'static str, answer: FileError) -> Result<(), Failure> {
    if answer.err.is_success() {
        return Ok(());
    }
    let cuda = (answer.err == Status::CUDA_DRIVER_ERROR).then_some(answer.cu_err);
    Err(Failure { call, cause: Cause::Status(answer.err, cuda) })
}

/// What a call that returns a count said: bytes, -1 with an error number of the system, or the negative of a code.
pub(crate) fn check_count(
    call: &'static str,
    answer: isize,
    errno: impl FnOnce() -> i32,
) -> Result<usize, Failure> {
    let cause = match answer {
        0.. => return Ok(answer.unsigned_abs()),
        -1 => Cause::Os(errno()),
        _ => match c_int::try_from(answer.unsigned_abs()) {
            // Some versions give an error number of the system as its negative.
            Ok(code) if code < 5000 => Cause::Os(code),
            Ok(code) => Cause::Status(Status(code.unsigned_abs()), None),
            Err(_) => Cause::Status(Status(c_uint::MAX), None),
        },
    };
    Err(Failure { call, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_and_words_of_its_own() {
        let mut words: Vec<_> = Status::ALL.iter().map(|s| s.words()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Status::ALL.len());
        assert_eq!(Status::ALL.len(), 49, "0 and 5001 to 5050 without the two that were never given");
        for code in (5001..=5050).filter(|c| ![5021, 5032].contains(c)) {
            assert!(Status(code).name() != "CU_FILE_UNKNOWN", "{code}");
        }
        assert_eq!(Status(5051).name(), "CU_FILE_UNKNOWN", "a newer library's code is carried, not lost");
        assert_eq!(Status(5051).to_string(), "5051 (CU_FILE_UNKNOWN): a code that is not known here");
    }

    #[test]
    fn answers_are_told_apart() {
        let count = |n| check_count("cuFileRead", n, || 5);
        assert_eq!(count(0), Ok(0));
        assert_eq!(count(4096), Ok(4096));
        assert_eq!(count(-1).unwrap_err().errno(), Some(5), "EIO, from the system");
        assert_eq!(count(-28).unwrap_err().errno(), Some(28), "ENOSPC, as its negative");
        assert_eq!(count(-5008).unwrap_err().status(), Some(Status::IO_NOT_SUPPORTED));
        assert_eq!(count(isize::MIN).unwrap_err().status(), Some(Status(u32::MAX)));
        let answer = FileError { err: Status::CUDA_DRIVER_ERROR, cu_err: CudaResult(201) };
        let text = check("cuFileBufRegister", answer).unwrap_err().to_string();
        assert!(text.contains("5011") && text.contains("CUDA error 201"), "{text}");
        let answer = FileError { err: Status(5007), cu_err: CudaResult(7) };
        assert!(!check("x", answer).unwrap_err().to_string().contains("CUDA error"), "not the driver's");
    }
}
