//! The functions, by name.

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

use crate::declared::Signature;
use crate::{
    BatchHandle, BoolParam, Descr, DrvProps, FileError, Handle, IoEvents, IoParams, IoVec, P2pFlags,
    SizeParam, Stream, StringParam, TargetType, Timespec,
};

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal ($($type:ty),*) $(-> $result:ty)?;)*) => {
        /// What the opened library exports of its interface; what this version lacks is `None`.
        ///
        /// Calling one is as unsafe as in C: the pointers must be good for what the function does with them, and the driver
        /// open where it has to be. The owners of this crate ([`crate::Driver`] and the others) do it for you.
        #[derive(Clone, Copy, Debug)]
        pub struct Calls {
            $($(#[$doc])* pub $name: Option<unsafe extern "C" fn($($type),*) $(-> $result)?>,)*
        }

        impl Calls {
            /// Asks the library for each.
            ///
            /// # Safety
            /// The library has cuFile's interface, and stays loaded as long as the result is used.
            pub(crate) unsafe fn of(library: &libloading::Library) -> Self {
                Self { $($name: {
                    // SAFETY: the type is the one of the interface, which the caller says that the library has.
                    let symbol = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                    symbol.ok().map(|symbol| *symbol)
                },)* }
            }

            /// The names of those that are not there.
            pub fn missing(&self) -> Vec<&'static str> {
                [$(($symbol, self.$name.is_none()),)*].iter().filter(|(_, m)| *m).map(|(name, _)| *name).collect()
            }
        }

        pub(crate) const SIGNATURES: &[Signature] = &[$(Signature {
            symbol: $symbol,
            arguments: &[$(stringify!($type)),*],
            // The first of one or two.
            result: [$(stringify!($result),)? "()"][0],
        },)*];
    };
}

calls! {
    /// Counted: each open needs a close. May never return, see [`crate::open_hazard`].
    driver_open = "cuFileDriverOpen" () -> FileError;
    /// The last one tears everything down.
    driver_close = "cuFileDriverClose_v2" () -> FileError;
    /// How often it is open.
    use_count = "cuFileUseCount" () -> c_long;
    /// Of the open driver.
    get_properties = "cuFileDriverGetProperties" (*mut DrvProps) -> FileError;
    /// 1000 * major + 10 * minor; needs no open driver.
    get_version = "cuFileGetVersion" (*mut c_int) -> FileError;
    /// Of one GPU.
    get_bar_size_kb = "cuFileGetBARSizeInKB" (c_int, *mut usize) -> FileError;
    /// Before the driver is open.
    set_size = "cuFileSetParameterSizeT" (SizeParam, usize) -> FileError;
    /// Before the driver is open.
    set_bool = "cuFileSetParameterBool" (BoolParam, bool) -> FileError;
    /// Before the driver is open.
    set_string = "cuFileSetParameterString" (StringParam, *const c_char) -> FileError;
    /// What holds.
    get_size = "cuFileGetParameterSizeT" (SizeParam, *mut usize) -> FileError;
    /// What holds.
    get_bool = "cuFileGetParameterBool" (BoolParam, *mut bool) -> FileError;
    /// What holds.
    get_string = "cuFileGetParameterString" (StringParam, *mut c_char, c_int) -> FileError;
    /// The range of a setting.
    get_min_max = "cuFileGetParameterMinMaxValue" (SizeParam, *mut usize, *mut usize) -> FileError;
    /// Sizes (KiB) and counts of the host buffers of compat mode.
    set_posix_pool = "cuFileSetParameterPosixPoolSlabArray" (*const usize, *const usize, c_int) -> FileError;
    /// The same for GPU buffers; since 1.20.
    set_gpu_bounce_pool = "cuFileSetParameterGpuBounceBufferSlabArray" (*const usize, *const usize, c_int) -> FileError;
    /// Which ways to the device are in use.
    get_p2p_flags = "cuFileDriverGetP2PFlags" (TargetType, *mut P2pFlags) -> FileError;
    /// Which ways to the device may be used.
    set_p2p_flags = "cuFileDriverSetP2PFlags" (TargetType, P2pFlags) -> FileError;
    /// Makes a handle of a file.
    handle_register = "cuFileHandleRegister" (*mut Handle, *mut Descr) -> FileError;
    /// Gives it back.
    handle_deregister = "cuFileHandleDeregister" (Handle);
    /// Pins memory for transfers.
    buf_register = "cuFileBufRegister" (*const c_void, usize, c_int) -> FileError;
    /// Gives it back.
    buf_deregister = "cuFileBufDeregister" (*const c_void) -> FileError;
    /// Handle, memory, bytes, offset in the file, offset in the memory.
    read = "cuFileRead" (Handle, *mut c_void, usize, i64, i64) -> isize;
    /// As `read`.
    write = "cuFileWrite" (Handle, *const c_void, usize, i64, i64) -> isize;
    /// Scattered; since 1.20.
    readv = "cuFileReadv" (Handle, *const IoVec, usize, i64, c_uint) -> isize;
    /// Scattered; since 1.20.
    writev = "cuFileWritev" (Handle, *const IoVec, usize, i64, c_uint) -> isize;
    /// In a stream; everything behind a pointer lives until the stream has passed.
    read_async = "cuFileReadAsync" (Handle, *mut c_void, *mut usize, *mut i64, *mut i64, *mut isize, Stream) -> FileError;
    /// In a stream; everything behind a pointer lives until the stream has passed.
    write_async = "cuFileWriteAsync" (Handle, *mut c_void, *mut usize, *mut i64, *mut i64, *mut isize, Stream) -> FileError;
    /// Prepares a stream; flags are those of [`crate::StreamFlags`].
    stream_register = "cuFileStreamRegister" (Stream, c_uint) -> FileError;
    /// Before the stream is destroyed.
    stream_deregister = "cuFileStreamDeregister" (Stream) -> FileError;
    /// Room for a batch.
    batch_setup = "cuFileBatchIOSetUp" (*mut BatchHandle, c_uint) -> FileError;
    /// Begins its entries.
    batch_submit = "cuFileBatchIOSubmit" (BatchHandle, c_uint, *mut IoParams, c_uint) -> FileError;
    /// What is done of it.
    batch_status = "cuFileBatchIOGetStatus" (BatchHandle, c_uint, *mut c_uint, *mut IoEvents, *mut Timespec) -> FileError;
    /// Calls it off.
    batch_cancel = "cuFileBatchIOCancel" (BatchHandle) -> FileError;
    /// Gives the room back.
    batch_destroy = "cuFileBatchIODestroy" (BatchHandle);
    /// 0–3; since 1.15.
    set_stats_level = "cuFileSetStatsLevel" (c_int) -> FileError;
    /// Since 1.15.
    get_stats_level = "cuFileGetStatsLevel" (*mut c_int) -> FileError;
    /// Since 1.15.
    stats_start = "cuFileStatsStart" () -> FileError;
    /// Since 1.15.
    stats_stop = "cuFileStatsStop" () -> FileError;
    /// Since 1.15.
    stats_reset = "cuFileStatsReset" () -> FileError;
    /// Since 1.15. How much is written depends on the version: see [`crate::stats`].
    get_stats_l3 = "cuFileGetStatsL3" (*mut c_void) -> FileError;
}
