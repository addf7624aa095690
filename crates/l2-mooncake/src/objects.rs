//! What a batch of objects is in the cluster: names, descriptions, and the order in which they come and go.
//!
//! Mooncake's stores are write-once, and a put of a key that is there, or that another writer has begun, is answered with
//! success. So a store here looks first, takes away what is something else, puts, and looks again at what another had begun;
//! what failed, or was answered while it went on, is taken away.
//!
//! It looks by a load into room that payloads do not fit in. That tells what is there from what was begun, brings the
//! descriptions along, and leases nothing of what is new. Looking again at everything would lease each new object for ten
//! seconds, in which a full pool cannot give it up, and says nothing of it but that nobody began it in between.

mod load;

use std::sync::Arc;

use kvstrata_core::{ObjectKey, Result};
use kvstrata_l2::{Keys, PutItem, PutSink, Stored};
use kvstrata_mem::{Allocate, Pool, ReadBuf};
use kvstrata_mooncake_sys::{Source, Target};

use crate::gate::Gate;
use crate::record::{Description, SUFFIX, lmcache_header};
use crate::route::{Code, Counted, PerKey};

/// What an object consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// The payload, and our description of it beside it.
    Described,
    /// The payload alone: LMCache's objects with `save_chunk_meta: false`.
    Plain,
    /// LMCache's header and the payload, in one object: `save_chunk_meta: true`. So many tensors are in each.
    Headed { tensors: usize },
}

/// The objects of a store.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) route: Counted,
    pub(crate) form: Form,
    /// Before every name.
    pub(crate) prefix: String,
    /// Where descriptions, and objects with a header, are put together.
    pub(crate) scratch: Arc<Pool>,
    pub(crate) gate: Gate,
}

const PUT: &str = "store objects";

/// One key of a put.
struct Storing {
    position: usize,
    item: PutItem,
    name: String,
    /// Another writer has begun it: what is said of our put has to be seen.
    contested: bool,
}

impl Storing {
    fn refuse(&self, code: Code, done: &PutSink) {
        done.answer(self.position, Err(code.error(PUT).with("key", &self.item.key)));
    }
}

/// How far a payload or a description is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Absent,
    /// A writer has begun it, and goes on with it or is gone.
    Begun,
    There,
}

impl Part {
    /// From what a load ended with that was to tell.
    fn of(size: Result<u64, Code>) -> Result<Self, Code> {
        match size {
            Ok(_) | Err(Code::INVALID_PARAMS) => Ok(Self::There),
            Err(Code::NOT_FOUND) => Ok(Self::Absent),
            Err(Code::NOT_READY) => Ok(Self::Begun),
            // Its owner is gone.
            Err(code) if code.is_miss() => Ok(Self::There),
            Err(code) => Err(code),
        }
    }
}

/// What is there of an object before it is stored.
struct Before {
    payload: Part,
    /// Absent where objects have none.
    description: Part,
    says: Option<Description>,
}

