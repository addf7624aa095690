/// How much the owner's tier holds: what it said, or the most that was ever resident.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Space {
    told: Option<u64>,
    peak: u64,
    entries: usize,
}

impl Space {
    pub(crate) fn tell(&mut self, weight: u64) {
        self.told = Some(weight);
    }

    /// Learns from what is resident now.
    pub(crate) fn see(&mut self, weight: u64, entries: usize) {
        self.peak = self.peak.max(weight);
        self.entries = self.entries.max(entries);
    }

    pub(crate) fn weight(&self) -> u64 {
        self.told.unwrap_or(self.peak)
    }

    /// The most entries that were resident at once: the bound of the ghosts.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }
}
