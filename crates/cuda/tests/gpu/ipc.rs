//! Memory of one process in another.

use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::ErrorKind;
use kvstrata_cuda::ipc::{EventHandle, ImportedRegion, MemHandle};
use kvstrata_cuda::{Cuda, Device, DeviceRegion, EventUse, HostRegistration, PinnedRegion, Transfer};
use kvstrata_mem::{Region, RegionId, RegionKind, RegionOptions, ShmRegion, Stale};
use libtest_mimic::Failed;

use crate::Gpu;
use crate::bytes::{copy, download, equal, get, pattern, set, upload};
use crate::child::{Other, listen, say};

const LEN: usize = (8 << 20) + 4096;

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn from_hex(text: &str) -> Result<[u8; 64], Failed> {
    let bytes: Vec<u8> = (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|e| Failed::from(e.to_string())))
        .collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| "a handle has 64 bytes".into())
}

fn write_handle(handle: &MemHandle) -> String {
    format!("{} {} {}", to_hex(&handle.handle), handle.offset, handle.len)
}

fn read_handle(line: &str) -> Result<MemHandle, Failed> {
    match line.split(' ').collect::<Vec<_>>()[..] {
        [handle, offset, len] => {
            Ok(MemHandle { handle: from_hex(handle)?, offset: offset.parse()?, len: len.parse()? })
        }
        _ => Err(format!("no handle: {line}").into()),
    }
}

fn device() -> Result<Arc<Device>, Failed> {
    Ok(Cuda::open()?.device(0)?)
}

/// The parent's memory is this process's too; so is its event, which the answer waits for.
pub(super) fn import() -> Result<(), Failed> {
    let device = device()?;
    let handle = read_handle(&listen()?)?;
    let ready = device.open_event(&EventHandle(from_hex(&listen()?)?))?;
    let done = device.open_event(&EventHandle(from_hex(&listen()?)?))?;
    // SAFETY: the parent keeps its region until it has heard the last word.
    let region = unsafe { ImportedRegion::open(&device, &handle) }?;
    let host = PinnedRegion::new(&device, LEN)?;
    let stream = device.stream()?;
    stream.wait(&ready)?;
    // SAFETY: both live until the wait.
    unsafe { stream.copy(Transfer { to: host.base(), from: region.base(), bytes: LEN }) }?;
    stream.synchronize()?;
    equal("the parent's bytes", &pattern(1, LEN), &get(&*host, 0, LEN))?;
    set(&*host, 0, &pattern(2, LEN));
    // SAFETY: as above; the parent waits for the event.
    unsafe { stream.copy(Transfer { to: region.base(), from: host.base(), bytes: LEN }) }?;
    stream.record(&done)?;
    say("recorded");
    listen()?;
    stream.synchronize()?;
    drop(region);
    say("closed");
    Ok(())
}

pub(super) fn shared(gpu: &Gpu) -> Result<(), Failed> {
    let region = DeviceRegion::new(&gpu.device, LEN)?;
    let host = PinnedRegion::new(&gpu.device, LEN)?;
    let stream = gpu.device.stream()?;
    let (ready, done) = (gpu.device.event(EventUse::Shared)?, gpu.device.event(EventUse::Shared)?);
    let mut other = Other::start("import", &[])?;
    set(&*host, 0, &pattern(1, LEN));
    // SAFETY: both live until the stream is waited for.
    unsafe { stream.copy(Transfer { to: region.base(), from: host.base(), bytes: LEN }) }?;
    stream.record(&ready)?;
    other.tell(&write_handle(&region.export()?))?;
    other.tell(&to_hex(&ready.export()?.0))?;
    other.tell(&to_hex(&done.export()?.0))?;
    let said = other.hear()?;
    if said != "recorded" {
        return Err(said.into());
    }
    // The other process's work is waited for in this one's stream.
    stream.wait(&done)?;
    // SAFETY: as above.
    unsafe { stream.copy(Transfer { to: host.base(), from: region.base(), bytes: LEN }) }?;
    stream.synchronize()?;
    equal("the other's bytes", &pattern(2, LEN), &get(&*host, 0, LEN))?;
    other.tell("go on")?;
    let said = other.hear()?;
    if said == "closed" { Ok(()) } else { Err(said.into()) }
}

/// Exports memory, and waits to be killed.
pub(super) fn export() -> Result<(), Failed> {
    let device = device()?;
    let region = DeviceRegion::new(&device, LEN)?;
    upload(&device, region.base(), &pattern(3, LEN))?;
    say(&write_handle(&region.export()?));
    listen()?;
    Ok(())
}

