//! Memory that other processes may map.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result, Retry};

use super::map::{Fallback, HugePages, Mapping, RegionOptions, check, no_huge_pages};
use super::{Region, RegionId, RegionKind};

/// Memory behind a nameless file: whoever is handed its descriptor may map it.
///
/// The size is sealed, so that no holder of the descriptor can cut the memory off under another one.
pub struct MemfdRegion {
    id: RegionId,
    // Unmapped before the descriptor is closed.
    mapping: Mapping,
    fd: OwnedFd,
    fallbacks: Vec<Fallback>,
}

impl MemfdRegion {
    /// A region of `len` bytes. `name` shows up in `/proc/PID/maps` and need not be unique.
    ///
    /// # Errors
    /// As [`crate::MmapRegion::new`]; `Invalid` also for a name that is longer than 249 bytes or has a NUL.
    pub fn new(name: &str, len: usize, options: &RegionOptions) -> Result<Arc<Self>> {
        const OP: &str = "map memfd";
        options.check(OP, len)?;
        let c_name = CString::new(name).ok().filter(|n| n.as_bytes().len() <= 249);
        let c_name = c_name.ok_or_else(|| {
            Error::invalid(OP, "a memfd name has at most 249 bytes and no NUL").with("name", name)
        })?;
        let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        if options.huge_pages == HugePages::Explicit {
            flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        }
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c_name.as_ptr(), flags) };
        check(fd).map_err(|e| match options.huge_pages {
            HugePages::Explicit => no_huge_pages(OP, len, e),
            _ => Error::io(OP, e).with("name", name),
        })?;
        // SAFETY: the descriptor is fresh and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        size(OP, &fd, len, options)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: no memory is passed.
        let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        check(rc).map_err(|e| Error::io(OP, e).with("step", "seal the size"))?;
        let (mapping, fallbacks) = Mapping::new(OP, len, Some(fd.as_fd()), options)?;
        Ok(Arc::new(Self { id: RegionId::unique(), mapping, fd, fallbacks }))
    }

    /// The options that were asked for and are not in effect.
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }
}

/// What to do with a shared-memory object that already has the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stale {
    /// Refuse, and say whether anybody holds it.
    #[default]
    Refuse,
    /// Replace it if no living [`ShmRegion`] holds it. Processes that still map the old one keep what they have.
    Replace,
}

/// Named POSIX shared memory (`/dev/shm/NAME`) that processes of the same user may open: mode 0600, unlinked on drop.
///
/// While the region lives it holds an advisory lock (`flock`) on the object, which is how a living owner is told from
/// the remains of a dead one. Unlike a memfd its size cannot be sealed: a process of the same user that truncates the
/// object takes the memory away under everybody.
pub struct ShmRegion {
    id: RegionId,
    mapping: Mapping,
    object: Object,
    fallbacks: Vec<Fallback>,
}

impl ShmRegion {
    /// A region of `len` bytes under `name`, with or without its leading slash.
    ///
    /// The file system's free space is checked first: a page that finds none when it is first written is a `SIGBUS`.
    /// Others may still fill the file system afterwards; with `prefault` the space is truly set aside.
    ///
    /// # Errors
    /// As [`crate::MmapRegion::new`]; `Invalid` also for a bad name and for explicit huge pages, which POSIX shared
    /// memory does not have; `Busy` if a living owner holds the name, or the remains of a dead one and `stale` is
    /// [`Stale::Refuse`]; `NoSpace` if the file system has too little room.
    pub fn create(name: &str, len: usize, options: &RegionOptions, stale: Stale) -> Result<Arc<Self>> {
        const OP: &str = "create shared memory";
        let c_name = shm_name(OP, name)?;
        if options.huge_pages == HugePages::Explicit {
            let message =
                "POSIX shared memory has no explicit huge pages: choose transparent ones, or a memfd";
            return Err(Error::invalid(OP, message).with("huge_pages", "explicit"));
        }
        options.check(OP, len)?;
        let object = Object::create(OP, c_name, stale)?;
        check_room(OP, &object.fd, len)?;
        size(OP, &object.fd, len, options)?;
        let (mapping, fallbacks) = Mapping::new(OP, len, Some(object.fd.as_fd()), options)?;
        Ok(Arc::new(Self { id: RegionId::unique(), mapping, object, fallbacks }))
    }

    /// The name that others open, with its leading slash.
    pub fn name(&self) -> &str {
        self.object.name.to_str().unwrap_or_default()
    }

