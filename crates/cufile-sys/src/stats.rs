//! How many transfers went which way, as the library counts them: the only proof that bytes went past the host.
//!
//! The library fills a struct whose size depends on its version, without being told how much room there is. So it gets far
//! more room than any version needs, and counters are read where the version is known to have them. A version that is not
//! known gives none, and nothing is taken for proved.

use core::ffi::{c_int, c_void};

use crate::driver::have;
use crate::status::check;
use crate::{Driver, Failure, Version};

/// What one GPU's transfers did since the counting began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GpuStats {
    /// The GPU, as the CUDA driver names it.
    pub uuid: [u8; 16],
    /// Reads and writes through the kernel's peer-to-peer DMA.
    pub p2p: [u64; 2],
    /// Reads and writes through nvidia-fs.
    pub nvfs: [u64; 2],
    /// Reads and writes through POSIX calls and a copy.
    pub posix: [u64; 2],
}

/// The room that the library gets: its largest struct so far has 5112 bytes.
const ROOM: usize = 64 << 10;
const GPUS: usize = 16;

/// `CUfilePerGpuStats_t`, of which a few words are read: the same in every version that has it.
mod gpu {
    pub(super) const SIZE: usize = 248;
    pub(super) const P2P_READS: usize = 56;
    pub(super) const NVFS_READS: usize = 64;
    pub(super) const POSIX_READS: usize = 72;
    pub(super) const P2P_WRITES: usize = 160;
    pub(super) const NVFS_WRITES: usize = 168;
    pub(super) const POSIX_WRITES: usize = 176;
}

/// Where a version keeps the number of GPUs; the GPUs follow 8 bytes later.
fn count_at(version: Version) -> Option<usize> {
    match (version.major, version.minor) {
        (1, 15..=18) => Some(1024),
        (1, 19..=20) => Some(1136),
        _ => None,
    }
}

impl Driver {
    /// Begins to count, from 0.
    ///
    /// # Errors
    /// What the library says; missing before 1.15.
    pub fn start_stats(&self) -> Result<(), Failure> {
        const PER_GPU: c_int = 3;
        let level = have("cuFileSetStatsLevel", self.calls().set_stats_level)?;
        let reset = have("cuFileStatsReset", self.calls().stats_reset)?;
        let start = have("cuFileStatsStart", self.calls().stats_start)?;
        // SAFETY: a number only.
        check("cuFileSetStatsLevel", unsafe { level(PER_GPU) })?;
        // SAFETY: takes nothing.
        check("cuFileStatsStart", unsafe { start() })?;
        // SAFETY: takes nothing.
        check("cuFileStatsReset", unsafe { reset() })
    }

    /// Ends the counting.
    ///
    /// # Errors
    /// What the library says.
    pub fn stop_stats(&self) -> Result<(), Failure> {
        let stop = have("cuFileStatsStop", self.calls().stats_stop)?;
        // SAFETY: takes nothing.
        check("cuFileStatsStop", unsafe { stop() })
    }

    /// What was counted, per GPU that had a transfer. `None` for a version whose layout is not known here.
    ///
    /// # Errors
    /// What the library says.
    pub fn gpu_stats(&self) -> Result<Option<Vec<GpuStats>>, Failure> {
        const CALL: &str = "cuFileGetStatsL3";
        let Some(at) = count_at(self.library().version()) else { return Ok(None) };
        let function = have(CALL, self.calls().get_stats_l3)?;
        let mut room = vec![0u64; ROOM / 8];
        // SAFETY: the room is larger than any version's struct, aligned for it, and outlives the call.
        check(CALL, unsafe { function(room.as_mut_ptr().cast::<c_void>()) })?;
        Ok(Some(read(&room, at)))
    }
}

/// The GPUs in a filled struct whose count is at byte `at`.
fn read(room: &[u64], at: usize) -> Vec<GpuStats> {
    // The count is 32 bits wide; the rest of the word is padding.
    let [a, b, c, d, ..] = room[at / 8].to_ne_bytes();
    let count = (u32::from_ne_bytes([a, b, c, d]) as usize).min(GPUS);
    let first = at / 8 + 1;
    let gpus = room[first..].chunks_exact(gpu::SIZE / 8).take(count);
    gpus.map(|words| {
        let word = |at: usize| words[at / 8];
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&words[0].to_ne_bytes());
        uuid[8..].copy_from_slice(&words[1].to_ne_bytes());
        GpuStats {
            uuid,
            p2p: [word(gpu::P2P_READS), word(gpu::P2P_WRITES)],
            nvfs: [word(gpu::NVFS_READS), word(gpu::NVFS_WRITES)],
            posix: [word(gpu::POSIX_READS), word(gpu::POSIX_WRITES)],
        }
    })
    .collect()
}

/// The offsets above for the version with this header, for the check against NVIDIA's header.
pub const LAYOUT: &[(&str, &str, usize)] = &[
    ("CUfileStatsLevel3", "num_gpus", 1136),
    ("CUfileStatsLevel3", "per_gpu_stats", 1144),
    ("CUfilePerGpuStats", "uuid", 0),
    ("CUfilePerGpuStats", "n_p2p_reads", gpu::P2P_READS),
    ("CUfilePerGpuStats", "n_nvfs_reads", gpu::NVFS_READS),
    ("CUfilePerGpuStats", "n_posix_reads", gpu::POSIX_READS),
    ("CUfilePerGpuStats", "n_p2p_writes", gpu::P2P_WRITES),
    ("CUfilePerGpuStats", "n_nvfs_writes", gpu::NVFS_WRITES),
    ("CUfilePerGpuStats", "n_posix_writes", gpu::POSIX_WRITES),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_where_the_version_has_them() {
        for at in [1024, 1136] {
            let mut room = vec![0u64; ROOM / 8];
            room[at / 8] = 2 | 0xdead_0000_0000;
            let second = at / 8 + 1 + gpu::SIZE / 8;
            room[second] = u64::from_ne_bytes(*b"GPU-1234");
            room[second + gpu::NVFS_READS / 8] = 7;
            room[second + gpu::POSIX_WRITES / 8] = 9;
            let gpus = read(&room, at);
            assert_eq!(gpus.len(), 2);
            assert_eq!(gpus[0], GpuStats::default());
            assert_eq!(&gpus[1].uuid[..8], b"GPU-1234");
            assert_eq!((gpus[1].nvfs, gpus[1].posix, gpus[1].p2p), ([7, 0], [0, 9], [0, 0]));
        }
    }

    #[test]
    fn a_count_past_the_table_is_cut_and_an_unknown_version_gives_nothing() {
        let mut room = vec![0u64; ROOM / 8];
        room[128] = 4_000_000;
        assert_eq!(read(&room, 1024).len(), GPUS);
        assert_eq!(count_at(Version { major: 1, minor: 14 }), None);
        assert_eq!(count_at(Version { major: 1, minor: 21 }), None);
        assert_eq!(count_at(Version { major: 1, minor: 18 }), Some(1024));
    }
}
