//! Sizes and times as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::{Serialize, Serializer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A number of bytes: `4096`, `"64KB"`, `"1.5GiB"`.
///
/// `KB`, `MB`, `GB` and `TB` are powers of two, like their `KiB` spellings: LMCache's `*_gb` names count 2^30 bytes, and
/// two meanings of one letter in one file would be a trap. Fractions of a byte are cut off.
///
/// ```
/// use kvstrata_config::ByteSize;
/// assert_eq!("1.5GiB".parse(), Ok(ByteSize(3 << 29)));
/// assert_eq!("64 kb".parse(), Ok(ByteSize(65536)));
/// assert_eq!(ByteSize(3 << 29).to_string(), "1536MiB");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many GiB, which may be a fraction.
    ///
    /// # Errors
    /// [`BadSize`] for a negative number, NaN, or more bytes than an `i64` counts.
    pub fn from_gib(gib: f64) -> Result<Self, BadSize> {
        Self::scaled(gib, GIB)
    }

    /// The size in GiB.
    pub fn gib(self) -> f64 {
        self.0 as f64 / GIB as f64
    }

    /// `number` times `unit` bytes.
    pub(crate) fn scaled(number: f64, unit: u64) -> Result<Self, BadSize> {
        let bytes = number * unit as f64;
        if number.is_nan() {
            Err(BadSize("a size is a number, and this is none"))
        } else if number < 0.0 {
            Err(BadSize("a size cannot be negative"))
        } else if bytes >= i64::MAX as f64 {
            Err(BadSize("the size is beyond any machine"))
        } else {
            Ok(Self(bytes as u64))
        }
    }

    /// A size whose bare number counts `unit` bytes; a unit in the text wins.
    pub(crate) fn parse_in(text: &str, unit: u64) -> Result<Self, BadSize> {
        let text = text.trim();
        let split =
            text.find(|c: char| c.is_ascii_alphabetic() && !is_exponent(text, c)).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let number = match number.trim() {
            // "nan" and "inf" are words here, not units.
            "" | "-" | "+" => return Err(BadSize::FORM),
            n => n.parse::<f64>().map_err(|_| BadSize::FORM)?,
        };
        let unit = match suffix.trim().to_ascii_lowercase().as_str() {
            "" => unit,
            "b" | "bytes" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(BadSize::FORM),
        };
        Self::scaled(number, unit)
    }
}

/// Whether the `e` of `1e9` is what was found, rather than a unit.
fn is_exponent(text: &str, c: char) -> bool {
    matches!(c, 'e' | 'E') && text.parse::<f64>().is_ok()
}

impl FromStr for ByteSize {
    type Err = BadSize;
    fn from_str(text: &str) -> Result<Self, BadSize> {
        Self::parse_in(text, 1)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or text like \"1.5GiB\"")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(n))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<ByteSize, E> {
                u64::try_from(n).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<ByteSize, E> {
                ByteSize::scaled(n, 1).map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(V)
    }
}

/// Why a text is no size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadSize(&'static str);

impl BadSize {
    const FORM: Self = Self("a size is a number with or without a unit: 4096, \"64KB\", \"1.5GiB\"");
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadSize {}

/// A length of time in serde data: `10` or `1.5` (seconds), `"250ms"`, `"10s"`, `"2m"`, `"1h"`.
pub(crate) mod span {
    use super::*;

    const FORM: &str = "a time is a number of seconds, or text like \"250ms\", \"10s\", \"2m\"";

    pub(crate) fn from_seconds(seconds: f64) -> Result<Duration, &'static str> {
        Duration::try_from_secs_f64(seconds).map_err(|_| "a time is a number of seconds that is not negative")
    }

    pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
        let text = text.trim();
        let split =
            text.find(|c: char| c.is_ascii_alphabetic() && !is_exponent(text, c)).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: f64 = number.trim().parse().map_err(|_| FORM)?;
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "ms" => 1e-3,
            "" | "s" | "sec" | "secs" | "seconds" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(FORM),
        };
        from_seconds(number * unit)
    }

    pub(crate) fn text(span: Duration) -> String {
        let ms = span.as_secs_f64() * 1e3;
        if span.subsec_nanos() == 0 { format!("{}s", span.as_secs()) } else { format!("{ms}ms") }
    }

    pub(crate) fn serialize<S: Serializer>(span: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&text(*span))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Duration, E> {
                Ok(Duration::from_secs(n))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Duration, E> {
                from_seconds(n as f64).map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Duration, E> {
                from_seconds(n).map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
                parse(text).map_err(E::custom)
            }
        }
        d.deserialize_any(V).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_and_written_so_that_they_read_back() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("64KB", 65536),
            ("64KiB", 65536),
            ("1.5GiB", 3 << 29),
            ("1.5 gb", 3 << 29),
            (" 2t ", 2 << 40),
            ("1e3", 1000),
            ("0.1KiB", 102),
        ];
        for (text, bytes) in table {
            let size: ByteSize = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        assert_eq!(ByteSize::from_gib(0.30517578125).unwrap().0, 5_000 * 65_536);
    }

    #[test]
    fn what_is_no_size_says_why() {
        for bad in ["", "-", "GiB", "nan", "inf", "1.5XB", "1 2", "0x10", "1,5GB", "--1"] {
            assert_eq!(bad.parse::<ByteSize>(), Err(BadSize::FORM), "{bad:?}");
        }
        assert!("-1GiB".parse::<ByteSize>().unwrap_err().to_string().contains("negative"));
        assert!("9e30".parse::<ByteSize>().unwrap_err().to_string().contains("beyond"));
        assert!(ByteSize::from_gib(f64::NAN).is_err());
        assert!(ByteSize::from_gib(f64::INFINITY).is_err());
        assert!(ByteSize::from_gib(-0.5).is_err());
    }

    #[test]
    fn times_are_read_and_written_so_that_they_read_back() {
        for (text, ms) in [("10", 10_000), ("1.5", 1500), ("250ms", 250), ("10s", 10_000), ("2m", 120_000)] {
            let span = span::parse(text).unwrap();
            assert_eq!(span, Duration::from_millis(ms), "{text}");
            assert_eq!(span::parse(&span::text(span)), Ok(span), "{text}");
        }
        for bad in ["", "-1", "nan", "inf", "ten", "1y", "1e400"] {
            assert!(span::parse(bad).is_err(), "{bad:?}");
        }
    }
}
