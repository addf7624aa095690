//! Room in L1 for what is to be written: who gets a buffer, and what is evicted for it.

use kvstrata_core::{Affinity, Error, ErrorKind, KeyMask, ObjectKey};
use kvstrata_evict::{Access, Admission, EvictionPolicy, Offer, Removal, admit_chain};
use kvstrata_mem::{UNIT, WriteBuf};

use crate::machine::{Granted, Machine, Room, Staged, Tier, print, weight};
use crate::{Grant, Layouts};

/// Bytes as the pools count them.
fn units(bytes: u64) -> u64 {
    bytes.next_multiple_of(UNIT as u64)
}

impl Machine {
    /// Sets buffers aside for the wanted keys of a chain, first to last. What is resident or being written is skipped. What
    /// is not admitted gets a staging buffer if there is an L2 to pass it on to. At the first key without room the rest is
    /// refused, and under [`Grant::Whole`] everything that was granted goes back.
    pub(crate) fn reserve(
        &mut self,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        grant: Grant,
        cx: Access,
        affinity: Affinity,
    ) -> Vec<Room> {
        assert_eq!(wanted.len(), keys.len(), "a mask of another batch");
        if let Layouts::Each(each) = layouts {
            assert_eq!(each.len(), keys.len(), "the layouts of another batch");
        }
        let Some(first) = keys.first() else { return Vec::new() };
        self.asks(first);
        let admitted = self.admitted(keys, wanted, layouts, &cx);
        let passing = |i: usize| admitted.get(i).is_some_and(|admitted| !admitted);
        let passes = self.tiers.iter().any(Tier::serves);
        let mut full: Option<Error> = None;
        // What the batch has already does not go for the rest of it: then that would have to be had, too.
        let mut kept = Vec::new();
        if grant == Grant::Whole {
            let (mut cached, mut staged) = (0, 0);
            for i in (0..keys.len()).filter(|i| wanted.get(*i)) {
                if let Some(slot) = self.index.find(&keys[i]) {
                    self.policy.pin(slot);
                    kept.push(slot);
                } else if !self.staged.contains_key(&keys[i]) {
                    let need = if passing(i) { &mut staged } else { &mut cached };
                    *need += units(layouts.at(i).bytes());
                }
            }
            full = self.cannot_have(first, cached, if passes { staged } else { 0 });
        }
        let mut rooms = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().enumerate() {
            rooms.push(if !wanted.get(i) {
                Room::Unwanted
            } else if self.index.find(key).is_some() {
                Room::Resident
            } else if self.staged.contains_key(key) {
                Room::Busy
            } else if passing(i) && !passes {
                match self.l1_fault("reserve") {
                    Some(e) => Room::Refused(e),
                    None => Room::NotAdmitted,
                }
            } else if let Some(e) = &full {
                Room::Refused(e.clone())
            } else {
                let bytes = layouts.at(i).bytes();
                let room = if passing(i) {
                    let room = self.staging.reserve(bytes as usize, UNIT);
                    room.map_err(|e| self.l1_fault("reserve").unwrap_or(e))
                } else {
                    self.room_for(bytes)
                };
                match room {
                    Ok(buf) => {
                        self.stage(key, passing(i), buf.capacity() as u64);
                        Room::Granted(Box::new(Granted {
                            key: key.clone(),
                            parent: i.checked_sub(1).map(|p| keys[p].clone()),
                            layout: layouts.at(i).clone(),
                            buf,
                            cx: Access { position: cx.position + i as u32, ..cx },
                            affinity,
                            passing: passing(i),
                        }))
                    }
                    Err(e) => Room::Refused(full.insert(e).clone()),
                }
            });
        }
        if let (Some(why), Grant::Whole) = (full, grant) {
            for room in &mut rooms {
                if let Room::Granted(granted) = room {
                    self.unstage(&granted.key);
                    *room = Room::Refused(why.clone());
                }
            }
        }
        kept.into_iter().for_each(|slot| self.policy.unpin(slot));
        rooms
    }

    /// Which keys of a chain may stay in L1; empty if all may. A key that is resident or not wanted is no gap in the chain.
    fn admitted(
        &mut self,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        cx: &Access,
    ) -> Vec<bool> {
        if self.l1_out {
            return vec![false; keys.len()];
        }
        let mut out = Vec::new();
        if self.admission.name() == "always" {
            return out;
        }
        let bytes = |i: usize| units(layouts.at(i).bytes());
        let is_new: Vec<bool> =
            (0..keys.len()).map(|i| wanted.get(i) && self.index.find(&keys[i]).is_none()).collect();
        // Behind a chunk that is only passing through there would be a gap.
        let whole = (0..keys.len()).take_while(|i| !self.passes(&keys[*i])).count();
        let new_bytes: u64 = (0..keys.len()).filter(|i| is_new[*i]).map(bytes).sum();
        let usage = self.cache.usage();
        let free = usage.limit.saturating_sub(usage.used);
        self.victims.clear();
        if new_bytes > free {
            self.policy.victims(new_bytes - free, &mut self.victims);
        }
        // Each new chunk's rival is the one that goes when the chunks before it have taken what is free.
        let mut rivals = self.victims.iter().filter_map(|slot| {
            let entry = self.index.candidate(*slot)?;
            Some((entry.buf.capacity() as u64, print(&entry.key)))
        });
        let (mut taken, mut given, mut rival) = (0, free, None);
        let chain: Vec<Offer> = (0..keys.len())
            .map(|i| {
                let mut offer = Offer {
                    print: print(&keys[i]),
                    weight: weight(bytes(i)),
                    rival: None,
                    resident: !is_new[i],
                };
                if is_new[i] {
                    while taken >= given
                        && let Some((bytes, print)) = rivals.next()
                    {
                        given += bytes;
                        rival = Some(print);
                    }
                    offer.rival = rival;
                    taken += bytes(i);
                }
                offer
            })
            .collect();
        admit_chain(&mut self.admission, &chain, cx, &mut out);
        (whole..keys.len()).filter(|i| is_new[*i]).for_each(|i| out[i] = false);
        out
    }

