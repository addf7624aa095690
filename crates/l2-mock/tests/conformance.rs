//! The adapter against its obligations.

use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::Result;
use kvstrata_l2::Context;
use kvstrata_l2_mock::{Damage as Rot, Mock, MockConfig};
use kvstrata_testkit::conformance::{Damage, Device, Factory, Subject, Suite};

struct Mocks;

struct Switch(Mock);

impl Device for Switch {
    fn hang(&self) {
        self.0.hang();
    }
    fn resume(&self) {
        self.0.resume();
    }
}

#[async_trait::async_trait]
impl Factory for Mocks {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let gb = capacity.unwrap_or(1 << 30) as f64 / (1u64 << 30) as f64;
        let mock = Mock::open(&MockConfig::new(gb, 100.0), cx)?;
        let rot = mock.clone();
        let damage = move |damage: Damage<'_>| match damage {
            Damage::Flip(key) => rot.damage(key, Rot::Flip(1234)),
            Damage::Truncate(key) => rot.damage(key, Rot::Truncate(1234)),
            Damage::Swap(a, b) => rot.swap(a, b),
            // Descriptions live in this process's memory.
            Damage::Header(_) => false,
        };
        Ok(Subject {
            damage: Some(Box::new(damage)),
            device: Some(Arc::new(Switch(mock.clone()))),
            ..Subject::new(mock.adapter())
        })
    }
}

fn main() -> ExitCode {
    Suite::new(Mocks)
        .may_ignore(["l2_2_broken_header_is_healed", "l2_2_everything_survives_reopening"])
        .main()
}
