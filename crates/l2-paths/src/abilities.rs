//! Removing, listing, usage and quotas over all paths.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{
    Call, Keys, L2List, L2Quotas, L2Remove, L2Usage, ListPage, PartUsage, StoreUsage, TenantUsage, all,
};

use crate::path::{Door, Path, Way};
use crate::paths::{Inner, none_open};
use crate::{PathState, PathView, Paths};

#[async_trait]
impl L2Remove for Paths {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let _pass = match self.0.driver.enter("remove from paths", deadline) {
            Ok(pass) => pass,
            Err(e) => return keys.iter().map(|_| Err(e.clone())).collect(),
        };
        let most = self.0.options.remembered;
        let ways = self.0.look();
        let mut calls: Vec<Call<'_, (usize, Vec<Result<bool>>)>> = Vec::new();
        for (at, way) in ways.0.iter().enumerate() {
            match way {
                Way::Live(door) => {
                    let keys = Arc::clone(&keys);
                    calls.push(Box::pin(async move { (at, door.remove().remove(keys, deadline).await) }));
                }
                // It must not come back with the path.
                Way::Trial(_) | Way::None => {
                    for key in keys.iter() {
                        self.0.paths[at].note_gone(key, most);
                    }
                }
            }
        }
        let mut out: Vec<Result<bool>> = keys.iter().map(|_| Ok(false)).collect();
        for (at, removed) in all(calls).await {
            for ((out, key), removed) in out.iter_mut().zip(keys.iter()).zip(removed) {
                match (&out, removed) {
                    (Ok(false), Ok(true)) => *out = Ok(true),
                    (Ok(_), Err(e)) => {
                        // If it has gone out meanwhile, its objects are not found any more.
                        let gone = e.kind() == ErrorKind::Unavailable && {
                            self.0.look();
                            self.0.paths[at].note_gone(key, most)
                        };
                        if !gone {
                            *out = Err(e);
                        }
                    }
                    _ => {}
                }
            }
        }
        out
    }
}

#[async_trait]
impl L2List for Paths {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        const OP: &str = "list paths";
        if self.0.driver.is_closed() {
            return Err(kvstrata_l2::closed(OP));
        }
        let bad =
            || Error::invalid(OP, "this is no cursor of a listing").with("cursor", format!("{cursor:?}"));
        let (mut at, mut inner) = match cursor {
            None => (0, None),
            Some(text) => {
                let (at, inner) = text.split_once(':').ok_or_else(bad)?;
                (at.parse::<usize>().map_err(|_| bad())?, (!inner.is_empty()).then(|| inner.to_owned()))
            }
        };
        let ways = self.0.look();
        if !(0..self.0.paths.len()).any(|at| ways.is_live(at)) {
            return Err(none_open(OP));
        }
        while at < self.0.paths.len() {
            let Some(door) = ways.live(at) else {
                (at, inner) = (at + 1, None);
                continue;
            };
            let mut page = match door.list().list(inner.as_deref(), limit).await {
                Ok(page) => page,
                Err(e) if e.kind() == ErrorKind::Unavailable => ListPage::default(),
                Err(e) => return Err(e.with("path", &self.0.paths[at].place.name)),
            };
            // What an earlier path has was listed there.
            let before: Vec<usize> = (0..at).collect();
            if !before.is_empty() && !page.entries.is_empty() {
                let keys: Vec<_> = page.entries.iter().map(|(key, _)| key.clone()).collect();
                let deadline = self.0.cx.timer.now() + self.0.options.lookup;
                let mut held = self.0.holders(&keys, &before, deadline).await.into_iter();
                page.entries.retain(|_| held.next().is_none_or(|held| held.is_empty()));
            }
            let next = match page.next {
                Some(next) => (at, Some(next)),
                None => (at + 1, None),
            };
            if !page.entries.is_empty() {
                let more = next.0 < self.0.paths.len();
                let cursor = more.then(|| format!("{}:{}", next.0, next.1.unwrap_or_default()));
                return Ok(ListPage { entries: page.entries, next: cursor });
            }
            (at, inner) = next;
        }
        Ok(ListPage::default())
    }
}