    /// The options that were asked for and are not in effect.
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }

    /// Commits the pages of a range of bytes, whoever uses them already: for a thread that faults the memory in behind a
    /// server that is running. Blocks for as long as the kernel takes.
    ///
    /// # Errors
    /// `Invalid` for a range that does not begin with a page or leaves the region; `Unsupported` before Linux 5.14; and what
    /// the system says if there is no memory.
    pub fn populate(&self, range: std::ops::Range<usize>) -> Result<()> {
        self.mapping.populate("fault in shared memory", range)
    }
}

/// The name of an object, its descriptor, and the lock on it. Unlinked when dropped.
struct Object {
    name: CString,
    fd: OwnedFd,
}

impl Object {
    fn create(op: &'static str, name: CString, stale: Stale) -> Result<Self> {
        let with_name = |e: Error| e.with("name", name.to_string_lossy());
        let exclusive = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let fd = match open(&name, exclusive) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                clear_the_way(op, &name, stale).map_err(with_name)?;
                open(&name, exclusive)
            }
            done => done,
        };
        let fd = fd.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Busy, op, "another process took the name"),
            _ => Error::io(op, e),
        });
        let fd = fd.map_err(with_name)?;
        // Not an `Object` before the lock is ours: a rival that mistook the fresh object for a stale one has won.
        lock(&fd).map_err(|_| with_name(Error::new(ErrorKind::Busy, op, "another process took the name")))?;
        let object = Self { name, fd };
        // SAFETY: no memory is passed. (The umask may have cut the mode.)
        let rc = unsafe { libc::fchmod(object.fd.as_raw_fd(), 0o600) };
        check(rc).map_err(|e| Error::io(op, e).with("step", "set mode 0600"))?;
        Ok(object)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // Only what is still ours: somebody may have unlinked it and taken the name.
        let named = open(&self.name, libc::O_RDONLY).and_then(|fd| identity(&fd));
        if let (Ok(named), Ok(own)) = (named, identity(&self.fd))
            && named == own
        {
            // SAFETY: the name is a C string.
            unsafe { libc::shm_unlink(self.name.as_ptr()) };
        }
    }
}

/// Unlinks an object that nobody holds.
fn clear_the_way(op: &'static str, name: &CString, stale: Stale) -> Result<()> {
    let busy = |message: &str| Error::new(ErrorKind::Busy, op, message);
    let old = match open(name, libc::O_RDWR) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        old => old.map_err(|e| Error::io(op, e).with("step", "open what has the name"))?,
    };
    lock(&old).map_err(|_| busy("a living process holds shared memory of this name: choose another name"))?;
    if stale == Stale::Refuse {
        let message = "shared memory of this name is left from a process that is gone: \
                       allow it to be replaced, or remove it from /dev/shm";
        return Err(busy(message).retrying(Retry::Never));
    }
    // With its lock held nobody else removes it. If it lost the name meanwhile, it is no longer ours to remove.
    let named = open(name, libc::O_RDONLY).and_then(|fd| identity(&fd));
    if named.ok() == identity(&old).ok() {
        // SAFETY: the name is a C string.
        check(unsafe { libc::shm_unlink(name.as_ptr()) })
            .map_err(|e| Error::io(op, e).with("step", "unlink the stale object"))?;
    }
    Ok(())
}

fn shm_name(op: &'static str, name: &str) -> Result<CString> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let good = (1..=250).contains(&bare.len()) && !bare.contains(['/', '\0']) && bare != "." && bare != "..";
    let c_name = CString::new(format!("/{bare}")).ok().filter(|_| good);
    c_name.ok_or_else(|| {
        let message = "a shared-memory name has 1 to 250 bytes and no slash but a leading one";
        Error::invalid(op, message).with("name", format!("{name:?}"))
    })
}

fn open(name: &CString, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::shm_open(name.as_ptr(), flags | libc::O_CLOEXEC, 0o600 as libc::c_uint) };
    check(fd)?;
    // SAFETY: the descriptor is fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn lock(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })
}

/// What tells one object from another under the same name.
fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let meta = std::fs::File::from(fd.try_clone()?).metadata()?;
    use std::os::unix::fs::MetadataExt;
    Ok((meta.dev(), meta.ino()))
}

fn check_room(op: &'static str, fd: &OwnedFd, len: usize) -> Result<()> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the structure outlives the call.
    let rc = unsafe { libc::fstatvfs(fd.as_raw_fd(), stat.as_mut_ptr()) };
    check(rc).map_err(|e| Error::io(op, e).with("step", "ask for free space"))?;
    // SAFETY: the call succeeded, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // A tmpfs without a size limit reports no blocks at all.
    if stat.f_blocks > 0 && free < len as u64 {
        let message = "/dev/shm has too little free space: remount it larger \
                       (`mount -o remount,size=… /dev/shm`, --shm-size of a container)";
        return Err(Error::new(ErrorKind::NoSpace, op, message).with("len", len).with("free", free));
    }
    Ok(())
}

