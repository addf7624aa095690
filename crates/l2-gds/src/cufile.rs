//! cuFile in this process: its driver, the files and the memory that it knows.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Weak};

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_cufile_sys::{
    BoolParam, Driver, Failure, FileHandle, Library, RegisteredBuffer, Search, SizeParam, Status, StringParam,
};
use kvstrata_io::OsFile;
use kvstrata_mem::{Region, RegionId, RegionKind, RegionWatch};
use parking_lot::Mutex;

use crate::device::Gpus;

pub(crate) const O_DIRECT: i32 = 0o40000;

/// cuFile, open. Dropped in the order of the fields: handles and memory are deregistered, then the driver is closed; the
/// regions are unmapped after that, if nobody else has them.
#[derive(Debug)]
pub(crate) struct Cufile {
    handles: Mutex<HashMap<usize, Known>>,
    buffers: Mutex<HashMap<RegionId, Registered>>,
    gpus: Arc<dyn Gpus>,
    driver: Arc<Driver>,
}

#[derive(Debug)]
struct Known {
    handle: Arc<FileHandle>,
    file: Weak<OsFile>,
}

/// Memory that cuFile has pinned. It is deregistered before it can be unmapped: by the order of the fields.
#[derive(Debug)]
struct Registered {
    _buffer: RegisteredBuffer,
    region: Arc<dyn Region>,
}

/// An error of cuFile's as one of ours, in words.
pub(crate) fn failed(operation: &'static str, failure: Failure) -> Error {
    match failure.errno() {
        Some(errno) => {
            Error::io(operation, std::io::Error::from_raw_os_error(errno)).with("call", failure.call)
        }
        None => Error::new(ErrorKind::Io, operation, failure.to_string()),
    }
}

/// Runs `work` in a GPU's context, and gives what it gives.
pub(crate) fn within<T>(gpus: &dyn Gpus, ordinal: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (mut work, mut out) = (Some(work), None);
    gpus.within(ordinal, &mut || out = work.take().map(|work| work()))?;
    out.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "enter GPU context", "the work was not run")))
}

/// Finds the library.
///
/// # Errors
/// `Unavailable` with everything that was tried.
pub(crate) fn library(search: &Search) -> Result<Arc<Library>> {
    // SAFETY: the names are NVIDIA's, or one that the settings give as that.
    unsafe { Library::open(search) }
        .map_err(|e| Error::new(ErrorKind::Unavailable, "open libcufile", e.to_string()))
}

/// Opens the driver so that it goes through the host, or so that it fails rather than do that.
///
/// May never return: only after a child process has come back from it.
///
/// # Errors
/// `Unavailable` with the reason in words.
pub(crate) fn driver(library: &Arc<Library>, compat: bool) -> Result<Arc<Driver>> {
    const OP: &str = "open cuFile";
    let unavailable = |f: Failure| Error::new(ErrorKind::Unavailable, OP, f.to_string());
    if let Some(hazard) = kvstrata_cufile_sys::open_hazard() {
        return Err(Error::new(ErrorKind::Unavailable, OP, hazard));
    }
    // cuFile is one per process: somebody else may have it open, and then nothing can be set any more. What is set decides.
    match library.set_bool(BoolParam::ALLOW_COMPAT_MODE, compat) {
        Err(f) if f.status() != Some(Status::DRIVER_ALREADY_OPEN) => return Err(unavailable(f)),
        _ => {}
    }
    // It writes a log into the current folder unless told otherwise.
    let _ = library.set_string(StringParam::LOGGING_LEVEL, "ERROR");
    let _ = library.set_string(StringParam::LOGFILE_PATH, "/dev/null");
    let _ = library.set_size(SizeParam::PER_BUFFER_CACHE_SIZE_KB, 16 << 10);
    let driver = library.open_driver().map_err(unavailable)?;
    match library.bool(BoolParam::ALLOW_COMPAT_MODE) {
        Ok(allowed) if allowed != compat => Err(Error::new(
            ErrorKind::Unavailable,
            OP,
            format!("this process has cuFile open already, with allow_compat_mode {allowed}"),
        )),
        Ok(_) => Ok(driver),
        Err(f) => Err(unavailable(f)),
    }
}

