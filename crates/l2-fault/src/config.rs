//! The adapter's keys.

use kvstrata_core::{Error, Result};
use serde::Deserialize;

use crate::{Fault, Op};

/// The classes that `rate` chooses from.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"all\", or a list of error, delay, hang, torn_write, truncation, bit_flip, swap, lost_write, \
                 no_space, stale_listing, gap, panic"
)]
pub enum Faults {
    /// Every class but `panic`.
    All(All),
    /// These. Empty: the losses of LMCache's `fault_inject` alone.
    These(Vec<Fault>),
}

/// The word `all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum All {
    /// `"all"`.
    All,
}

impl Default for Faults {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl Faults {
    pub(crate) fn classes(&self) -> Vec<Fault> {
        match self {
            Self::All(_) => Fault::ALL.into_iter().filter(|f| *f != Fault::Panic).collect(),
            Self::These(classes) => classes.clone(),
        }
    }
}

/// One rule of a script; see the crate's page.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The kind of call.
    pub op: Op,
    /// What happens.
    pub fault: Fault,
    /// Only in this call of its kind, counted from 0.
    pub batch: Option<u64>,
    /// Only at this position of the batch.
    pub index: Option<u64>,
    /// Only the key with this chunk hash, in hex.
    pub key: Option<String>,
    /// Only each n-th of the keys that match otherwise.
    pub every: Option<u64>,
    /// At most so often.
    pub times: Option<u64>,
    /// The delay of a `delay`, in milliseconds; the adapter's `delay_ms` unless set.
    pub delay_ms: Option<u64>,
}

impl Rule {
    /// This fault in every call of this kind.
    pub const fn new(op: Op, fault: Fault) -> Self {
        Self { op, fault, batch: None, index: None, key: None, every: None, times: None, delay_ms: None }
    }
}

/// The settings. `rate`, `seed`, `gap_indices` and `gap_tail_ratios` are LMCache's; `inner` and `type` belong to whoever
/// builds the adapter inside.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultConfig {
    /// The part of all keys of all calls that has a fault, from 0 to 1.
    pub rate: f64,
    /// What the choice is made from.
    pub seed: i64,
    /// Positions of a load's batch that are always lost.
    pub gap_indices: Vec<u64>,
    /// As `gap_indices`, counted from the tail as a part of the batch: 0 is the last key, 1 the first.
    pub gap_tail_ratios: Vec<f64>,
    /// The classes that `rate` chooses from.
    pub faults: Faults,
    /// Faults by rule.
    pub script: Vec<Rule>,
    /// How long a delay is, in milliseconds; 10 unless set.
    pub delay_ms: u64,
    /// How long a hang is, in milliseconds; until it is released unless set.
    pub hang_ms: Option<u64>,
}

impl Default for FaultConfig {
    fn default() -> Self {
        Self {
            rate: 0.0,
            seed: 0,
            gap_indices: Vec::new(),
            gap_tail_ratios: Vec::new(),
            faults: Faults::default(),
            script: Vec::new(),
            delay_ms: 10,
            hang_ms: None,
        }
    }
}

