//! Adapters come and go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{Adapter, Checked, Verify};
use kvstrata_policy::L2Id;

use crate::Manager;
use crate::machine::{Machine, Tier};
use crate::manager::closed;

impl Manager {
    /// Adds an adapter behind those there are. Every digest is made and checked here, above whatever decorates it.
    ///
    /// # Errors
    /// `Invalid` if the name is taken.
    pub fn add_adapter(&self, adapter: Adapter, weight: u32) -> Result<L2Id> {
        let name = adapter.store.desc().name.clone();
        let id = L2Id(self.0.next_tier.fetch_add(1, Ordering::Relaxed) as u32);
        // Whoever sees the tier sees its adapter.
        let mut adapters = self.0.adapters.write();
        let verify = self.0.with(|m| {
            if m.closed {
                return Err(closed("add adapter"));
            }
            if m.tiers.iter().any(|t| t.name == name) {
                return Err(Error::invalid("add adapter", "an adapter of this name is there already")
                    .with("name", &name));
            }
            m.tiers.push(Tier { id, name, weight, draining: false, in_flight: 0, pace: None });
            Ok(if m.options.digests { Verify::On } else { Verify::Off })
        })?;
        adapters.push((id, Checked::new(adapter, verify, self.0.cx.clone())));
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
        let idle = |m: &mut Machine| m.tiers.iter().find(|t| t.id == id).is_none_or(|t| t.in_flight == 0);
        if !self.0.quiet(deadline, idle).await {
            return Err(Error::new(ErrorKind::TimedOut, OP, "stores are still in flight").with("id", id.0));
        }
        let Some(adapter) = self.0.adapter(id) else { return Ok(()) };
        self.0.end(&adapter, deadline).await?;
        self.0.adapters.write().retain(|(other, _)| *other != id);
        self.0.with(|m| m.tiers.retain(|t| t.id != id));
        Ok(())
    }

    /// The adapters: number and name.
    pub fn adapters(&self) -> Vec<(L2Id, String)> {
        self.0.with(|m| m.tiers.iter().map(|t| (t.id, t.name.clone())).collect())
    }
}
