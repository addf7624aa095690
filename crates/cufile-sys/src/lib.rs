//! The interface of cuFile, NVIDIA's GPUDirect Storage library, declared here and opened at run time.
//!
//! Nothing of NVIDIA's is needed to build this crate or what uses it, and nothing of it comes along: [`Library::open`]
//! looks for the library when a program asks for it, and what is absent is a typed [`Unavailable`] with everything that was tried. Versions of the
//! library differ in what they export, so each function is optional ([`Calls`]), and numbers that come out of the library
//! are newtypes ([`Status`], [`CudaResult`]), never closed enums: newer versions know more of them.
//!
//! ```
//! use kvstrata_cufile_sys::{Library, Search, Status};
//!
//! // SAFETY: this names NVIDIA's library by its usual names only.
//! match unsafe { Library::open(&Search::default()) } {
//!     Ok(library) => println!("cuFile {} from {}", library.version(), library.name()),
//!     Err(absent) => println!("{absent}"),
//! }
//! assert_eq!(Status(5027).name(), "CU_FILE_HANDLE_NOT_REGISTERED");
//! ```
//!
//! On top of the raw table are thin owners whose order of teardown the library needs: a [`Driver`] closes after its
//! [`FileHandle`]s and [`RegisteredBuffer`]s are gone, and a file's descriptor after its handle.
//!
//! What it deliberately does not do: it decides nothing (which way bytes go, what is retried, how large a request is), reads
//! no environment, and knows no CUDA beyond a pointer and a stream that somebody gives it. The batch functions are declared
//! and not used.
//!
//! **[`Library::open_driver`] may never return**: versions up to 1.20 spin for ever where `/proc/modules` does not exist.
//! Ask [`open_hazard`] first, and try it in a process of its own, with a time limit.

mod calls;
mod driver;
mod file;
mod library;
mod status;
mod types;

pub mod declared;
pub mod stats;

pub use calls::Calls;
pub use driver::{Driver, open_hazard};
pub use file::{FileHandle, RegisteredBuffer};
pub use library::{Library, NAMES, PACKAGE_FOLDERS, Search, Unavailable, Version};
pub use status::{Cause, CudaResult, Failure, Status};
pub use types::{
    BatchHandle, BatchIo, BoolParam, Descr, DescrHandle, DrvProps, FileError, Handle, HandleType, IoEvents,
    IoParams, IoVec, NvfsProps, OpCode, P2pFlags, SizeParam, Stream, StreamFlags, StringParam, TargetType,
    Timespec, control, feature, io_state,
};
