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
use kvstrata_l2_paths::{Member, Paths, PathsOptions};
use kvstrata_manager::{AdapterOptions, InFlight, L2Id};
use kvstrata_policy::{Place, Sharding};

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
    /// Survive: one for each path.
    disks: Vec<SimDisk>,
    /// Whether it is to be there after the next start.
    pub(crate) present: bool,
    pub(crate) open: Option<Open>,
    /// So many of its disks do not move, from this one on.
    stalled: usize,
    from: usize,
    starts: u64,
}

pub(crate) struct Open {
    pub(crate) id: L2Id,
    /// Its removal has begun.
    pub(crate) leaving: bool,
    /// One for each path, which the others go on without.
    injectors: Vec<Injector>,
    mock: Option<Mock>,
}

/// What is open before the manager has it.
pub(crate) struct Opened {
    pub(crate) adapter: Adapter,
    injectors: Vec<Injector>,
    mock: Option<Mock>,
}

impl Tier {
    pub(crate) fn new(at: usize, plan: TierPlan) -> Self {
        let disk = |n: u64| {
            SimDisk::new(SimOptions {
                // Names are free here, and directories are not in the store's account.
                capacity: plan.capacity * UNIT,
                mode: SimMode::Stepped { seed: plan.seed.wrapping_add(n) },
                ..SimOptions::default()
            })
        };
        let disks = if plan.kind == TierKind::Mock { 0 } else { plan.paths };
        Self {
            plan,
            name: format!("tier-{at}"),
            disks: (0..disks).map(disk).collect(),
            present: plan.present,
            open: None,
            stalled: 0,
            from: 0,
            starts: 0,
        }
    }

    /// Makes an adapter over what there is. Its faults are off.
    pub(crate) fn adapter(&mut self, cx: &Context, layouts: &[Layout]) -> Result<Opened, String> {
        self.starts += 1;
        if self.plan.kind == TierKind::Mock {
            let gib = self.plan.capacity as f64 * UNIT as f64 / (1u64 << 30) as f64;
            let config = MockConfig {
                name: self.name.clone(),
                delay_ms: self.plan.seed % 3,
                ..MockConfig::new(gib, 1.0)
            };
            let mock = Mock::open(&config, cx.clone()).map_err(|e| e.to_string())?;
            let injector = self.faulty(0, mock.adapter(), cx)?;
            return Ok(Opened { adapter: injector.adapter(), injectors: vec![injector], mock: Some(mock) });
        }
        let mut injectors = Vec::new();
        for n in 0..self.disks.len() {
            let store = self.store(n, cx, layouts)?;
            injectors.push(self.faulty(n as u64, store, cx)?);
        }
        let adapter = match &injectors[..] {
            [one] => one.adapter(),
            each => self.over_paths(each, cx)?,
        };
        Ok(Opened { adapter, injectors, mock: None })
    }

    /// The store on the disk of this number.
    fn store(&self, n: usize, cx: &Context, layouts: &[Layout]) -> Result<Adapter, String> {
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
        let id = self.plan.seed.wrapping_add(self.starts * 16 + n as u64);
        let cx = FsContext {
            disk: Arc::new(self.disks[n].clone()),
            l2: cx.clone(),
            writer: kvstrata_disk::Writer { pid: 1, id },
            namespaces: vec![namespace],
        };
        Ok(FsStore::open(&config, cx).map_err(|e| e.to_string())?.adapter())
    }

    fn faulty(&self, n: u64, inner: Adapter, cx: &Context) -> Result<Injector, String> {
        let rate = self.plan.fault_percent as f64 / 100.0;
        let seed = (self.plan.seed.wrapping_add(n) >> 1) as i64;
        let config = FaultConfig { hang_ms: None, ..FaultConfig::new(rate, seed, &FAULTS) };
        let injector = Injector::new(inner, &config, cx.clone()).map_err(|e| e.to_string())?;
        injector.arm(false);
        Ok(injector)
    }

    /// The stores together, each with its own faults and its own breaker.
    fn over_paths(&self, each: &[Injector], cx: &Context) -> Result<Adapter, String> {
        let member = |(n, injector): (usize, &Injector)| Member {
            place: Place { name: n.to_string(), weight: 1 + n as u32 % 2, devices: vec![] },
            adapter: Ok(injector.adapter()),
            open: None,
        };
        let members = each.iter().enumerate().map(member).collect();
        let options = PathsOptions {
            breaker: BreakerOptions {
                consecutive: self.plan.breaker.max(1),
                cool_down: self.cool_down(),
                ..PathsOptions::default().breaker
            },
            // Few, so that a path also comes back empty.
            remembered: 4,
            ..PathsOptions::default()
        };
        let paths = Paths::new(&self.name, Sharding::ByKey, members, options, cx.clone());
        Ok(paths.map_err(|e| e.to_string())?.adapter())
    }

    fn cool_down(&self) -> Duration {
        Duration::from_millis(10 + self.plan.seed % 1000)
    }

    /// How the manager is to treat it.
    pub(crate) fn options(&self, weight: u32) -> AdapterOptions {
        let breaker = BreakerOptions {
            consecutive: self.plan.breaker,
            cool_down: self.cool_down(),
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

    pub(crate) fn opened(&mut self, id: L2Id, opened: Opened) {
        let Opened { injectors, mock, .. } = opened;
        self.open = Some(Open { id, leaving: false, injectors, mock });
    }

    /// Of several paths one more at a time fails, and the first of them is another one each time.
    pub(crate) fn faults(&mut self, on: bool) {
        let Some(open) = &self.open else { return };
        if on {
            self.from += 1;
            open.injectors[self.from % open.injectors.len()].arm(true);
        } else {
            open.injectors.iter().for_each(|injector| injector.arm(false));
        }
    }

    /// Everything works again.
    pub(crate) fn heal(&mut self) {
        self.hang(false);
        for injector in self.open.iter().flat_map(|open| &open.injectors) {
            injector.arm(false);
            injector.release();
        }
    }

    /// Its device stops, or goes on; of several paths one more stops.
    pub(crate) fn hang(&mut self, on: bool) {
        match self.open.as_ref().and_then(|open| open.mock.as_ref()) {
            Some(mock) if on => mock.hang(),
            Some(mock) => mock.resume(),
            None if on => {
                self.from += usize::from(self.stalled == 0);
                self.stalled += 1;
            }
            None => self.stalled = 0,
        }
    }

    /// Carries out one piece of its disks' work; whether there was any.
    pub(crate) fn step(&self) -> bool {
        let n = self.disks.len();
        let stalled = |at: usize| (at + n - self.from % n) % n < self.stalled;
        (0..n).filter(|at| !stalled(*at)).any(|at| self.disks[at].engine().step())
    }

    pub(crate) fn has_disk(&self) -> bool {
        !self.disks.is_empty()
    }

    /// Files on each disk take so many bytes, and may take so many.
    pub(crate) fn space(&self) -> impl Iterator<Item = (u64, u64)> {
        let space = |disk: &SimDisk| disk.space(Path::new("/")).ok();
        let capacity = self.plan.capacity * UNIT;
        self.disks.iter().filter_map(space).map(move |space| (space.total - space.available, capacity))
    }

    /// The machine stops; what is found afterwards.
    pub(crate) fn crash(&mut self, crash: Crash) {
        (self.open, self.stalled) = (None, 0);
        for disk in &mut self.disks {
            *disk = disk.crash(crash);
        }
    }
}
