//! Memory and files that the kernel has been told of beforehand: it need not look up the pages or the file for each
//! transfer any more.
//!
//! Both are registered when they have been used a few times. So memory that holds nothing is not made to by being pinned,
//! and a file that is opened for one object costs nothing. What cannot be registered is used without.

use std::collections::HashMap;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, Weak};

use kvstrata_mem::RegionId;

use super::sys::{BUFFERS, FILES, Ring, Target};
use super::{Command, Shared};
use crate::os::OsFile;

/// Regions are registered in stretches: pinning takes the thread a few milliseconds for each of this size.
const STRETCH: usize = 64 << 20;
/// Uses after which it is worth it.
const USES: u32 = 16;

/// The memory that a ring knows.
#[derive(Debug)]
pub(super) struct Buffers {
    on: bool,
    regions: HashMap<RegionId, Vec<Stretch>>,
    free: Vec<u16>,
    /// Places from here on were never used.
    fresh: u32,
}

#[derive(Clone, Copy, Debug)]
enum Stretch {
    Used(u32),
    Registered(u16),
    Refused,
}

/// A region that will say when it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) id: RegionId,
    pub(super) len: usize,
}

impl Buffers {
    pub(super) fn new(ring: &Ring) -> Self {
        let on = said("memory", ring.table_of_buffers());
        Self { on, regions: HashMap::new(), free: Vec::new(), fresh: 0 }
    }

    pub(super) fn added(&mut self, region: Known) {
        if self.on {
            self.regions.insert(region.id, vec![Stretch::Used(0); region.len.div_ceil(STRETCH)]);
        }
    }

    pub(super) fn removed(&mut self, ring: &Ring, region: RegionId) {
        for stretch in self.regions.remove(&region).into_iter().flatten() {
            // A place that cannot be emptied is not used again.
            if let Stretch::Registered(at) = stretch
                && ring.forget_buffer(at).is_ok()
            {
                self.free.push(at);
            }
        }
    }

    /// The place of the table that has these bytes of a live buffer: `len` from `offset` on in a region that starts at
    /// `base` and has `region_len`.
    pub(super) fn place(
        &mut self,
        ring: &Ring,
        region: Known,
        base: NonNull<u8>,
        offset: usize,
        len: usize,
    ) -> Option<u16> {
        if !self.on || len == 0 || offset / STRETCH != (offset + len - 1) / STRETCH {
            return None;
        }
        let n = offset / STRETCH;
        let stretch = self.regions.get_mut(&region.id)?.get_mut(n)?;
        match stretch {
            Stretch::Registered(at) => return Some(*at),
            Stretch::Refused => return None,
            Stretch::Used(uses) if *uses < USES => {
                *uses += 1;
                return None;
            }
            Stretch::Used(_) => {}
        }
        *stretch = Stretch::Refused;
        let at = self.free.pop().or_else(|| {
            let at = (self.fresh < BUFFERS).then_some(self.fresh as u16);
            self.fresh += u32::from(at.is_some());
            at
        })?;
        let len = STRETCH.min(region.len - n * STRETCH);
        let base = base.map_addr(|base| base.saturating_add(n * STRETCH));
        // SAFETY: a part of a region that a buffer lies in, so it is mapped.
        match unsafe { ring.register_buffer(at, base, len) } {
            Ok(()) => *stretch = Stretch::Registered(at),
            Err(e) => {
                self.free.push(at);
                self.on = said("memory", Err(e));
            }
        }
        match stretch {
            Stretch::Registered(at) => Some(*at),
            _ => None,
        }
    }
}

/// What a file knows of the table that it is in.
#[derive(Debug, Default)]
pub(in crate::os) struct Seat {
    uses: AtomicU32,
    place: OnceLock<Place>,
}

/// A place in a ring's table of files; given back when dropped.
#[derive(Debug)]
struct Place {
    ring: Weak<Shared>,
    at: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.upgrade() {
            ring.command(Command::Closed(self.at));
        }
    }
}

/// The files that a ring knows.
#[derive(Debug)]
pub(super) struct Files {
    on: bool,
    free: Vec<u32>,
    fresh: u32,
}

impl Files {
    pub(super) fn new(ring: &Ring) -> Self {
        Self { on: said("files", ring.table_of_files()), free: Vec::new(), fresh: 0 }
    }

    /// How a transfer names the file.
    pub(super) fn target(&mut self, ring: &Ring, shared: &Arc<Shared>, file: &OsFile) -> Target {
        let fd = file.file.as_raw_fd();
        if let Some(place) = file.seat.place.get() {
            let here = std::ptr::eq(place.ring.as_ptr(), Arc::as_ptr(shared));
            return if here { Target::Registered(place.at) } else { Target::Open(fd) };
        }
        if !self.on || file.seat.uses.fetch_add(1, Relaxed) < USES {
            return Target::Open(fd);
        }
        let free = self.free.pop().or_else(|| (self.fresh < FILES).then_some(self.fresh));
        let Some(at) = free else { return Target::Open(fd) };
        if at == self.fresh {
            self.fresh += 1;
        }
        if let Err(e) = ring.set_file(at, Some(fd)) {
            self.free.push(at);
            self.on = said("files", Err(e));
            return Target::Open(fd);
        }
        match file.seat.place.set(Place { ring: Arc::downgrade(shared), at }) {
            Ok(()) => Target::Registered(at),
            // Another ring was faster; the place comes back as a command.
            Err(_) => Target::Open(fd),
        }
    }

    /// The file of this place is gone.
    pub(super) fn closed(&mut self, ring: &Ring, at: u32) {
        // A place that cannot be emptied keeps its file open, and is not used again.
        if ring.set_file(at, None).is_ok() {
            self.free.push(at);
        }
    }
}

/// Whether it worked; if not, it is said once, because it is not tried again.
fn said(what: &str, result: Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(e) => {
            let why = match e.raw_os_error() {
                Some(libc::ENOMEM) => "the limit of locked memory (ulimit -l) is too low",
                _ => "this kernel refuses it",
            };
            let e: Error = e;
            tracing::info!(error = %e, why, "io_uring goes on without registered {what}");
            false
        }
    }
}
