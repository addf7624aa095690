//! The driver's functions, looked up by name in the library that cudarc finds.

use core::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUipcEventHandle, CUipcMemHandle, CUmemcpyAttributes,
    CUstream, CUuuid,
};
use kvstrata_core::{Error, ErrorKind, Result};

/// A function's answer: 0, or an error of the driver.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Code(pub(crate) c_uint);

pub(crate) type StreamCallback = unsafe extern "C" fn(CUstream, Code, *mut c_void);

macro_rules! functions {
    (
        required { $($name:ident = $symbol:literal ($($type:ty),*);)* }
        optional { $($other:ident = $other_symbol:literal ($($other_type:ty),*);)* }
    ) => {
        /// What every driver since CUDA 11.4 has, and what newer ones have.
        #[derive(Clone, Copy)]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($type),*) -> Code,)*
            $(pub(crate) $other: Option<unsafe extern "C" fn($($other_type),*) -> Code>,)*
        }

        impl Api {
            /// Opens the driver's library, if there is one.
            pub(crate) fn load() -> Result<Self> {
                // SAFETY: opening the driver's library runs its initialisers, which have no demands.
                if !unsafe { cudarc::driver::sys::is_culib_present() } {
                    return Err(absent("there is no CUDA driver: libcuda.so.1 cannot be opened"));
                }
                // SAFETY: as above; it is there, so this finds it, and it is never closed.
                let library = unsafe { cudarc::driver::sys::culib() };
                Ok(Self {
                    $($name: {
                        // SAFETY: the function of this name has had this type since CUDA 11.4.
                        let found = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                        *found.map_err(|_| absent(concat!("the CUDA driver is too old: it has no ", $symbol)))?
                    },)*
                    $($other: {
                        // SAFETY: the function of this name has this type wherever it is.
                        let found = unsafe { library.get(concat!($other_symbol, "\0").as_bytes()) };
                        found.ok().map(|f| *f)
                    },)*
                })
            }
        }
    };
}

fn absent(why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "open the CUDA driver", why).retrying(kvstrata_core::Retry::Never)
}

functions! {
    required {
        init = "cuInit" (c_uint);
        driver_version = "cuDriverGetVersion" (*mut c_int);
        error_name = "cuGetErrorName" (Code, *mut *const c_char);
        device_count = "cuDeviceGetCount" (*mut c_int);
        device_get = "cuDeviceGet" (*mut CUdevice, c_int);
        device_name = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
        device_uuid = "cuDeviceGetUuid" (*mut CUuuid, CUdevice);
        device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_uint, CUdevice);
        device_pci = "cuDeviceGetPCIBusId" (*mut c_char, c_int, CUdevice);
        device_memory = "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
        context_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
        context_release = "cuDevicePrimaryCtxRelease_v2" (CUdevice);
        context_push = "cuCtxPushCurrent_v2" (CUcontext);
        context_pop = "cuCtxPopCurrent_v2" (*mut CUcontext);
        pointer_attribute = "cuPointerGetAttribute" (*mut c_void, c_uint, CUdeviceptr);
        mem_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
        mem_alloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
        mem_free = "cuMemFree_v2" (CUdeviceptr);
        host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
        host_free = "cuMemFreeHost" (*mut c_void);
        host_flags = "cuMemHostGetFlags" (*mut c_uint, *mut c_void);
        host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
        host_unregister = "cuMemHostUnregister" (*mut c_void);
        copy_async = "cuMemcpyAsync" (CUdeviceptr, CUdeviceptr, usize, CUstream);
        fill = "cuMemsetD8_v2" (CUdeviceptr, u8, usize);
        fill_async = "cuMemsetD8Async" (CUdeviceptr, u8, usize, CUstream);
        stream_create = "cuStreamCreate" (*mut CUstream, c_uint);
        stream_destroy = "cuStreamDestroy_v2" (CUstream);
        stream_query = "cuStreamQuery" (CUstream);
        stream_synchronize = "cuStreamSynchronize" (CUstream);
        stream_wait = "cuStreamWaitEvent" (CUstream, CUevent, c_uint);
        stream_callback = "cuStreamAddCallback" (CUstream, StreamCallback, *mut c_void, c_uint);
        event_create = "cuEventCreate" (*mut CUevent, c_uint);
        event_destroy = "cuEventDestroy_v2" (CUevent);
        event_record = "cuEventRecord" (CUevent, CUstream);
        event_query = "cuEventQuery" (CUevent);
        event_synchronize = "cuEventSynchronize" (CUevent);
        ipc_mem_export = "cuIpcGetMemHandle" (*mut CUipcMemHandle, CUdeviceptr);
        ipc_mem_open = "cuIpcOpenMemHandle_v2" (*mut CUdeviceptr, CUipcMemHandle, c_uint);
        ipc_mem_close = "cuIpcCloseMemHandle" (CUdeviceptr);
        ipc_event_export = "cuIpcGetEventHandle" (*mut CUipcEventHandle, CUevent);
        ipc_event_open = "cuIpcOpenEventHandle" (*mut CUevent, CUipcEventHandle);
    }
    optional {
        device_uuid_v2 = "cuDeviceGetUuid_v2" (*mut CUuuid, CUdevice);
        copy_batch = "cuMemcpyBatchAsync" (*mut CUdeviceptr, *mut CUdeviceptr, *mut usize, usize, *mut CUmemcpyAttributes, *mut usize, usize, *mut usize, CUstream);
        copy_batch_v2 = "cuMemcpyBatchAsync_v2" (*mut CUdeviceptr, *mut CUdeviceptr, *mut usize, usize, *mut CUmemcpyAttributes, *mut usize, usize, CUstream);
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let batch = self.copy_batch.is_some() || self.copy_batch_v2.is_some();
        f.debug_struct("Api").field("copy_batch", &batch).finish_non_exhaustive()
    }
}