/// Gives the object its size; with `prefault` its pages too, so that a lack of them is an error and not a signal.
fn size(op: &'static str, fd: &OwnedFd, len: usize, options: &RegionOptions) -> Result<()> {
    let bytes = libc::off_t::try_from(len).map_err(|e| Error::invalid(op, e.to_string()).with("len", len))?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes) })
        .map_err(|e| Error::io(op, e).with("step", "set the size").with("len", len))?;
    if options.prefault {
        // SAFETY: no memory is passed.
        check(unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, bytes) }).map_err(|e| {
            match options.huge_pages {
                HugePages::Explicit => no_huge_pages(op, len, e),
                _ => Error::io(op, e).with("prefault", len),
            }
        })?;
    }
    Ok(())
}

// SAFETY: the range is mapped from an object that holds its size, and stays so until the value is dropped.
unsafe impl Region for MemfdRegion {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }
    fn len(&self) -> usize {
        self.mapping.len()
    }
    fn kind(&self) -> RegionKind {
        RegionKind::Shared
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

// SAFETY: as above; nobody but processes of this user could truncate the object.
unsafe impl Region for ShmRegion {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }
    fn len(&self) -> usize {
        self.mapping.len()
    }
    fn kind(&self) -> RegionKind {
        RegionKind::Shared
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.object.fd.as_fd())
    }
}

impl fmt::Debug for MemfdRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemfdRegion({} bytes)", self.mapping.len())
    }
}

