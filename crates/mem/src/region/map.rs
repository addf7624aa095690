//! Mappings and their options, common to all mapped regions.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use kvstrata_core::{Error, ErrorKind, Result, Retry};

use super::machine;

/// The size of a huge page in bytes.
pub(super) const HUGE: usize = 2 << 20;

/// Which pages lie behind a region.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum HugePages {
    /// Whatever the kernel does by default.
    #[default]
    None,
    /// 2 MiB pages where the kernel can find them. Where transparent huge pages are off, that is reported as a
    /// [`Fallback`] and the region has ordinary pages.
    Transparent,
    /// 2 MiB pages from the kernel's reserve, all of them set aside at once. An error if the reserve has too few.
    Explicit,
}

/// How a region is mapped.
///
/// What only makes memory faster falls back where the machine refuses it, and says so ([`Fallback`]): transparent huge
/// pages, and a NUMA node that the process may not choose. What somebody relies on is an error instead: explicit huge
/// pages, locking, prefaulting, and a NUMA node that does not exist.
///
/// Without `prefault`, pages are committed when they are first written, so an untouched part of a region costs nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegionOptions {
    /// Which pages.
    pub huge_pages: HugePages,
    /// Commits every page now: no page fault later, and a lack of memory shows now.
    pub prefault: bool,
    /// Prefers pages of this NUMA node. A full node gives way to the next one: a strict binding would have the kernel
    /// kill the process at some later first write.
    pub numa_node: Option<u32>,
    /// Keeps committed pages from being swapped out. (Pages are still committed one by one unless `prefault` is set.)
    pub lock: bool,
}

/// An option that was asked for and is not in effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fallback {
    /// The option's name in [`RegionOptions`].
    pub option: &'static str,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not in effect: {}", self.option, self.reason)
    }
}

impl RegionOptions {
    /// Refuses what could never be mapped, before anything is.
    pub(super) fn check(&self, op: &'static str, len: usize) -> Result<()> {
        let multiple = if self.huge_pages == HugePages::Explicit { HUGE } else { crate::UNIT };
        if len == 0 || !len.is_multiple_of(multiple) {
            let message = format!("a region of such pages is a positive multiple of {multiple} bytes");
            return Err(Error::invalid(op, message).with("len", len));
        }
        let memory = machine::machine_memory();
        if len as u64 > memory {
            return Err(Error::invalid(op, "the region is larger than the memory of this machine")
                .with("len", len)
                .with("machine_memory", memory));
        }
        if let Some(node) = self.numa_node {
            let nodes = machine::memory_nodes();
            if !machine::in_list(&nodes, node) {
                let there = if nodes.is_empty() { "none that the kernel lists" } else { &nodes };
                return Err(Error::invalid(op, "there is no such NUMA node with memory")
                    .with("numa_node", node)
                    .with("nodes", there));
            }
        }
        Ok(())
    }
}

