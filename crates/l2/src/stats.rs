//! What the checked handle counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Miss;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one [`crate::Checked`] handle, shared with whoever shows them.
        #[derive(Debug, Default)]
        pub struct CheckStats {
            misses: [AtomicU64; Miss::ALL.len()],
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters at one moment. They only grow.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct CheckCounts {
            /// Loads that missed, in the order of [`Miss::ALL`].
            pub misses: [u64; Miss::ALL.len()],
            $($(#[$doc])* pub $name: u64,)*
        }

        impl CheckStats {
            /// Now.
            pub fn counts(&self) -> CheckCounts {
                CheckCounts {
                    misses: std::array::from_fn(|i| self.misses[i].load(Ordering::Relaxed)),
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Keys written.
    written,
    /// Bytes of the keys written.
    written_bytes,
    /// Keys that were stored already.
    present,
    /// Stores that failed, refused ones included.
    put_failed,
    /// Keys loaded.
    loaded,
    /// Bytes of the keys loaded.
    loaded_bytes,
    /// Loads that failed, refused ones included.
    get_failed,
    /// Items refused here: a repeated key, a buffer of the wrong size or of memory that the adapter does not take.
    refused,
    /// Loads whose digest was checked and right.
    verified,
    /// Loads that were not checked because checking is off.
    unverified_off,
    /// Loads that were not checked because the object has no digest.
    unverified_no_digest,
    /// Loads that were not checked because the CPU does not read device memory.
    unverified_device,
    /// Objects removed because their bytes were wrong.
    healed,
    /// Objects with wrong bytes that could not be removed.
    unhealed,
}

impl CheckStats {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn missed(&self, miss: Miss) {
        Self::add(&self.misses[miss as usize], 1);
    }
}

impl CheckCounts {
    /// Loads that missed for this reason.
    pub fn missed(&self, miss: Miss) -> u64 {
        self.misses[miss as usize]
    }

    /// Loads that were not checked, for whatever reason.
    pub fn unverified(&self) -> u64 {
        self.unverified_off + self.unverified_no_digest + self.unverified_device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let stats = CheckStats::default();
        for (i, miss) in Miss::ALL.into_iter().enumerate() {
            assert_eq!(miss as usize, i);
            (0..=i).for_each(|_| stats.missed(miss));
        }
        assert_eq!(stats.counts().misses, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(stats.counts().missed(Miss::Digest), 3);
    }
}
