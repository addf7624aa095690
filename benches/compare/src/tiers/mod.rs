//! Whole tiers beside each other: the storage manager of this project with its file adapter, and what others have there.

pub(crate) mod blocks;
pub(crate) mod disk;
pub(crate) mod lmcache;
pub(crate) mod memory;
mod ours;

use kvstrata_benches::{Bar, Figures, least, median};

/// Seconds per unit of one side, by round.
type Rounds = Vec<f64>;

/// The work of one side, as a row: the best round, and the middle of the rounds' ratios to ours.
struct Side<'a> {
    label: &'a str,
    seconds: &'a Rounds,
    ours: &'a Rounds,
}

impl Side<'_> {
    fn ratio(&self) -> f64 {
        median(self.seconds.iter().zip(self.ours).map(|(a, b)| a / b).collect())
    }

    /// A cell of a time, with the ratio in brackets where it is not our own.
    fn cell(&self, text: &str) -> String {
        if std::ptr::eq(self.seconds, self.ours) {
            text.into()
        } else {
            format!("{text} ({:.2}×)", self.ratio())
        }
    }

    /// Adds a bar in the unit that `value` gives.
    fn bar(&self, table: &mut Figures, chart: usize, group: &str, value: f64) {
        table.charts[chart].bars.push(Bar { group: group.into(), label: self.label.into(), value });
    }

    fn least(&self) -> f64 {
        least(self.seconds)
    }
}

/// Bytes that no two numbers share, and that do not compress.
fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut state = (number + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