/// An open file once more, by another descriptor. The store opens its files with O_NOFOLLOW, and cuFile refuses a file that
/// was opened with any flag that it does not know (5019).
fn reopened(file: &OsFile, direct: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let open = |write| {
        let flags = if direct { O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(&path)
    };
    // A device that may only be read still gives what it has.
    open(true).or_else(|e| match e.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => open(false),
        _ => Err(e),
    })
}

impl Cufile {
    pub(crate) fn new(driver: Arc<Driver>, gpus: Arc<dyn Gpus>) -> Self {
        Self { handles: Mutex::default(), buffers: Mutex::default(), gpus, driver }
    }

    /// The handle of an open file. With `keep` it is registered once, as long as the file is open: for files in which many
    /// objects lie. `direct` is how it was opened.
    pub(crate) fn handle(&self, file: &Arc<OsFile>, direct: bool, keep: bool) -> Result<Arc<FileHandle>> {
        let register = || {
            let own = reopened(file, direct).map_err(|e| Error::io("open file for cuFile", e))?;
            FileHandle::register(&self.driver, own)
                .map(Arc::new)
                .map_err(|f| failed("register file with cuFile", f))
        };
        if !keep {
            return register();
        }
        let at = Arc::as_ptr(file) as usize;
        let mut handles = self.handles.lock();
        if let Some(known) = handles.get(&at)
            && known.file.upgrade().is_some_and(|of| Arc::ptr_eq(&of, file))
        {
            return Ok(Arc::clone(&known.handle));
        }
        handles.retain(|_, known| known.file.strong_count() > 0);
        let handle = register()?;
        handles.insert(at, Known { handle: Arc::clone(&handle), file: Arc::downgrade(file) });
        Ok(handle)
    }

    fn forget(&self, registered: Option<Registered>) {
        let mut registered = registered;
        let Some(gpu) = registered.as_ref().and_then(|r| self.gpus.owner(&*r.region).ok()) else { return };
        if let Err(error) = self.gpus.within(gpu, &mut || drop(registered.take())) {
            tracing::warn!(%error, "the GPU's context is not there any more");
        }
    }

    /// How many files and regions are registered now.
    pub(crate) fn registered(&self) -> (usize, usize) {
        (self.handles.lock().len(), self.buffers.lock().len())
    }
}

impl Drop for Cufile {
    fn drop(&mut self) {
        self.handles.get_mut().clear();
        let buffers: Vec<_> = self.buffers.get_mut().drain().map(|(_, registered)| registered).collect();
        buffers.into_iter().for_each(|registered| self.forget(Some(registered)));
    }
}

impl RegionWatch for Cufile {
    fn added(&self, region: &Arc<dyn Region>) {
        if region.kind() != RegionKind::Device {
            return;
        }
        let registered = self.gpus.owner(&**region).and_then(|gpu| {
            within(&*self.gpus, gpu, || {
                // SAFETY: the region stays mapped as long as the value, which has a handle on it, and this thread has its
                // GPU's context. Transfers that use it hold their buffers, for which the region's owner waits.
                unsafe { RegisteredBuffer::register(&self.driver, region.base(), region.len()) }
                    .map_err(|f| failed("register GPU memory with cuFile", f))
            })
        });
        match registered {
            Ok(buffer) => {
                let registered = Registered { _buffer: buffer, region: Arc::clone(region) };
                self.buffers.lock().insert(region.id(), registered);
            }
            Err(error) => {
                tracing::warn!(%error, bytes = region.len(), "GPU memory is not registered; cuFile copies in between");
            }
        }
    }

    fn removed(&self, region: &Arc<dyn Region>) {
        if region.kind() == RegionKind::Device {
            let registered = self.buffers.lock().remove(&region.id());
            self.forget(registered);
        }
    }
}
