//! Adapters come and go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{
    Adapter, Breaker, BreakerOptions, BreakerState, CheckStats, Checked, Context, LimitOptions, LimitState,
    Limited, Meter, Metered, Verify,
};
use kvstrata_policy::L2Id;

use crate::machine::Tier;
use crate::manager::closed;
use crate::{AdapterUsage, Manager};

/// How the manager treats one adapter.
#[derive(Clone, PartialEq, Debug)]
pub struct AdapterOptions {
    /// Its share of the keys where a policy spreads them.
    pub weight: u32,
    /// When it is left alone for a while because it fails; `None` for never.
    pub breaker: Option<BreakerOptions>,
    /// The bytes it may hold, and those that may wait for it.
    pub limit: InFlight,
    /// Whether it is stored to. One that is not is only loaded from.
    pub stores: bool,
}

/// A limit on the bytes in flight to and from an adapter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InFlight {
    /// A quarter of the cache budget in flight, but at least 64 MiB, and as many waiting: from 256 MiB on, a slow or hanging
    /// adapter never pins more than half of L1. None where L1 is only a buffer: there a chunk that is refused is lost.
    Fitting,
    /// None but the budgets of L1.
    Unlimited,
    /// This one.
    Of(LimitOptions),
}

impl Default for AdapterOptions {
    fn default() -> Self {
        Self { weight: 1, breaker: Some(BreakerOptions::default()), limit: InFlight::Fitting, stores: true }
    }
}

impl From<u32> for AdapterOptions {
    /// The defaults, with this weight.
    fn from(weight: u32) -> Self {
        Self { weight, ..Self::default() }
    }
}

/// An adapter and what stands around it, from the outside in: the digest check, the meter, the breaker, the limit.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub(crate) id: L2Id,
    pub(crate) adapter: Adapter,
    pub(crate) checks: Arc<CheckStats>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) breaker: Option<Arc<BreakerState>>,
    pub(crate) limit: Option<Arc<LimitState>>,
}

impl Attached {
    fn new(
        id: L2Id,
        mut adapter: Adapter,
        options: AdapterOptions,
        fitting: Option<LimitOptions>,
        verify: Verify,
        cx: &Context,
    ) -> Result<Self> {
        let limit = match options.limit {
            InFlight::Fitting => fitting,
            InFlight::Unlimited => None,
            InFlight::Of(limit) => Some(limit),
        };
        let limit = limit.map(|limit| Limited::new(adapter.clone(), limit, cx)).transpose()?;
        adapter = limit.as_ref().map_or(adapter, |limited| limited.adapter.clone());
        let breaker = options.breaker.map(|b| Breaker::new(adapter.clone(), b, cx)).transpose()?;
        adapter = breaker.as_ref().map_or(adapter, |breaker| breaker.adapter.clone());
        let Metered { adapter, meter } = Metered::new(adapter, cx);
        let Checked { adapter, stats } = Checked::new(adapter, verify, cx.clone());
        Ok(Self {
            id,
            adapter,
            checks: stats,
            meter,
            breaker: breaker.map(|b| b.state),
            limit: limit.map(|l| l.state),
        })
    }

    pub(crate) fn usage(&self) -> AdapterUsage {
        AdapterUsage {
            id: self.id,
            name: self.adapter.store.desc().name.clone(),
            usage: self.adapter.usage.as_ref().map(|u| u.usage()),
            parts: self.adapter.usage.as_ref().map(|u| u.parts()).unwrap_or_default(),
            checks: self.checks.counts(),
            meter: self.meter.counts(),
            breaker: self.breaker.as_ref().map(|b| b.view()),
            in_flight: self.limit.as_ref().map(|l| l.counts()),
        }
    }
}

impl Manager {
    /// Adds an adapter behind those there are, with a breaker, a limit of bytes in flight and a meter around it. Every
    /// digest is made and checked above them. A number stands for the default options with that weight.
    ///
    /// # Errors
    /// `Invalid` if the name is taken or an option is out of range.
    pub fn add_adapter(&self, adapter: Adapter, options: impl Into<AdapterOptions>) -> Result<L2Id> {
        const OP: &str = "add adapter";
        let options = options.into();
        let (weight, stores) = (options.weight, options.stores);
        let name = adapter.store.desc().name.clone();
        let id = L2Id(self.0.next_tier.fetch_add(1, Ordering::Relaxed) as u32);
        // Whoever sees the tier sees its adapter.
        let mut adapters = self.0.adapters.write();
        let (verify, buffer) = self.0.with(|m| {
            let verify = if m.options.digests { Verify::On } else { Verify::Off };
            (verify, m.is_buffer())
        });
        let quarter = (self.0.cache.usage().limit / 4).max(64 << 20);
        let fitting = (!buffer).then(|| LimitOptions::new(quarter));
        let attached = Attached::new(id, adapter, options, fitting, verify, &self.0.cx)?;
        let breaker = attached.breaker.clone();
        self.0.with(|m| {
            if m.closed {
                return Err(closed(OP));
            }
            if m.tiers.iter().any(|t| t.name == name) {
                let e = Error::invalid(OP, "an adapter of this name is there already");
                return Err(e.with("name", &name));
            }
            m.tiers.push(Tier {
                id,
                name,
                weight,
                stores,
                draining: false,
                in_flight: 0,
                pace: None,
                breaker,
            });
            Ok(())
        })?;
        adapters.push(attached);
        Ok(id)
    }

    /// Takes an adapter out: no new work from now on, then what is in flight is waited for, then it is shut down.
    ///
    /// # Errors
    /// `NotFound`; `TimedOut` if work was in flight at the deadline: the adapter stays out of use, and removing it may be
    /// tried again; or what its own shutdown answers.
    pub async fn remove_adapter(&self, id: L2Id, within: Duration) -> Result<()> {
        const OP: &str = "remove adapter";
        let deadline = self.0.timer.now() + within;
        let known = self.0.with(|m| {
            let tier = m.tiers.iter_mut().find(|t| t.id == id).map(|t| t.draining = true);
            m.give_up(Some(id));
            tier.is_some()
        });
        self.0.quiet.notify_waiters();
        if !known {
            return Err(Error::new(ErrorKind::NotFound, OP, "no adapter has this number").with("id", id.0));
        }
        if !self.0.quiet(deadline, |m| m.is_idle(id)).await {
            return Err(Error::new(ErrorKind::TimedOut, OP, "stores are still in flight").with("id", id.0));
        }
        let Some(adapter) = self.0.adapter(id) else { return Ok(()) };
        self.0.end(&adapter, deadline).await?;
        self.0.adapters.write().retain(|other| other.id != id);
        self.0.with(|m| m.tiers.retain(|t| t.id != id));
        Ok(())
    }

    /// The adapters: number and name.
    pub fn adapters(&self) -> Vec<(L2Id, String)> {
        self.0.with(|m| m.tiers.iter().map(|t| (t.id, t.name.clone())).collect())
    }
}
