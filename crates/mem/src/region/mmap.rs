//! Private memory mapped from the kernel.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::Result;

use super::map::{Fallback, Mapping, RegionOptions};
use super::{Region, RegionId, RegionKind};

/// Zeroed memory that only this process maps: the usual home of a cache.
///
/// Left out of core dumps. A forked child shares the pages copy-on-write, like any private memory.
pub struct MmapRegion {
    id: RegionId,
    mapping: Mapping,
    fallbacks: Vec<Fallback>,
}

impl MmapRegion {
    /// A region of `len` bytes.
    ///
    /// # Errors
    /// `Invalid` unless `len` is a positive multiple of 4 KiB (of 2 MiB for explicit huge pages) and not more than the
    /// machine's memory, and for a NUMA node that does not exist; `NoSpace` if there is too little memory or there are
    /// too few huge pages; `Unavailable` if the machine has no explicit huge pages or memory may not be locked.
    pub fn new(len: usize, options: &RegionOptions) -> Result<Arc<Self>> {
        const OP: &str = "map private memory";
        options.check(OP, len)?;
        let (mapping, fallbacks) = Mapping::new(OP, len, None, options)?;
        Ok(Arc::new(Self { id: RegionId::unique(), mapping, fallbacks }))
    }

    /// The options that were asked for and are not in effect.
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }
}

// SAFETY: the kernel mapped the range, zeroed and at a page boundary, and it stays until the value is dropped.
unsafe impl Region for MmapRegion {
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
        RegionKind::Private
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl fmt::Debug for MmapRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmapRegion({} bytes)", self.mapping.len())
    }
}

#[cfg(test)]
mod tests {
    use kvstrata_core::ErrorKind;

    use super::*;
    use crate::region::{HugePages, machine};
    use crate::{Allocate, Slab};

    fn refusal(len: usize, options: &RegionOptions) -> kvstrata_core::Error {
        MmapRegion::new(len, options).expect_err("refused")
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn pages_are_committed_when_written_unless_prefaulted() {
        let len = 64 * machine::page_size();
        let lazy = MmapRegion::new(len, &RegionOptions::default()).expect("map");
        let slab = Slab::new(vec![lazy.clone()]).expect("slab");
        let pool = slab.pool("cache", len as u64);
        let mut buffer = pool.reserve(len, 4096).expect("room");
        assert_eq!(lazy.mapping.resident(), 0, "reserving touches nothing");
        buffer.write_at(0, &[1]).expect("inside");
        assert_eq!(lazy.mapping.resident(), 1);
        let options = RegionOptions { prefault: true, ..Default::default() };
        assert_eq!(MmapRegion::new(len, &options).expect("map").mapping.resident(), 64);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn transparent_huge_pages_begin_at_a_huge_page_or_are_reported() {
        let options =
            RegionOptions { huge_pages: HugePages::Transparent, prefault: true, ..Default::default() };
        let region = MmapRegion::new(6 << 20, &options).expect("map");
        assert_eq!(region.base().addr().get() % (2 << 20), 0);
        assert_eq!(region.len(), 6 << 20);
        let off = machine::transparent_setting("enabled").is_ok_and(|s| s == "never");
        if off {
            assert_eq!(region.fallbacks()[0].option, "huge_pages");
        }
        // The pages around it are not ours: another mapping right after it must be possible.
        let small = RegionOptions { huge_pages: HugePages::Transparent, ..Default::default() };
        let many: Vec<_> = (0..32).map(|_| MmapRegion::new(12 << 10, &small).expect("map")).collect();
        assert!(many.iter().all(|r| r.base().addr().get() % (2 << 20) == 0 && r.len() == 12 << 10));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn too_few_huge_pages_say_how_to_reserve_them() {
        let all = machine::machine_memory() as usize & !((2 << 20) - 1);
        let options = RegionOptions { huge_pages: HugePages::Explicit, ..Default::default() };
        let e = refusal(all, &options);
        let expected = [ErrorKind::NoSpace, ErrorKind::Unavailable];
        assert!(expected.contains(&e.kind()), "{e}");
        if e.kind() == ErrorKind::NoSpace {
            assert!(e.message().contains("vm.nr_hugepages"), "{e}");
        }
        let e = refusal(4096, &options);
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.message().contains("2097152"), "{e}");
    }

    #[test]
    #[ignore = "needs free huge pages: sysctl -w vm.nr_hugepages=4"]
    fn explicit_huge_pages_are_set_aside_at_once_and_given_back() {
        let before = machine::free_huge_pages().expect("a kernel with huge pages");
        for prefault in [false, true] {
            let options = RegionOptions { huge_pages: HugePages::Explicit, prefault, ..Default::default() };
            let private = MmapRegion::new(4 << 20, &options).expect("two pages");
            let shared = crate::MemfdRegion::new("huge", 4 << 20, &options).expect("two pages");
            for region in [private as Arc<dyn Region>, shared] {
                let slab = Slab::new(vec![region]).expect("slab");
                let mut all = slab.pool("cache", 4 << 20).reserve(4 << 20, 2 << 20).expect("room");
                all.write_at((4 << 20) - 1, &[7]).expect("inside");
            }
        }
        assert_eq!(machine::free_huge_pages(), Some(before));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn bad_sizes_and_nodes_are_refused_by_name() {
        let plain = RegionOptions::default();
        for len in [0, 1, 4095, 4097] {
            let e = refusal(len, &plain);
            assert_eq!(e.kind(), ErrorKind::Invalid);
            assert!(e.to_string().contains("4096") && e.to_string().contains(&format!("len: {len}")), "{e}");
        }
        let e = refusal(1 << 60, &plain);
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains("machine_memory: "), "{e}");
        let e = refusal(4096, &RegionOptions { numa_node: Some(4000), ..plain });
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains("numa_node: 4000, nodes: "), "{e}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn pages_come_from_the_chosen_node_or_that_is_reported() {
        let nodes = machine::memory_nodes();
        let node = nodes.split([',', '-']).next_back().and_then(|n| n.parse().ok());
        let Some(node) = node else {
            let e = refusal(4096, &RegionOptions { numa_node: Some(0), ..Default::default() });
            assert_eq!(e.kind(), ErrorKind::Invalid, "the kernel lists no nodes");
            return;
        };
        let options = RegionOptions { numa_node: Some(node), prefault: true, ..Default::default() };
        let region = MmapRegion::new(1 << 20, &options).expect("map");
        if let Some(fallback) = region.fallbacks().first() {
            assert_eq!(fallback.option, "numa_node");
            return;
        }
        const MPOL_F_ADDR: usize = 2;
        let mut policy: libc::c_int = -1;
        let mut mask = [0usize; 64];
        let base = region.base().as_ptr();
        // SAFETY: both results outlive the call, and the mask has as many bits as it says.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut policy,
                mask.as_mut_ptr(),
                mask.len() * 64,
                base,
                MPOL_F_ADDR,
            )
        };
        assert_eq!(rc, 0, "get_mempolicy: {}", std::io::Error::last_os_error());
        assert_eq!(policy, 1, "preferred");
        assert_eq!(mask[node as usize / 64], 1 << (node % 64));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory and asks the system")]
    fn locked_memory_is_locked_or_the_limit_is_named() {
        let options = RegionOptions { lock: true, prefault: true, ..Default::default() };
        match MmapRegion::new(64 << 10, &options) {
            Ok(region) => assert_eq!(region.mapping.resident(), (64 << 10) / machine::page_size()),
            Err(e) => assert!(e.message().contains("ulimit -l") && e.to_string().contains("limit: "), "{e}"),
        }
    }
}
