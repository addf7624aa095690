//! Structs and numbers as the library lays them out. Sizes and offsets are asserted here, and compared with NVIDIA's own
//! header by `cargo xtask cufile-bindings`.

use core::ffi::{c_int, c_long, c_uint, c_void};
use core::mem::{offset_of, size_of};

use crate::{CudaResult, Status};

/// A registered file (`CUfileHandle_t`).
pub type Handle = *mut c_void;
/// A set-up batch (`CUfileBatchHandle_t`).
pub type BatchHandle = *mut c_void;
/// A stream of the CUDA driver (`CUstream`).
pub type Stream = *mut c_void;

/// What most calls return (`CUfileError_t`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileError {
    /// The library's answer.
    pub err: Status,
    /// The CUDA driver's, where `err` is [`Status::CUDA_DRIVER_ERROR`].
    pub cu_err: CudaResult,
}

/// What kind of file is registered (`CUfileFileHandleType`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandleType(pub c_uint);

impl HandleType {
    /// A Linux file descriptor.
    pub const OPAQUE_FD: Self = Self(1);
}

/// The file in a [`Descr`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union DescrHandle {
    /// With [`HandleType::OPAQUE_FD`].
    pub fd: c_int,
    /// With the other types.
    pub handle: *mut c_void,
}

/// A file to register (`CUfileDescr_t`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descr {
    /// Which member of `handle` counts.
    pub kind: HandleType,
    /// The file.
    pub handle: DescrHandle,
    /// Functions of a file system in user space; null for the kernel's.
    pub fs_ops: *const c_void,
}

impl core::fmt::Debug for Descr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Descr").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for DescrHandle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DescrHandle")
    }
}

/// What the driver says of the kernel module, in [`DrvProps`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NvfsProps {
    /// Version of nvidia-fs; 0 if it is not loaded.
    pub major_version: c_uint,
    /// Its second part.
    pub minor_version: c_uint,
    /// Up to this size, completions are polled for; in KiB.
    pub poll_thresh_size: usize,
    /// Largest single request to a device; in KiB.
    pub max_direct_io_size: usize,
    /// One bit per [`TargetType`].
    pub dstatusflags: c_uint,
    /// One bit per constant of [`control`].
    pub dcontrolflags: c_uint,
}

/// What the opened driver says of itself (`CUfileDrvProps_t`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DrvProps {
    /// The kernel module.
    pub nvfs: NvfsProps,
    /// One bit per constant of [`feature`].
    pub fflags: c_uint,
    /// GPU memory for bounce buffers, in KiB.
    pub max_device_cache_size: c_uint,
    /// Size of one of them, in KiB.
    pub per_buffer_cache_size: c_uint,
    /// GPU memory that may be pinned, in KiB.
    pub max_device_pinned_mem_size: c_uint,
    /// Entries of a batch.
    pub max_batch_io_size: c_uint,
    /// How long a batch may take, in milliseconds.
    pub max_batch_io_timeout_msecs: c_uint,
}

/// What files a [`DrvProps`] speaks of: bit numbers of `dstatusflags` (`CUfileDriverStatusFlags_t`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetType(pub c_uint);

impl TargetType {
    /// Lustre.
    pub const LUSTRE: Self = Self(0);
    /// WekaFS.
    pub const WEKAFS: Self = Self(1);
    /// NFS over RDMA.
    pub const NFS: Self = Self(2);
    /// IBM Storage Scale.
    pub const GPFS: Self = Self(3);
    /// Local NVMe through nvidia-fs.
    pub const NVME: Self = Self(4);
    /// NVMe over fabrics.
    pub const NVMEOF: Self = Self(5);
    /// SCSI.
    pub const SCSI: Self = Self(6);
    /// ScaleFlux.
    pub const SCALEFLUX_CSD: Self = Self(7);
    /// NVMesh.
    pub const NVMESH: Self = Self(8);
    /// BeeGFS.
    pub const BEEGFS: Self = Self(9);
    /// Local NVMe through the kernel's own peer-to-peer DMA.
    pub const NVME_P2P: Self = Self(11);
    /// ScaTeFS.
    pub const SCATEFS: Self = Self(12);
    /// virtiofs.
    pub const VIRTIOFS: Self = Self(13);
    /// PanFS.
    pub const PANFS: Self = Self(14);

    /// Whether the bit is set in `flags`.
    pub fn is_in(self, flags: c_uint) -> bool {
        flags.checked_shr(self.0).is_some_and(|rest| rest & 1 == 1)
    }
}

/// Ways to the device that are in use for a [`TargetType`] (`CUfileP2PFlags_t` as a mask).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct P2pFlags(pub c_uint);

impl P2pFlags {
    /// The kernel's peer-to-peer DMA.
    pub const P2PDMA: Self = Self(1);
    /// nvidia-fs.
    pub const NVFS: Self = Self(2);
    /// dma-buf.
    pub const DMABUF: Self = Self(4);
    /// NVLink-C2C.
    pub const C2C: Self = Self(8);
}