impl FaultConfig {
    /// The keys it takes, as they stand in settings.
    pub const KEYS: [&'static str; 8] =
        ["rate", "seed", "gap_indices", "gap_tail_ratios", "faults", "script", "delay_ms", "hang_ms"];

    /// Faults of these classes at this rate.
    pub fn new(rate: f64, seed: i64, faults: &[Fault]) -> Self {
        Self { rate, seed, faults: Faults::These(faults.to_vec()), ..Self::default() }
    }

    /// Faults by these rules.
    pub fn scripted(script: Vec<Rule>) -> Self {
        Self { script, ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` with the field and what it takes.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, value: &dyn std::fmt::Display, message: &str| {
            Err(Error::invalid("read fault_inject settings", message).with(field, value))
        };
        if !(0.0..=1.0).contains(&self.rate) {
            return bad("rate", &self.rate, "a rate is a number from 0 to 1");
        }
        if let Some(ratio) = self.gap_tail_ratios.iter().find(|r| !(0.0..=1.0).contains(*r)) {
            return bad("gap_tail_ratios", ratio, "each is a number from 0 (the last key) to 1 (the first)");
        }
        for (n, rule) in self.script.iter().enumerate() {
            let Rule { op, fault, key, every, .. } = rule;
            let at = format!("rule {n}");
            if !fault.applies(*op) {
                let can = Op::ALL.into_iter().filter(|op| fault.applies(*op)).map(Op::name);
                let can = can.collect::<Vec<_>>().join(", ");
                let message = format!("{} can happen to: {can}", fault.name());
                return bad("script", &format_args!("{at}: {} {}", op.name(), fault.name()), &message);
            }
            if *every == Some(0) {
                return bad("script", &format_args!("{at}: every 0"), "every is a number from 1");
            }
            let hex = |key: &String| {
                (2..=128).contains(&key.len())
                    && key.len().is_multiple_of(2)
                    && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            };
            if let Some(key) = key.as_ref().filter(|key| !hex(key)) {
                let message = "a key is a chunk hash: 1 to 64 bytes in lower-case hex";
                return bad("script", &format_args!("{at}: key {key:?}"), message);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FaultConfig, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn lmcaches_keys_are_enough_and_ours_are_optional() {
        assert_eq!(parse("{}").unwrap(), FaultConfig::default());
        let c = parse(r#"{"rate":0.01,"seed":-7,"gap_indices":[2],"gap_tail_ratios":[0.5,1]}"#).unwrap();
        assert_eq!((c.rate, c.seed, c.gap_indices.as_slice()), (0.01, -7, [2].as_slice()));
        assert_eq!((c.gap_tail_ratios.as_slice(), c.faults), ([0.5, 1.0].as_slice(), Faults::default()));
        let c = parse(
            r#"{"rate":1,"faults":"all","hang_ms":5,"script":[{"op":"get","every":3,"fault":"swap"}]}"#,
        )
        .unwrap();
        assert_eq!(c.faults.classes().len(), Fault::ALL.len() - 1);
        assert_eq!(c.script, [Rule { every: Some(3), ..Rule::new(Op::Get, Fault::Swap) }]);
        let c = parse(r#"{"faults":["bit_flip","panic"]}"#).unwrap();
        assert_eq!(c.faults.classes(), [Fault::BitFlip, Fault::Panic]);
    }

    #[test]
    fn bad_fields_are_named() {
        for (text, says) in [
            (r#"{"rat":1}"#, "rat"),
            (r#"{"seed":true}"#, "invalid type"),
            (r#"{"gap_indices":[-1]}"#, "-1"),
            (r#"{"faults":["bitflip"]}"#, "torn_write"),
            (r#"{"script":[{"op":"get"}]}"#, "fault"),
            (r#"{"script":[{"op":"load","fault":"error"}]}"#, "probe"),
            (r#"{"script":[{"op":"get","fault":"error","nth":1}]}"#, "nth"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
        for (text, field, says) in [
            (r#"{"rate":1.5}"#, "rate", "from 0 to 1"),
            (r#"{"gap_tail_ratios":[0,2]}"#, "gap_tail_ratios", "from 0"),
            (r#"{"script":[{"op":"list","fault":"hang"}]}"#, "script", "put, get, probe, remove"),
            (r#"{"script":[{"op":"get","fault":"error","every":0}]}"#, "script", "from 1"),
            (r#"{"script":[{"op":"get","fault":"error","key":"0G"}]}"#, "script", "hex"),
        ] {
            let e = parse(text).unwrap().validate().unwrap_err();
            assert_eq!(e.context().next().unwrap().0, field, "{e}");
            assert!(e.to_string().contains(says), "{text}: {e}");
        }
    }
}