    /// The writer of a reservation went away without a commit.
    pub(crate) fn abort(&mut self, key: &ObjectKey) {
        self.unstage(key);
        self.stats.aborts += 1;
        self.roomier = true;
    }

    /// Whether the key is here and will leave by itself, so that nothing should follow it.
    fn passes(&self, key: &ObjectKey) -> bool {
        match self.index.find(key) {
            Some(slot) => self.index.at(slot).passing,
            None => self.staged.get(key).is_some_and(|staged| staged.passing),
        }
    }

    /// Somebody writes the key from now on.
    fn stage(&mut self, key: &ObjectKey, passing: bool, bytes: u64) {
        let tenant = (!passing).then(|| {
            let tenant = self.tenants.number(key.scope().salt());
            self.tenants.sets_aside(tenant, bytes);
            tenant
        });
        self.staged.insert(key.clone(), Staged { passing, bytes, tenant });
        // What the next victims are asked for comes on top.
        if tenant.is_some() {
            self.asks(key);
        }
    }

    /// Nobody writes the key any more.
    pub(crate) fn unstage(&mut self, key: &ObjectKey) {
        if let Some(Staged { bytes, tenant: Some(tenant), .. }) = self.staged.remove(key) {
            self.tenants.has_written(tenant, bytes);
        }
    }

    /// Why so many bytes of the two budgets cannot be had now for a batch that begins with `first`, however much is evicted.
    /// Changes nothing. Exact without quotas; with them it looks at the whole batch where the chunks are granted one by one,
    /// so a batch that it lets through may still be refused, and give back what it was granted, after something was evicted.
    fn cannot_have(&mut self, first: &ObjectKey, cached: u64, staged: u64) -> Option<Error> {
        let limits = [("cache", cached, self.cache.usage()), ("staging", staged, self.staging.usage())];
        for (budget, need, usage) in limits {
            if need > usage.limit {
                let e = Error::invalid("reserve", "the batch is larger than a whole budget of L1");
                return Some(e.with("budget", budget).with("bytes", need).with("limit", usage.limit));
            }
        }
        for (budget, need, usage) in limits {
            let want = (usage.used + need).saturating_sub(usage.limit);
            if want == 0 {
                continue;
            }
            self.victims.clear();
            // By the time the last victims are asked for, the tenant has what is free now as well.
            self.asks_beside(first, need.saturating_sub(want));
            let had = budget == "cache" && self.policy.victims(want, &mut self.victims) >= want;
            self.asks(first);
            if !had {
                let e =
                    Error::new(ErrorKind::NoSpace, "reserve", "too much of L1 is in use for the whole batch");
                return Some(e.with("budget", budget).with("bytes", need).with("limit", usage.limit));
            }
        }
        None
    }

    /// A buffer from the cache budget for a chunk that comes from L2; `None` if nothing is kept in L1.
    pub(crate) fn landing_room(&mut self, key: &ObjectKey, bytes: u64) -> Option<Result<WriteBuf, Error>> {
        if self.l1_out {
            return None;
        }
        self.asks(key);
        Some(self.room_for(bytes))
    }

    /// A buffer from the cache budget, evicting exactly as much as is missing.
    fn room_for(&mut self, bytes: u64) -> Result<WriteBuf, Error> {
        let bytes = usize::try_from(bytes)
            .map_err(|_| Error::invalid("reserve", "an object this large cannot be mapped"))?;
        let (need, usage) = (units(bytes as u64), self.cache.usage());
        // What never fits is refused below, and nothing is evicted for it.
        let short = usage.used + need > usage.limit && need <= usage.limit;
        let in_vain = short && !self.evict(usage.used + need - usage.limit);
        loop {
            let e = match self.cache.reserve(bytes, UNIT) {
                Ok(buf) => return Ok(buf),
                Err(e) if e.kind() == ErrorKind::NoSpace && !in_vain => e,
                Err(e) => return Err(e),
            };
            let usage = self.cache.usage();
            // At least one victim even when the budget has room: then the free memory is in pieces.
            let want = (usage.used + need).saturating_sub(usage.limit).max(1);
            if !self.evict(want) {
                return Err(e);
            }
        }
    }

    /// Evicts at least `want` bytes if the policy has that much to give, and else nothing: it would be in vain. Whether
    /// anything went. A policy that gives up what is in use or not there is not asked again.
    fn evict(&mut self, want: u64) -> bool {
        let mut victims = std::mem::take(&mut self.victims);
        victims.clear();
        if self.policy.victims(want, &mut victims) < want {
            victims.clear();
        }
        let mut went = false;
        for slot in victims.drain(..) {
            match self.index.candidate(slot).map(|entry| entry.pins) {
                Some(0) => {
                    let entry = self.take_out(slot, Removal::Evicted).expect("it was looked at");
                    self.stats.evicted += 1;
                    self.stats.evicted_bytes += entry.buf.len() as u64;
                    self.left(entry);
                    went = true;
                }
                Some(_) => self.policy.condemn("it gave up a pinned chunk"),
                None => self.policy.condemn("it gave up a chunk that is not there"),
            }
        }
        self.victims = victims;
        went
    }
}