/// Bit numbers of `dcontrolflags`.
pub mod control {
    /// Completions are polled for.
    pub const USE_POLL_MODE: u32 = 0;
    /// POSIX calls are used where the direct way is not possible.
    pub const ALLOW_COMPAT_MODE: u32 = 1;
}

/// Bit numbers of `fflags`.
pub mod feature {
    /// Requests may be routed through other GPUs.
    pub const DYN_ROUTING_SUPPORTED: u32 = 0;
    /// The batch calls.
    pub const BATCH_IO_SUPPORTED: u32 = 1;
    /// The stream calls.
    pub const STREAMS_SUPPORTED: u32 = 2;
    /// A request is cut and moved by several threads.
    pub const PARALLEL_IO_SUPPORTED: u32 = 3;
    /// The kernel's peer-to-peer DMA.
    pub const P2P_SUPPORTED: u32 = 4;
}

/// Read or write, in a batch (`CUfileOpcode_t`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpCode(pub c_uint);

impl OpCode {
    /// From the file.
    pub const READ: Self = Self(0);
    /// To the file.
    pub const WRITE: Self = Self(1);
}

/// The transfer of an [`IoParams`]. Version 1.20 ignores `dev_ptr_offset` for host memory: give the whole address in
/// `dev_ptr_base`, and 0 here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BatchIo {
    /// Address of the memory.
    pub dev_ptr_base: *mut c_void,
    /// Where in the file.
    pub file_offset: i64,
    /// From `dev_ptr_base` on; see above.
    pub dev_ptr_offset: i64,
    /// Bytes.
    pub size: usize,
}

/// One entry of a batch (`CUfileIOParams_t`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoParams {
    /// 1, a batch; there is nothing else.
    pub mode: c_uint,
    /// The transfer.
    pub batch: BatchIo,
    /// The file.
    pub fh: Handle,
    /// Which way.
    pub opcode: OpCode,
    /// Comes back in the event.
    pub cookie: *mut c_void,
}

/// How one entry of a batch ended (`CUfileIOEvents_t`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoEvents {
    /// The entry's.
    pub cookie: *mut c_void,
    /// A constant of [`io_state`].
    pub status: c_uint,
    /// Bytes, or the negative of a code.
    pub ret: usize,
}

/// The states of a batch's entry (`CUfileStatus_t`).
pub mod io_state {
    /// Not begun.
    pub const WAITING: u32 = 0x01;
    /// Begun.
    pub const PENDING: u32 = 0x02;
    /// Refused.
    pub const INVALID: u32 = 0x04;
    /// Called off.
    pub const CANCELED: u32 = 0x08;
    /// Done; `ret` says how much of it.
    pub const COMPLETE: u32 = 0x10;
    /// Given up.
    pub const TIMEOUT: u32 = 0x20;
    /// Failed.
    pub const FAILED: u32 = 0x40;
}

/// A piece of memory for the scattered calls of 1.20 (`CUfileIOVec_t`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    /// Address.
    pub base: *mut c_void,
    /// Bytes.
    pub len: usize,
}

/// The C library's `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timespec {
    /// Seconds.
    pub tv_sec: c_long,
    /// Nanoseconds.
    pub tv_nsec: c_long,
}

/// What of a stream's transfers is known when they are submitted (flags of `cuFileStreamRegister`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamFlags(pub c_uint);

impl StreamFlags {
    /// The offset into the memory.
    pub const FIXED_BUF_OFFSET: Self = Self(1);
    /// The offset into the file.
    pub const FIXED_FILE_OFFSET: Self = Self(2);
    /// The size.
    pub const FIXED_FILE_SIZE: Self = Self(4);
    /// All of them are multiples of 4 KiB.
    pub const PAGE_ALIGNED_INPUTS: Self = Self(8);
}

macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident = $c:literal { $($(#[$each:meta])* $const:ident = $value:literal as $symbol:literal,)* }) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub c_uint);

        impl $name {
            $($(#[$each])* pub const $const: Self = Self($value);)*
            pub(crate) const DECLARED: &'static [(&'static str, &'static str, u32)] = &[$(($c, $symbol, $value),)*];
        }
    };
}

parameters! {
    /// A setting with a size (`CUFileSizeTConfigParameter_t`). Settings are made before the driver is opened.
    SizeParam = "CUFileSizeTConfigParameter_t" {
        /// Level of the statistics, 0–3.
        PROFILE_STATS = 0 as "CUFILE_PARAM_PROFILE_STATS",
        /// Requests that may wait.
        MAX_IO_QUEUE_DEPTH = 1 as "CUFILE_PARAM_EXECUTION_MAX_IO_QUEUE_DEPTH",
        /// Threads of its own.
        MAX_IO_THREADS = 2 as "CUFILE_PARAM_EXECUTION_MAX_IO_THREADS",
        /// A request is cut for them from this size on, in KiB.
        MIN_IO_THRESHOLD_SIZE_KB = 3 as "CUFILE_PARAM_EXECUTION_MIN_IO_THRESHOLD_SIZE_KB",
        /// Into at most so many pieces.
        MAX_REQUEST_PARALLELISM = 4 as "CUFILE_PARAM_EXECUTION_MAX_REQUEST_PARALLELISM",
        /// Largest single request to a device, in KiB.
        MAX_DIRECT_IO_SIZE_KB = 5 as "CUFILE_PARAM_PROPERTIES_MAX_DIRECT_IO_SIZE_KB",
        /// GPU memory for bounce buffers, in KiB.
        MAX_DEVICE_CACHE_SIZE_KB = 6 as "CUFILE_PARAM_PROPERTIES_MAX_DEVICE_CACHE_SIZE_KB",
        /// Size of one of them, in KiB.
        PER_BUFFER_CACHE_SIZE_KB = 7 as "CUFILE_PARAM_PROPERTIES_PER_BUFFER_CACHE_SIZE_KB",
        /// GPU memory that may be pinned, in KiB.
        MAX_DEVICE_PINNED_MEM_SIZE_KB = 8 as "CUFILE_PARAM_PROPERTIES_MAX_DEVICE_PINNED_MEM_SIZE_KB",
        /// Entries of a batch.
        IO_BATCHSIZE = 9 as "CUFILE_PARAM_PROPERTIES_IO_BATCHSIZE",
        /// Up to this size, completions are polled for; in KiB.
        POLLTHRESHOLD_SIZE_KB = 10 as "CUFILE_PARAM_POLLTHRESHOLD_SIZE_KB",
        /// How long a batch may take, in milliseconds.
        BATCH_IO_TIMEOUT_MS = 11 as "CUFILE_PARAM_PROPERTIES_BATCH_IO_TIMEOUT_MS",
    }
}

parameters! {
    /// A setting that is on or off (`CUFileBoolConfigParameter_t`).
    BoolParam = "CUFileBoolConfigParameter_t" {
        /// Completions are polled for.
        USE_POLL_MODE = 0 as "CUFILE_PARAM_PROPERTIES_USE_POLL_MODE",
        /// POSIX calls are used where the direct way is not possible.
        ALLOW_COMPAT_MODE = 1 as "CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE",
        /// POSIX calls always.
        FORCE_COMPAT_MODE = 2 as "CUFILE_PARAM_FORCE_COMPAT_MODE",
        /// More checks of arguments.
        API_CHECK_AGGRESSIVE = 3 as "CUFILE_PARAM_FS_MISC_API_CHECK_AGGRESSIVE",
        /// A request is cut and moved by several threads.
        PARALLEL_IO = 4 as "CUFILE_PARAM_EXECUTION_PARALLEL_IO",
        /// Host memory is taken too.
        ALLOW_SYSTEM_MEMORY = 6 as "CUFILE_PARAM_PROPERTIES_ALLOW_SYSTEM_MEMORY",
        /// The kernel's peer-to-peer DMA.
        USE_PCIP2PDMA = 7 as "CUFILE_PARAM_USE_PCIP2PDMA",
        /// io_uring rather than AIO.
        PREFER_IO_URING = 8 as "CUFILE_PARAM_PREFER_IO_URING",
        /// Files are opened past the page cache.
        FORCE_ODIRECT_MODE = 9 as "CUFILE_PARAM_FORCE_ODIRECT_MODE",
        /// The PCIe tree is not looked at.
        SKIP_TOPOLOGY_DETECTION = 10 as "CUFILE_PARAM_SKIP_TOPOLOGY_DETECTION",
    }
}

parameters! {
    /// A setting with a text (`CUFileStringConfigParameter_t`).
    StringParam = "CUFileStringConfigParameter_t" {
        /// ERROR, WARN, INFO, DEBUG or TRACE.
        LOGGING_LEVEL = 0 as "CUFILE_PARAM_LOGGING_LEVEL",
        /// The file of the log. Without it, `cufile.log` appears in the current folder.
        LOGFILE_PATH = 1 as "CUFILE_PARAM_ENV_LOGFILE_PATH",
        /// The folder of the log.
        LOG_DIR = 2 as "CUFILE_PARAM_LOG_DIR",
    }
}

// The layouts that the library has had since 1.14 on x86-64 and aarch64 Linux.
const _: () = {
    assert!(size_of::<FileError>() == 8 && offset_of!(FileError, cu_err) == 4);
    assert!(size_of::<Descr>() == 24 && size_of::<DescrHandle>() == 8);
    assert!(offset_of!(Descr, handle) == 8 && offset_of!(Descr, fs_ops) == 16);
    assert!(size_of::<NvfsProps>() == 32 && offset_of!(NvfsProps, dstatusflags) == 24);
    assert!(size_of::<DrvProps>() == 56 && offset_of!(DrvProps, fflags) == 32);
    assert!(size_of::<BatchIo>() == 32);
    assert!(size_of::<IoParams>() == 64 && offset_of!(IoParams, batch) == 8);
    assert!(offset_of!(IoParams, fh) == 40 && offset_of!(IoParams, cookie) == 56);
    assert!(size_of::<IoEvents>() == 24 && offset_of!(IoEvents, ret) == 16);
    assert!(size_of::<IoVec>() == 16 && size_of::<Timespec>() == 16);
};