impl Objects {
    fn name(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The names, then those of the descriptions if there are any.
    fn with_descriptions(&self, names: &[String]) -> Vec<String> {
        let mut all = names.to_vec();
        if self.form == Form::Described {
            all.extend(names.iter().map(|n| format!("{n}{SUFFIX}")));
        }
        all
    }

    fn look(&self, all: &[Storing]) -> Result<PerKey<Before>> {
        let n = all.len();
        let names: Vec<_> = all.iter().map(|s| s.name.clone()).collect();
        let asked = self.with_descriptions(&names);
        let mut room = self.scratch.reserve(asked.len() * Description::LEN, Description::LEN)?;
        let lens = (0..asked.len()).map(|i| if i < n { 1 } else { Description::LEN });
        let mut to = Target::parts(&mut room, lens, Description::LEN);
        let mut payloads = self.route.look(&asked, &mut to)?;
        let descriptions = payloads.split_off(n);
        let one = |i: usize, payload: Result<u64, Code>| {
            let payload = Part::of(payload)?;
            let size = descriptions.get(i).copied().unwrap_or(Err(Code::NOT_FOUND));
            let read = |bytes: &mut [u8]| room.read_at((n + i) * Description::LEN, bytes);
            let says = load::described(size, read, &all[i].item.key)?.ok();
            Ok(Before { payload, description: Part::of(size)?, says })
        };
        Ok(payloads.into_iter().enumerate().map(|(i, payload)| one(i, payload)).collect())
    }

    /// Removes objects with their descriptions; per key whether its payload was there.
    fn remove_names(&self, names: &[String]) -> Result<PerKey<bool>> {
        let mut removed = self.route.remove(&self.with_descriptions(names))?;
        let descriptions = removed.split_off(names.len());
        let gone = |r: Result<(), Code>| match r {
            Ok(()) => Ok(true),
            Err(Code::NOT_FOUND | Code::NOT_READY) => Ok(false),
            Err(code) => Err(code),
        };
        let mut removed: PerKey<bool> = removed.into_iter().map(gone).collect();
        for (payload, description) in removed.iter_mut().zip(descriptions) {
            if let Err(code) = gone(description) {
                *payload = Err(code);
            }
        }
        Ok(removed)
    }

    pub(crate) fn put(&self, items: Vec<(usize, PutItem)>, done: &PutSink) {
        let _within = self.gate.write(items.iter().map(|(_, item)| &item.key));
        let mut all = Vec::with_capacity(items.len());
        for (position, mut item) in items.into_iter().filter(|(position, _)| done.is_open(*position)) {
            // Descriptions have it; nothing else keeps one.
            if matches!(self.form, Form::Described)
                && let Err(e) = item.digest()
            {
                drop(item);
                done.answer(position, Err(e));
                continue;
            }
            all.push(Storing { position, name: self.name(&item.key), item, contested: false });
        }
        if all.is_empty() {
            return;
        }
        let positions: Vec<_> = all.iter().map(|s| s.position).collect();
        if let Err(e) = self.put_all(all, done) {
            for position in positions {
                done.answer(position, Err(e.clone()));
            }
        }
    }

    fn put_all(&self, all: Vec<Storing>, done: &PutSink) -> Result<()> {
        let (mut fresh, stale) = self.sort(all, done)?;
        if !stale.is_empty() {
            let names: Vec<_> = stale.iter().map(|s| s.name.clone()).collect();
            for (mut storing, removed) in stale.into_iter().zip(self.replace(&names)?) {
                match removed {
                    Ok(()) => {}
                    Err(Code::NOT_READY) => storing.contested = true,
                    Err(code) => {
                        storing.refuse(code, done);
                        continue;
                    }
                }
                fresh.push(storing);
            }
        }
        fresh.retain(|s| done.is_open(s.position));
        if fresh.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = fresh.iter().map(|s| s.name.clone()).collect();
        let written = self.write(&fresh, &names, done).and_then(|codes| self.confirm(&fresh, codes));
        let written: Vec<Result<()>> = match written {
            Ok(codes) => codes.into_iter().map(|c| c.map_err(|code| code.error(PUT))).collect(),
            // Which of them were stored is not known.
            Err(e) => names.iter().map(|_| Err(e.clone())).collect(),
        };
        let failed: Vec<_> =
            names.iter().zip(&written).filter(|(_, w)| w.is_err()).map(|(name, _)| name.clone()).collect();
        self.take_back(&failed);
        let mut late = Vec::new();
        for (storing, written) in fresh.iter().zip(written) {
            // From the claim on no time-out answers the key; one that did has to find nothing.
            match done.claim(storing.position) {
                Some(claim) => claim.answer(match written {
                    Ok(()) => Ok(Stored::Written),
                    Err(e) => Err(e.with("key", &storing.item.key)),
                }),
                None if written.is_ok() => late.push(storing.name.clone()),
                None => {}
            }
        }
        self.take_back(&late);
        // The buffers go last, so that whoever sees them come back finds what was taken back gone.
        drop(fresh);
        Ok(())
    }

    /// Answers for what is there already; the rest is new, or has to take the place of something else.
    fn sort(&self, all: Vec<Storing>, done: &PutSink) -> Result<(Vec<Storing>, Vec<Storing>)> {
        let (mut fresh, mut stale) = (Vec::new(), Vec::new());
        let before = self.look(&all)?;
        for (mut storing, before) in all.into_iter().zip(before) {
            let PutItem { layout, digest, .. } = &storing.item;
            let is_same = |d: &Description| {
                d.layout == layout.id() && digest.known().is_none_or(|new| d.digest == Some(new))
            };
            let Before { payload, description, says } = match before {
                Ok(before) => before,
                Err(code) => {
                    storing.refuse(code, done);
                    continue;
                }
            };
            storing.contested = payload == Part::Begun || description == Part::Begun;
            // Where nothing says what it is, LMCache takes it for the same.
            let is_whole = payload == Part::There
                && (self.form != Form::Described || says.as_ref().is_some_and(is_same));
            if is_whole {
                done.answer(storing.position, Ok(Stored::Present));
            } else if payload == Part::There || description == Part::There {
                stale.push(storing);
            } else {
                fresh.push(storing);
            }
        }
        Ok((fresh, stale))
    }

    /// Takes away what is to be replaced. What another writer has begun meanwhile stays (`NOT_READY`).
    fn replace(&self, names: &[String]) -> Result<PerKey<()>> {
        let removed = self.route.remove(&self.with_descriptions(names))?;
        let gone = |code: Result<(), Code>| match code {
            Err(Code::NOT_FOUND) => Ok(()),
            code => code,
        };
        let (payloads, descriptions) = removed.split_at(names.len());
        let described = |i: usize| descriptions.get(i).copied().unwrap_or(Ok(()));
        Ok(payloads.iter().enumerate().map(|(i, p)| gone(*p).and(gone(described(i)))).collect())
    }

    /// The put of a contested object was said to succeed also if the other writer's stands in its way: it counts if there is a
    /// whole object. That of a writer who died is given up by the master after a while, and a later put gets its place.
    fn confirm(&self, fresh: &[Storing], mut codes: PerKey<()>) -> Result<PerKey<()>> {
        let contested: Vec<_> =
            (0..fresh.len()).filter(|i| fresh[*i].contested && codes[*i].is_ok()).collect();
        if contested.is_empty() {
            return Ok(codes);
        }
        let names: Vec<_> = contested.iter().map(|i| fresh[*i].name.clone()).collect();
        let there = self.route.exists(&self.with_descriptions(&names))?;
        let (payloads, descriptions) = there.split_at(names.len());
        for (n, i) in contested.into_iter().enumerate() {
            codes[i] = match (payloads[n], descriptions.get(n).copied().unwrap_or(Ok(true))) {
                (Ok(true), Ok(true)) => Ok(()),
                (Ok(_), Ok(_)) => Err(Code::EXISTS),
                (Err(code), _) | (_, Err(code)) => Err(code),
            };
        }
        Ok(codes)
    }

    /// One request for all of them.
    fn write(&self, fresh: &[Storing], names: &[String], done: &PutSink) -> Result<PerKey<()>> {
        match self.form {
            Form::Plain => {
                let from: Vec<_> = fresh.iter().map(|s| Source::of(&s.item.buf)).collect();
                self.route.put_from(names, &from)
            }
            Form::Described => {
                let mut room = self.scratch.reserve(fresh.len() * Description::LEN, Description::LEN)?;
                for (i, Storing { item, .. }) in fresh.iter().enumerate() {
                    let len = item.buf.len() as u64;
                    let description =
                        Description { len, layout: item.layout.id(), digest: item.digest.known() };
                    room.write_at(i * Description::LEN, &description.encode(&item.key))?;
                }
                let len = room.len();
                let room = room.seal(len);
                // Each payload next to its description, so that in a full pool the first ones find room for both.
                let (mut all, mut from) = (Vec::new(), Vec::new());
                for (i, storing) in fresh.iter().enumerate() {
                    all.extend([names[i].clone(), format!("{}{SUFFIX}", names[i])]);
                    from.push(Source::of(&storing.item.buf));
                    from.push(Source::part(&room, i * Description::LEN, Description::LEN));
                }
                let codes = self.route.put_from(&all, &from)?;
                Ok(codes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|[payload, description]| payload.and(*description))
                    .collect())
            }
            Form::Headed { .. } => {
                let (mut whole, mut at) = (Vec::new(), Vec::new());
                for (i, storing) in fresh.iter().enumerate() {
                    match self.headed(&storing.item) {
                        Ok(buf) => {
                            whole.push(buf);
                            at.push(i);
                        }
                        // It is answered here; what is said of it below is heard by nobody.
                        Err(e) => {
                            done.answer(storing.position, Err(e.with("key", &storing.item.key)));
                        }
                    }
                }
                let keys: Vec<_> = at.iter().map(|i| names[*i].clone()).collect();
                let from: Vec<_> = whole.iter().map(Source::of).collect();
                let mut codes = vec![Err(Code::INVALID_PARAMS); fresh.len()];
                if !keys.is_empty() {
                    for (i, code) in at.into_iter().zip(self.route.put_from(&keys, &from)?) {
                        codes[i] = code;
                    }
                }
                Ok(codes)
            }
        }
    }

    /// LMCache's header and the payload in one piece.
    fn headed(&self, item: &PutItem) -> Result<ReadBuf> {
        let header = lmcache_header(&item.layout)?;
        let len = header.len() + item.buf.len();
        let mut whole = self.scratch.reserve(len, 64)?;
        whole.write_at(0, &header)?;
        let mut at = header.len();
        let mut copied = Ok(());
        item.buf.visit(|piece| {
            copied = std::mem::replace(&mut copied, Ok(())).and_then(|()| whole.write_at(at, piece));
            at += piece.len();
        })?;
        copied?;
        self.route.stats.copied(item.buf.len());
        Ok(whole.seal(len))
    }

    /// Takes objects away whose stores failed or came too late.
    fn take_back(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        if let Err(error) = self.remove_names(names) {
            tracing::warn!(%error, keys = names.len(), "objects whose stores failed could not be taken back");
        }
    }

    pub(crate) fn remove(&self, keys: &Keys) -> Result<Vec<Result<bool>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = keys.iter().map(|k| self.name(k)).collect();
        let _within = self.gate.write(keys.iter());
        let removed = self.remove_names(&names)?;
        Ok(removed.into_iter().map(|r| r.map_err(|code| code.error("remove objects"))).collect())
    }
}