impl fmt::Debug for ShmRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShmRegion({}, {} bytes)", self.name(), self.mapping.len())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;
    use crate::region::machine;
    use crate::{Allocate, Slab};

    const LEN: usize = 256 << 10;

    fn unused_name(what: &str) -> String {
        format!("/kvstrata-test-{what}-{}", std::process::id())
    }

    fn path(name: &str) -> PathBuf {
        PathBuf::from("/dev/shm").join(&name[1..])
    }

    fn create(name: &str, stale: Stale) -> Result<Arc<ShmRegion>> {
        ShmRegion::create(name, LEN, &RegionOptions::default(), stale)
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn pages_are_committed_later_under_those_who_use_them() {
        let region = create(&unused_name("populate"), Stale::Refuse).expect("map");
        let mut buf = Slab::new(vec![region.clone()])
            .expect("slab")
            .pool("p", LEN as u64)
            .reserve(8, 4096)
            .expect("room");
        buf.write_at(0, b"in use").expect("inside");
        match region.populate(0..LEN / 2) {
            Ok(()) => assert_eq!(region.mapping.resident(), LEN / 2 / machine::page_size()),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}"),
        }
        let mut read = [0; 6];
        buf.read_at(0, &mut read).expect("inside");
        assert_eq!(&read, b"in use");
        for bad in [1..4096, 0..LEN + 1, std::ops::Range { start: 4096, end: 0 }] {
            assert_eq!(region.populate(bad).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    /// What another process would see through the descriptor.
    fn through_fd(region: &dyn Region, at: usize, n: usize) -> Vec<u8> {
        let fd = region.shared_fd().expect("shared").try_clone_to_owned().expect("duplicate");
        let mut seen = vec![0; n];
        fs::File::from(fd).read_exact_at(&mut seen, at as u64).expect("read");
        seen
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn a_memfd_is_seen_through_its_descriptor_and_keeps_its_size() {
        let region = MemfdRegion::new("kvstrata-test", LEN, &RegionOptions::default()).expect("memfd");
        assert_eq!((region.kind(), region.len()), (RegionKind::Shared, LEN));
        let slab = Slab::new(vec![region.clone()]).expect("slab");
        let mut buffer = slab.pool("cache", LEN as u64).reserve(10_000, 4096).expect("room");
        buffer.write_at(9_995, b"chunk").expect("inside");
        assert_eq!(through_fd(&*region, buffer.extent().offset + 9_995, 5), b"chunk");
        let file =
            fs::File::from(region.shared_fd().expect("shared").try_clone_to_owned().expect("duplicate"));
        for len in [0, LEN as u64 * 2] {
            let e = file.set_len(len).expect_err("sealed");
            assert_eq!(e.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn a_named_object_is_private_to_the_user_and_gone_after_the_drop() {
        let name = unused_name("life");
        let region = create(&name[1..], Stale::Refuse).expect("create");
        assert_eq!((region.name(), region.kind()), (name.as_str(), RegionKind::Shared));
        let meta = fs::metadata(path(&name)).expect("there");
        assert_eq!((meta.permissions().mode() & 0o777, meta.len()), (0o600, LEN as u64));
        let slab = Slab::new(vec![region.clone()]).expect("slab");
        let mut buffer = slab.pool("cache", LEN as u64).reserve(4096, 4096).expect("room");
        buffer.write_at(0, b"chunk").expect("inside");
        assert_eq!(fs::read(path(&name)).expect("read")[..5], *b"chunk");
        assert_eq!(through_fd(&*region, 0, 5), b"chunk");
        drop((slab, region));
        assert!(path(&name).exists(), "a buffer keeps the memory");
        drop(buffer);
        assert!(!path(&name).exists());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn a_living_owner_keeps_the_name() {
        let name = unused_name("living");
        let owner = create(&name, Stale::Refuse).expect("create");
        for stale in [Stale::Refuse, Stale::Replace] {
            let e = create(&name, stale).expect_err("held");
            assert_eq!(e.kind(), ErrorKind::Busy);
            assert!(e.message().contains("living process"), "{e}");
        }
        drop(owner);
        drop(create(&name, Stale::Refuse).expect("free again"));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn what_a_dead_owner_left_is_refused_or_replaced() {
        let name = unused_name("stale");
        fs::write(path(&name), b"left over").expect("write");
        let e = create(&name, Stale::Refuse).expect_err("stale");
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.message().contains("left from a process that is gone"), "{e}");
        assert_eq!(fs::read(path(&name)).expect("untouched"), b"left over");
        let region = create(&name, Stale::Replace).expect("replaced");
        assert_eq!(fs::metadata(path(&name)).expect("there").len(), LEN as u64);
        // Somebody takes the name away: what they put there is not ours to remove.
        fs::remove_file(path(&name)).expect("remove");
        fs::write(path(&name), b"another").expect("write");
        drop(region);
        assert_eq!(fs::read(path(&name)).expect("still there"), b"another");
        fs::remove_file(path(&name)).expect("remove");
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn bad_names_are_refused_before_anything_is_made() {
        let long = "x".repeat(251);
        for name in ["", "/", ".", "/..", "a/b", "//a", "a\0b", &long] {
            let e = create(name, Stale::Replace).expect_err("bad name");
            assert_eq!(e.kind(), ErrorKind::Invalid, "{name:?}");
            assert!(e.to_string().contains("name: \""), "{e}");
        }
        let e = MemfdRegion::new(&long, LEN, &RegionOptions::default()).expect_err("long");
        assert_eq!(e.kind(), ErrorKind::Invalid);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn sizes_that_do_not_fit_leave_nothing_behind() {
        let name = unused_name("size");
        let plain = RegionOptions::default();
        for len in [0, 4097, 1 << 60] {
            let e = ShmRegion::create(&name, len, &plain, Stale::Refuse).expect_err("bad size");
            assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
            assert_eq!(MemfdRegion::new("m", len, &plain).expect_err("bad size").kind(), ErrorKind::Invalid);
        }
        let explicit = RegionOptions { huge_pages: HugePages::Explicit, ..plain };
        let e = ShmRegion::create(&name, 2 << 20, &explicit, Stale::Refuse).expect_err("no such pages");
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(!path(&name).exists());
        let object =
            Object::create("test", shm_name("test", &name).expect("good"), Stale::Refuse).expect("create");
        let e = check_room("test", &object.fd, usize::MAX).expect_err("no tmpfs is that large");
        assert_eq!(e.kind(), ErrorKind::NoSpace);
        assert!(e.to_string().contains("/dev/shm") && e.to_string().contains("free: "), "{e}");
        drop(object);
        assert!(!path(&name).exists());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn prefaulted_shared_memory_has_all_its_pages() {
        let options = RegionOptions { prefault: true, ..Default::default() };
        let region = MemfdRegion::new("m", LEN, &options).expect("memfd");
        assert_eq!(region.mapping.resident(), LEN / machine::page_size());
        let lazy = MemfdRegion::new("m", LEN, &RegionOptions::default()).expect("memfd");
        assert_eq!(lazy.mapping.resident(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn huge_pages_behind_shared_memory_work_or_are_reported() {
        let options = RegionOptions { huge_pages: HugePages::Transparent, ..Default::default() };
        let region = MemfdRegion::new("m", 4 << 20, &options).expect("memfd");
        assert_eq!(region.base().addr().get() % (2 << 20), 0);
        let off = machine::transparent_setting("shmem_enabled").map_or(true, |s| s == "never" || s == "deny");
        assert_eq!(!region.fallbacks().is_empty(), off, "{:?}", region.fallbacks());
        let all = machine::machine_memory() as usize & !((2 << 20) - 1);
        let options = RegionOptions { huge_pages: HugePages::Explicit, ..Default::default() };
        let e = MemfdRegion::new("m", all, &options).expect_err("more than the reserve");
        assert!(matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Unavailable), "{e}");
    }
}
