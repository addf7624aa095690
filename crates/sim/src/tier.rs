//! An adapter of a run: what survives, and what is opened over it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Layout, Namespace};
use kvstrata_io::{Crash, Disk, SimDisk, SimMode, SimOptions};
use kvstrata_l2::{Adapter, BreakerOptions, Context, LimitOptions};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore, LayoutChoice};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{AdapterOptions, InFlight, L2Id};

use crate::plan::{TierKind, TierPlan};

pub(crate) const MODEL: &str = "model";
const UNIT: u64 = 4096;

/// The classes that happen by chance. A panic is one of them.
const FAULTS: [Fault; 11] = [
    Fault::Error,
    Fault::Delay,
    Fault::Hang,
    Fault::TornWrite,
    Fault::Truncation,
    Fault::BitFlip,
    Fault::Swap,
    Fault::LostWrite,
    Fault::NoSpace,
    Fault::StaleListing,
    Fault::Panic,
];

pub(crate) struct Tier {
    plan: TierPlan,
    name: String,
    /// Survives.
    disk: Option<SimDisk>,
    /// Whether it is to be there after the next start.
    pub(crate) present: bool,
    pub(crate) open: Option<Open>,
    /// The disk does not move.
    stalled: bool,
    starts: u64,
}

pub(crate) struct Open {
    pub(crate) id: L2Id,
    /// Its removal has begun.
    pub(crate) leaving: bool,
    injector: Injector,
    mock: Option<Mock>,
}

impl Tier {
    pub(crate) fn new(at: usize, plan: TierPlan) -> Self {
        let disk = (plan.kind != TierKind::Mock).then(|| {
            SimDisk::new(SimOptions {
                // Names are free here, and directories are not in the store's account.
                capacity: plan.capacity * UNIT,
                mode: SimMode::Stepped { seed: plan.seed },
                ..SimOptions::default()
            })
        });
        Self {
            plan,
            name: format!("tier-{at}"),
            disk,
            present: plan.present,
            open: None,
            stalled: false,
            starts: 0,
        }
    }

    /// Makes an adapter over what there is. Its faults are off.
    pub(crate) fn adapter(
        &mut self,
        cx: &Context,
        layouts: &[Layout],
    ) -> Result<(Adapter, Injector, Option<Mock>), String> {
        self.starts += 1;
        let (inner, mock) = match &self.disk {
            None => {
                let gib = self.plan.capacity as f64 * UNIT as f64 / (1u64 << 30) as f64;
                let config = MockConfig {
                    name: self.name.clone(),
                    delay_ms: self.plan.seed % 3,
                    ..MockConfig::new(gib, 1.0)
                };
                let mock = Mock::open(&config, cx.clone()).map_err(|e| e.to_string())?;
                (mock.adapter(), Some(mock))
            }
            Some(disk) => {
                let config = FsConfig {
                    name: self.name.clone(),
                    max_capacity_gb: self.plan.capacity as f64 * UNIT as f64 / (1u64 << 30) as f64,
                    num_workers: 2,
                    layout: match self.plan.kind {
                        TierKind::Slab => LayoutChoice::Slab,
                        TierKind::Files | TierKind::Mock => LayoutChoice::Files,
                    },
                    ..FsConfig::new("/store")
                };
                let namespace = Namespace {
                    model: MODEL.into(),
                    world_size: 1,
                    chunk_tokens: 256,
                    hash_schema: kvstrata_core::chunk::SCHEMA_LMCACHE_BLAKE3,
                    layout: layouts[0].clone(),
                };
                let writer = kvstrata_disk::Writer { pid: 1, id: self.plan.seed.wrapping_add(self.starts) };
                let cx = FsContext {
                    disk: Arc::new(disk.clone()),
                    l2: cx.clone(),
                    writer,
                    namespaces: vec![namespace],
                };
                (FsStore::open(&config, cx).map_err(|e| e.to_string())?.adapter(), None)
            }
        };
        let rate = self.plan.fault_percent as f64 / 100.0;
        let config =
            FaultConfig { hang_ms: None, ..FaultConfig::new(rate, (self.plan.seed >> 1) as i64, &FAULTS) };
        let injector = Injector::new(inner, &config, cx.clone()).map_err(|e| e.to_string())?;
        injector.arm(false);
        Ok((injector.adapter(), injector, mock))
    }

    /// How the manager is to treat it.
    pub(crate) fn options(&self, weight: u32) -> AdapterOptions {
        let breaker = BreakerOptions {
            consecutive: self.plan.breaker,
            cool_down: Duration::from_millis(10 + self.plan.seed % 1000),
            ..BreakerOptions::default()
        };
        let limit = LimitOptions {
            in_flight: self.plan.limit * UNIT,
            for_loads: self.plan.limit * UNIT / 4,
            waiting: self.plan.limit * UNIT / 2,
        };
        AdapterOptions {
            weight,
            breaker: (self.plan.breaker > 0).then_some(breaker),
            limit: if self.plan.limit > 0 { InFlight::Of(limit) } else { InFlight::Unlimited },
            stores: true,
        }
    }

    pub(crate) fn opened(&mut self, id: L2Id, injector: Injector, mock: Option<Mock>) {
        self.open = Some(Open { id, leaving: false, injector, mock });
    }

    pub(crate) fn faults(&self, on: bool) {
        if let Some(open) = &self.open {
            open.injector.arm(on);
        }
    }

    /// Everything works again.
    pub(crate) fn heal(&mut self) {
        self.hang(false);
        let Some(open) = &self.open else { return };
        open.injector.arm(false);
        open.injector.release();
    }

    /// Its device stops, or goes on.
    pub(crate) fn hang(&mut self, on: bool) {
        match self.open.as_ref().and_then(|open| open.mock.as_ref()) {
            Some(mock) if on => mock.hang(),
            Some(mock) => mock.resume(),
            None => self.stalled = on,
        }
    }

    /// Carries out one piece of its disk's work; whether there was any.
    pub(crate) fn step(&self) -> bool {
        !self.stalled && self.disk.as_ref().is_some_and(|disk| disk.engine().step())
    }

    pub(crate) fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Files on the disk take so many bytes, and may take so many.
    pub(crate) fn space(&self) -> Option<(u64, u64)> {
        let space = self.disk.as_ref()?.space(Path::new("/")).ok()?;
        Some((space.total - space.available, self.plan.capacity * UNIT))
    }

    /// The machine stops; what is found afterwards.
    pub(crate) fn crash(&mut self, crash: Crash) {
        (self.open, self.stalled) = (None, false);
        if let Some(disk) = &mut self.disk {
            *disk = disk.crash(crash);
        }
    }
}
