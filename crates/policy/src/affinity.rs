//! Which of several paths an object is written to.
//!
//! A path is a directory or a device with a store of its own. Where an object lies is in the stores' indexes, so a choice
//! decides where the next object goes and nothing else: with another strategy, or other paths, what was stored is found all
//! the same.

use std::fmt;
use std::str::FromStr;

use kvstrata_core::Affinity;

use crate::UnknownPolicy;
use crate::names::canonical;
use crate::rendezvous::{Bid, hash, seat};

/// The strategies that [`Sharding::by_name`] knows.
pub const SHARDING_NAMES: &[&str] = &["by_gpu", "by_uuid", "map", "by_key"];

/// How a path is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sharding {
    /// The device's index modulo the number of paths, as in LMCache; the first path without a device.
    ByGpu,
    /// By rendezvous hashing of the device's UUID, so that a device keeps its path whatever the process is shown of the
    /// others; by key without a UUID.
    ByUuid,
    /// The path that names the device; by key for a device that none names.
    Map,
    /// By weighted rendezvous hashing of the key: shares are proportional to weights, and a path that comes or goes moves
    /// its own share only.
    #[default]
    ByKey,
}

impl Sharding {
    /// The strategy of this name. Case does not matter, and `-` is as good as `_`.
    ///
    /// # Errors
    /// [`UnknownPolicy`] with the names there are.
    pub fn by_name(name: &str) -> Result<Self, UnknownPolicy> {
        match canonical(name).as_str() {
            "by_gpu" => Ok(Self::ByGpu),
            "by_uuid" => Ok(Self::ByUuid),
            "map" => Ok(Self::Map),
            "by_key" => Ok(Self::ByKey),
            _ => Err(UnknownPolicy { name: name.into(), known: SHARDING_NAMES }),
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ByGpu => "by_gpu",
            Self::ByUuid => "by_uuid",
            Self::Map => "map",
            Self::ByKey => "by_key",
        }
    }
}

/// A device as a user names it: `3` or `cuda:3` by its index, `GPU-8c3c…` (or the UUID alone) by what does not change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Device {
    /// By the index that the process sees.
    Ordinal(u32),
    /// By its UUID.
    Uuid([u8; 16]),
}

impl Device {
    /// Whether a request from there comes from this device.
    pub fn is(&self, from: &Affinity) -> bool {
        match self {
            Self::Ordinal(n) => from.ordinal == Some(*n),
            Self::Uuid(uuid) => from.uuid == Some(*uuid),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordinal(n) => write!(f, "cuda:{n}"),
            Self::Uuid(uuid) => {
                f.write_str("GPU")?;
                for (i, byte) in uuid.iter().enumerate() {
                    f.write_str(if matches!(i, 0 | 4 | 6 | 8 | 10) { "-" } else { "" })?;
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

/// The text names no device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotADevice;

impl fmt::Display for NotADevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device is an index (3 or cuda:3) or a UUID (GPU- and 32 hexadecimal digits)")
    }
}

impl std::error::Error for NotADevice {}

impl FromStr for Device {
    type Err = NotADevice;

    fn from_str(text: &str) -> Result<Self, NotADevice> {
        let text = text.trim();
        let index = text.strip_prefix("cuda:").unwrap_or(text);
        if let Some(n) = index.parse().ok().filter(|_| index.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(Self::Ordinal(n));
        }
        let digits: Vec<u8> =
            text.strip_prefix("GPU-").unwrap_or(text).bytes().filter(|b| *b != b'-').collect();
        let digit = |at: usize| char::from(digits[at]).to_digit(16).map(|d| d as u8).ok_or(NotADevice);
        if digits.len() != 32 {
            return Err(NotADevice);
        }
        let mut uuid = [0; 16];
        for (i, byte) in uuid.iter_mut().enumerate() {
            *byte = digit(2 * i)? << 4 | digit(2 * i + 1)?;
        }
        Ok(Self::Uuid(uuid))
    }
}

/// One of several paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its name, by which it bids: the same name keeps the same share.
    pub name: String,
    /// Its share where keys or devices are hashed; 0 only takes what no other can.
    pub weight: u32,
    /// The devices whose path it is, with [`Sharding::Map`].
    pub devices: Vec<Device>,
}

/// Several paths and how one of them is chosen.
///
/// ```
/// use kvstrata_core::Affinity;
/// use kvstrata_policy::{Place, Places, Sharding};
///
/// let place = |name: &str| Place { name: name.into(), weight: 1, devices: vec![] };
/// let places = Places::new(Sharding::ByGpu, vec![place("/nvme0"), place("/nvme1")]);
/// let third = Affinity { ordinal: Some(3), uuid: None };
/// assert_eq!(places.choose(0, &third, |_| true), Some(1), "3 modulo 2");
/// assert_eq!(places.choose(0, &third, |at| at != 1), Some(0), "the other one, while that is out");
/// ```
#[derive(Clone, Debug)]
pub struct Places {
    sharding: Sharding,
    places: Vec<(Place, u64)>,
}

impl Places {
    /// These paths.
    pub fn new(sharding: Sharding, places: Vec<Place>) -> Self {
        let seats = places.into_iter().map(|place| (seat(&place.name), place));
        Self { sharding, places: seats.map(|(seat, place)| (place, seat)).collect() }
    }

    /// How a path is chosen.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The paths.
    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().map(|(place, _)| place)
    }

    /// The path for an object of this fingerprint that comes from there, of those that are open. The share of one that is
    /// not goes to the others by weighted hashing, so that no single one of them bears it.
    pub fn choose(&self, fingerprint: u128, from: &Affinity, open: impl Fn(usize) -> bool) -> Option<usize> {
        let n = self.places.len();
        let own = match (self.sharding, from) {
            (Sharding::ByGpu, Affinity { ordinal, .. }) if n > 0 => {
                Some(ordinal.map_or(0, |ordinal| ordinal as usize % n))
            }
            (Sharding::ByUuid, Affinity { uuid: Some(uuid), .. }) => {
                self.highest(u128::from_le_bytes(*uuid), |_| true)
            }
            // A UUID says more than an index, which another process may count otherwise.
            (Sharding::Map, from) => [true, false].into_iter().find_map(|by_uuid| {
                self.iter().position(|place| {
                    place.devices.iter().any(|d| matches!(d, Device::Uuid(_)) == by_uuid && d.is(from))
                })
            }),
            _ => None,
        };
        own.filter(|at| open(*at)).or_else(|| self.highest(fingerprint, open))
    }

    fn highest(&self, of: u128, open: impl Fn(usize) -> bool) -> Option<usize> {
        let bids = self.places.iter().enumerate().filter(|(at, _)| open(*at)).map(|(at, (place, seat))| {
            (at, Bid { weight: place.weight, hash: hash(of, *seat), name: &place.name })
        });
        bids.reduce(|a, b| if b.1.beats(&a.1) { b } else { a }).map(|(at, _)| at)
    }
}

/// A list of paths as LMCache writes it: separated by commas, blanks around each taken off, empty ones left out, and
/// `file://` before each taken off.
pub fn path_list(text: &str) -> Vec<&str> {
    let each = text.split(',').map(str::trim).map(|path| path.strip_prefix("file://").unwrap_or(path));
    each.filter(|path| !path.is_empty()).collect()
}