/// A readable and writable mapping; unmapped when dropped.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to the value and are reached only through `Region`, whose users synchronise.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`, or of fresh private memory, and applies the options.
    pub(super) fn new(
        op: &'static str,
        len: usize,
        fd: Option<BorrowedFd<'_>>,
        options: &RegionOptions,
    ) -> Result<(Self, Vec<Fallback>)> {
        let mut flags = if fd.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let mapping = match options.huge_pages {
            HugePages::None => Self::map(len, flags, fd),
            HugePages::Transparent => Self::map_at_huge_page(len, flags, fd),
            HugePages::Explicit => {
                if fd.is_none() {
                    flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
                }
                Self::map(len, flags, fd)
            }
        };
        let mapping = mapping.map_err(|e| match options.huge_pages {
            HugePages::Explicit => no_huge_pages(op, len, e),
            _ => Error::io(op, e).with("len", len),
        })?;
        let mut fallbacks = Vec::new();
        // What users asked their models does not belong in a core dump, nor would it fit there.
        let _ = mapping.advise(libc::MADV_DONTDUMP);
        if options.huge_pages == HugePages::Transparent
            && let Err(reason) = mapping.make_transparent(fd.is_some())
        {
            fallbacks.push(Fallback { option: "huge_pages", reason });
        }
        if let Some(node) = options.numa_node
            && let Err(e) = mapping.prefer_node(node)
        {
            fallbacks.push(Fallback { option: "numa_node", reason: format!("mbind: {e}") });
        }
        if options.lock {
            mapping.lock().map_err(|e| not_locked(op, len, e))?;
        }
        if options.prefault {
            mapping.prefault().map_err(|e| Error::io(op, e).with("prefault", len))?;
        }
        Ok((mapping, fallbacks))
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn map(len: usize, flags: libc::c_int, fd: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let base = map_raw(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd)?;
        Ok(Self { base, len })
    }

    /// Like [`Self::map`], with a base at which a huge page can begin.
    fn map_at_huge_page(len: usize, flags: libc::c_int, fd: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let room = len.next_multiple_of(machine::page_size()) + HUGE;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // The reserve unmaps what is left of it, and everything if a step fails.
        let reserved =
            Self { base: map_raw(std::ptr::null_mut(), room, libc::PROT_NONE, reserve, None)?, len: room };
        let first = reserved.base.addr().get();
        let head = first.next_multiple_of(HUGE) - first;
        // SAFETY: `head` is less than a huge page, by which the reserve is longer than `len`.
        let at = unsafe { reserved.base.add(head) };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let base = map_raw(at.as_ptr().cast(), len, prot, flags | libc::MAP_FIXED, fd)?;
        std::mem::forget(reserved);
        let end = head + len.next_multiple_of(machine::page_size());
        if head > 0 {
            drop(Self { base: NonNull::new(first as *mut u8).unwrap_or(base), len: head });
        }
        if room > end {
            let tail = (first + end) as *mut u8;
            drop(Self { base: NonNull::new(tail).unwrap_or(base), len: room - end });
        }
        Ok(Self { base, len })
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping; only advice that keeps its contents is given.
        check(unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) })
    }

    fn make_transparent(&self, shared: bool) -> Result<(), String> {
        let file = if shared { "shmem_enabled" } else { "enabled" };
        let setting = machine::transparent_setting(file)?;
        if matches!(setting.as_str(), "never" | "deny") {
            return Err(format!("transparent huge pages are off (transparent_hugepage/{file} is {setting})"));
        }
        self.advise(libc::MADV_HUGEPAGE).map_err(|e| format!("madvise: {e}"))
    }

    fn prefer_node(&self, node: u32) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_int = 1;
        let bits = usize::BITS as usize;
        let mut mask = vec![0usize; node as usize / bits + 1];
        mask[node as usize / bits] |= 1 << (node as usize % bits);
        // The kernel reads one bit less than it is told.
        let count = mask.len() * bits + 1;
        let base = self.base.as_ptr();
        // SAFETY: the range is this mapping, and the mask has that many bits.
        let rc = unsafe {
            libc::syscall(libc::SYS_mbind, base, self.len, MPOL_PREFERRED, mask.as_ptr(), count, 0usize)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        let rc =
            unsafe { libc::mlock2(self.base.as_ptr().cast(), self.len, libc::MLOCK_ONFAULT as libc::c_uint) };
        check(rc)
    }

    fn prefault(&self) -> io::Result<()> {
        match self.advise(libc::MADV_POPULATE_WRITE) {
            // Before Linux 5.14: write to each page instead.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            done => return done,
        }
        for at in (0..self.len).step_by(machine::page_size()) {
            // SAFETY: `at` is inside the mapping.
            let byte = unsafe { self.base.add(at) };
            // SAFETY: the byte is mapped; the memory is fresh, so a zero changes nothing.
            unsafe { byte.write_volatile(0) };
        }
        Ok(())
    }

    /// Commits the pages of a range while others may already use them: what is in them stays.
    pub(super) fn populate(&self, op: &'static str, range: std::ops::Range<usize>) -> Result<()> {
        if range.start > range.end
            || range.end > self.len
            || !range.start.is_multiple_of(machine::page_size())
        {
            let e = Error::invalid(op, "the range begins with a page and is inside the region");
            return Err(e.with("start", range.start).with("end", range.end).with("len", self.len));
        }
        // SAFETY: the range is inside the mapping.
        let at = unsafe { self.base.add(range.start) };
        // SAFETY: as above; this advice keeps the contents, whoever writes them at the same time.
        let rc = unsafe { libc::madvise(at.as_ptr().cast(), range.len(), libc::MADV_POPULATE_WRITE) };
        check(rc).map_err(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => {
                Error::new(ErrorKind::Unsupported, op, "this kernel cannot (it takes Linux 5.14)")
                    .caused_by(e)
            }
            _ => Error::io(op, e),
        })
    }

    /// How many pages of the mapping are in memory.
    #[cfg(test)]
    pub(super) fn resident(&self) -> usize {
        let mut pages = vec![0u8; self.len.div_ceil(machine::page_size())];
        // SAFETY: the range is this mapping, and there is a byte for each of its pages.
        let rc = unsafe { libc::mincore(self.base.as_ptr().cast(), self.len, pages.as_mut_ptr()) };
        check(rc).expect("mincore");
        pages.iter().filter(|p| **p & 1 == 1).count()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value, and its users are gone.
        let rc = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap: {}", io::Error::last_os_error());
    }
}

fn map_raw(
    at: *mut libc::c_void,
    len: usize,
    prot: libc::c_int,
    flags: libc::c_int,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<NonNull<u8>> {
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: the kernel chooses the place, or it is inside a range that the caller reserved for this.
    let base = unsafe { libc::mmap(at, len, prot, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped memory at address 0"))
}

/// An error for a system call that answered -1.
pub(super) fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says what to do when the kernel's reserve of huge pages is too small, or not there.
pub(super) fn no_huge_pages(op: &'static str, len: usize, cause: io::Error) -> Error {
    let pages = len / HUGE;
    let (kind, message) = match (cause.raw_os_error(), machine::free_huge_pages()) {
        (Some(libc::ENOMEM), Some(free)) => {
            let message = format!(
                "too few free huge pages of 2 MiB ({free}): reserve them with `sysctl -w vm.nr_hugepages=N`, {pages} more \
                 than are in use, or choose transparent huge pages"
            );
            (ErrorKind::NoSpace, message)
        }
        _ => (ErrorKind::Unavailable, format!("the kernel offers no huge pages of 2 MiB ({cause})")),
    };
    Error::new(kind, op, message)
        .retrying(Retry::Never)
        .with("len", len)
        .with("pages", pages)
        .caused_by(cause)
}

/// Says what to do when memory may not be locked.
fn not_locked(op: &'static str, len: usize, cause: io::Error) -> Error {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0;
    let message = "the memory may not be locked: raise the limit (`ulimit -l`, LimitMEMLOCK= of a service, \
                   --ulimit memlock= of a container) or grant CAP_IPC_LOCK";
    let error = Error::new(ErrorKind::Unavailable, op, message).retrying(Retry::Never).with("len", len);
    let error = if known { error.with("limit", limit.rlim_cur) } else { error };
    error.with("cause", &cause).caused_by(cause)
}