pub(super) fn killed(gpu: &Gpu) -> Result<(), Failed> {
    let mut other = Other::start("export", &[])?;
    let handle = read_handle(&other.hear()?)?;
    // SAFETY: what lies there is not read any more once the other process is gone.
    let region = unsafe { ImportedRegion::open(&gpu.device, &handle) }?;
    equal("what was exported", &pattern(3, LEN), &download(&gpu.device, region.base(), LEN)?)?;
    other.kill()?;
    drop(region);
    // A handle of nobody's.
    // SAFETY: it is not used.
    if let Ok(gone) = unsafe { ImportedRegion::open(&gpu.device, &handle) } {
        drop(gone);
        eprintln!("note: this driver opens a dead process's handle");
    }
    let own = DeviceRegion::new(&gpu.device, LEN)?;
    upload(&gpu.device, own.base(), &pattern(4, LEN))?;
    equal("our own", &pattern(4, LEN), &download(&gpu.device, own.base(), LEN)?)
}

pub(super) fn refused(gpu: &Gpu) -> Result<(), Failed> {
    let open = |handle: &MemHandle| {
        // SAFETY: nothing is done with what may come.
        unsafe { ImportedRegion::open(&gpu.device, handle) }
    };
    let good = DeviceRegion::new(&gpu.device, LEN)?.export()?;
    for (what, handle) in [
        ("no length", MemHandle { len: 0, ..good }),
        ("an odd length", MemHandle { len: 4097, ..good }),
        ("more than there is", MemHandle { len: 1 << 50, ..good }),
        ("an offset past the first page", MemHandle { offset: 8192, ..good }),
    ] {
        match open(&handle) {
            Err(e) if e.kind() == ErrorKind::Invalid => {}
            other => return Err(format!("{what}: {other:?}").into()),
        }
    }
    if open(&MemHandle { handle: [0x5a; 64], offset: 0, len: 4096 }).is_ok() {
        return Err("any 64 bytes are a handle".into());
    }
    if gpu.device.event(EventUse::Here)?.export().is_ok() {
        return Err("an event of this process alone was exported".into());
    }
    gpu.device.stream()?.synchronize()?;
    Ok(())
}

/// Shared memory of another process.
#[derive(Debug)]
struct Mapped {
    id: RegionId,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: reached only through `Region`; the two processes take turns.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn open(name: &str, len: usize) -> Result<Arc<dyn Region>, Failed> {
        use std::os::fd::AsRawFd;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(format!("/dev/shm/{name}"))?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of an open file that is as long.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let base = NonNull::new(base.cast()).ok_or("mapped at 0")?;
        Ok(Arc::new(Self { id: RegionId::unique(), base, len }))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: mapped until dropped, at a page's border; the file is zero or written.
unsafe impl Region for Mapped {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.len
    }
    fn kind(&self) -> RegionKind {
        RegionKind::Shared
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Pins the parent's memory, brings it to the GPU and other bytes back.
pub(super) fn host_child() -> Result<(), Failed> {
    let device = device()?;
    let region = Mapped::open(&listen()?, LEN)?;
    let pin = HostRegistration::new(&device, &region)?;
    let on_device = DeviceRegion::new(&device, LEN)?;
    copy(&device.stream()?, on_device.base(), region.base(), LEN)?;
    equal("the parent's bytes", &pattern(5, LEN), &download(&device, on_device.base(), LEN)?)?;
    upload(&device, on_device.base(), &pattern(6, LEN))?;
    copy(&device.stream()?, region.base(), on_device.base(), LEN)?;
    drop(pin);
    say("done");
    Ok(())
}

pub(super) fn host(gpu: &Gpu) -> Result<(), Failed> {
    let name = format!("kvstrata-gpu-ipc-{}", std::process::id());
    let region: Arc<dyn Region> = ShmRegion::create(&name, LEN, &RegionOptions::default(), Stale::Refuse)?;
    let _pin = HostRegistration::new(&gpu.device, &region)?;
    set(&*region, 0, &pattern(5, LEN));
    let mut other = Other::start("host", &[])?;
    other.tell(&name)?;
    let said = other.hear()?;
    if said != "done" {
        return Err(said.into());
    }
    let on_device = DeviceRegion::new(&gpu.device, LEN)?;
    copy(&gpu.device.stream()?, on_device.base(), region.base(), LEN)?;
    equal("the other's bytes", &pattern(6, LEN), &download(&gpu.device, on_device.base(), LEN)?)
}
