//! GPU memory, pinned host memory, streams, and which device is which.
//!
//! Nothing of CUDA is needed to build this crate. [`Cuda::open`] looks for the driver when a program asks for it; a machine
//! without a driver or a device gets an `Unavailable` that says what is missing, and nothing here panics.
//!
//! ```
//! use kvstrata_core::ErrorKind;
//! use kvstrata_cuda::{Cuda, DeviceRegion, PinnedRegion, Transfer};
//! use kvstrata_mem::Region;
//!
//! let cuda = match Cuda::open() {
//!     Ok(cuda) => cuda,
//!     Err(e) => {
//!         assert_eq!(e.kind(), ErrorKind::Unavailable);
//!         return Ok(());
//!     }
//! };
//! let device = cuda.device(0)?;
//! let (host, gpu) = (PinnedRegion::new(&device, 1 << 20)?, DeviceRegion::new(&device, 1 << 20)?);
//! let stream = device.stream()?;
//! let up = Transfer { to: gpu.base(), from: host.base(), bytes: 1 << 20 };
//! // SAFETY: both regions outlive the wait, and nobody else uses them.
//! unsafe { stream.copy(up) }?;
//! stream.synchronize()?;
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! - Regions: [`PinnedRegion`] is host memory that the copy engine reaches at full speed, [`DeviceRegion`] is a GPU's, and
//!   [`HostRegistrations`] pins regions that somebody else made: anonymous, memfd or shared memory.
//! - [`Stream`]s order copies; [`Event`]s mark places in them, for other streams, other processes, and the host.
//! - [`ipc`] hands device memory and events to another process.
//! - [`Device`] knows its ordinal, UUID, PCIe address and NUMA node. The ordinal counts what `CUDA_VISIBLE_DEVICES` shows;
//!   the UUID stays the same.
//!
//! What it deliberately does not do: launch kernels, own an allocator, decide which way bytes go, or read the environment.
//! It never hands out write-combined memory, which the CPU reads at a crawl.
//!
//! The driver's answers are numbers here, never an enum: a newer driver has more of them. So functions are looked up one by one in the
//! library that cudarc opens, and those that older drivers lack are optional.

mod api;
mod blocking;
mod copy;
mod device;
mod error;
mod event;
pub mod ipc;
pub mod measure;
mod region;
mod registered;
mod stream;

pub use copy::Transfer;
pub use device::{Cuda, Current, Device, PciAddress, Uuid};
pub use event::{Event, EventUse};
pub use region::{DeviceRegion, DriverRegion, OnDevice, Pinned, PinnedRegion};
pub use registered::{HostRegistration, HostRegistrations};
pub use stream::{RawStream, Stream};