impl L2Usage for Inner {
    /// The sum over the paths that are open, whether or not they are in service. Declined is what none had room for.
    fn usage(&self) -> StoreUsage {
        let open = self.paths.iter().filter(|path| path.door().is_some());
        open.map(Path::usage).fold(
            StoreUsage {
                capacity: Some(0),
                declined: self.declined.load(Ordering::Relaxed),
                ..StoreUsage::default()
            },
            |sum, one| StoreUsage {
                used: sum.used + one.used,
                capacity: sum.capacity.zip(one.capacity).map(|(a, b)| a + b),
                objects: sum.objects + one.objects,
                evicted: sum.evicted + one.evicted,
                ..sum
            },
        )
    }

    fn parts(&self) -> Vec<PartUsage> {
        let part = |view: PathView| PartUsage {
            name: view.place.name,
            state: view.state.name(),
            states: &PathState::NAMES,
            in_service: view.state == PathState::Live,
            usage: view.usage,
            errors: view.errors,
            outages: view.outages,
            why: view.why.map(|why| why.to_string()),
        };
        self.paths.iter().map(Path::view).map(part).collect()
    }
}

/// A path's share of a quota, by its weight.
fn share(bytes: u64, weight: u32, all: u64) -> u64 {
    (u128::from(bytes) * u128::from(weight) / u128::from(all.max(1))) as u64
}

impl Inner {
    fn shares(&self) -> Vec<(u32, u64)> {
        let all = self.places.iter().map(|place| u64::from(place.weight)).sum::<u64>();
        if all == 0 {
            return self.paths.iter().map(|_| (1, self.paths.len() as u64)).collect();
        }
        self.places.iter().map(|place| (place.weight, all)).collect()
    }

    fn each_quota(&self, set: impl Fn(&dyn L2Quotas, &dyn Fn(u64) -> u64) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        for (path, (weight, all)) in self.paths.iter().zip(self.shares()) {
            let door = path.door();
            if let Some(quotas) = door.as_ref().and_then(|door| door.adapter.quotas.as_ref()) {
                let result = set(&**quotas, &|bytes| share(bytes, weight, all));
                first = first.and(result.map_err(|e| e.with("path", &path.place.name)));
            }
        }
        first
    }

    /// Gives a path that has just opened the quotas that were set before.
    pub(crate) fn apply_quotas(&self, at: usize, door: &Door) {
        let Some(theirs) = door.adapter.quotas.as_ref() else { return };
        let (weight, all) = self.shares()[at];
        let quotas = self.quotas.lock();
        let mine = |bytes: Option<u64>| bytes.map(|bytes| share(bytes, weight, all));
        let default = quotas.default.map_or(Ok(()), |default| theirs.set_default_quota(mine(default)));
        let own = quotas.own.iter().try_for_each(|(salt, bytes)| theirs.set_quota(salt, mine(*bytes)));
        if let Err(error) = default.and(own) {
            tracing::warn!(%error, "a path opened without the quotas that were set before");
        }
    }
}

impl L2Quotas for Inner {
    fn set_quota(&self, salt: &str, bytes: Option<u64>) -> Result<()> {
        self.quotas.lock().own.insert(salt.to_owned(), bytes);
        self.each_quota(|quotas, share| quotas.set_quota(salt, bytes.map(share)))
    }

    fn set_default_quota(&self, bytes: Option<u64>) -> Result<()> {
        self.quotas.lock().default = Some(bytes);
        self.each_quota(|quotas, share| quotas.set_default_quota(bytes.map(share)))
    }

    fn tenants(&self) -> Vec<TenantUsage> {
        let mut all: BTreeMap<String, TenantUsage> = BTreeMap::new();
        for path in &self.paths {
            let door = path.door();
            let quotas = door.as_ref().and_then(|door| door.adapter.quotas.as_ref());
            for tenant in quotas.map(|quotas| quotas.tenants()).unwrap_or_default() {
                match all.get_mut(&tenant.salt) {
                    Some(sum) => {
                        sum.used += tenant.used;
                        sum.quota = sum.quota.zip(tenant.quota).map(|(a, b)| a + b);
                    }
                    None => {
                        all.insert(tenant.salt.clone(), tenant);
                    }
                }
            }
        }
        all.into_values().collect()
    }
}
