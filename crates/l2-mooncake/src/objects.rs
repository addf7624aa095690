//! What a batch of objects is in the cluster: names, descriptions, and the order in which they come and go.
//!
//! Mooncake's stores are write-once, and a put of a key that is there, or that a writer who died has begun, is answered with
//! success. So a store here looks first, takes away what is something else, puts, and looks again; what failed, or was
//! answered while it went on, is taken away.

mod load;

use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, ObjectKey, Result};
use kvstrata_l2::{Keys, PutItem, PutSink, Stored};
use kvstrata_mem::{Allocate, Pool, ReadBuf};
use kvstrata_mooncake_sys::Source;

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
}

impl Storing {
    fn refuse(&self, code: Code, done: &PutSink) {
        done.answer(self.position, Err(code.error(PUT).with("key", &self.item.key)));
    }
}

/// What is there of an object.
#[derive(Clone, Copy, PartialEq, Eq)]
struct There {
    payload: bool,
    description: bool,
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

    fn there(&self, names: &[String]) -> Result<PerKey<There>> {
        let n = names.len();
        let mut found = self.route.exists(&self.with_descriptions(names))?;
        let descriptions = found.split_off(n);
        let described = |i: usize| descriptions.get(i).copied().unwrap_or(Ok(false));
        Ok(found
            .into_iter()
            .enumerate()
            .map(|(i, p)| Ok(There { payload: p?, description: described(i)? }))
            .collect())
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
        let open = items.into_iter().filter(|(position, _)| done.is_open(*position));
        let all: Vec<_> =
            open.map(|(position, item)| Storing { position, name: self.name(&item.key), item }).collect();
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
        let (fresh, stale) = self.sort(all, done)?;
        let mut fresh = fresh;
        if !stale.is_empty() {
            let names: Vec<_> = stale.iter().map(|s| s.name.clone()).collect();
            for (storing, removed) in stale.into_iter().zip(self.remove_names(&names)?) {
                match removed {
                    Ok(_) => fresh.push(storing),
                    Err(code) => storing.refuse(code, done),
                }
            }
        }
        fresh.retain(|s| done.is_open(s.position));
        if fresh.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = fresh.iter().map(|s| s.name.clone()).collect();
        let written = self.write(&fresh, &names, done).and_then(|codes| self.confirm(&names, codes));
        let written = match written {
            Ok(per_key) => per_key,
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
        let names: Vec<_> = all.iter().map(|s| s.name.clone()).collect();
        let (mut fresh, mut stale, mut compare) = (Vec::new(), Vec::new(), Vec::new());
        for (storing, there) in all.into_iter().zip(self.there(&names)?) {
            match (there, self.form) {
                (Err(code), _) => storing.refuse(code, done),
                (Ok(There { payload: false, description: false }), _) => fresh.push(storing),
                (Ok(There { payload: true, description: true }), Form::Described) => compare.push(storing),
                (Ok(_), Form::Described) => stale.push(storing),
                // Nothing says what it is, and LMCache takes it for the same.
                (Ok(_), _) => {
                    done.answer(storing.position, Ok(Stored::Present));
                }
            }
        }
        let keys: Vec<_> = compare.iter().map(|s| (&s.item.key, &s.name)).collect();
        let found = self.descriptions(&keys)?;
        for (storing, found) in compare.into_iter().zip(found) {
            let PutItem { layout, digest, .. } = &storing.item;
            match found {
                Ok(Ok(d)) if d.layout == layout.id() && digest.is_none_or(|new| d.digest == Some(new)) => {
                    done.answer(storing.position, Ok(Stored::Present));
                }
                Ok(_) => stale.push(storing),
                Err(code) => storing.refuse(code, done),
            }
        }
        Ok((fresh, stale))
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
                    let description = Description { len, layout: item.layout.id(), digest: item.digest };
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

    /// A put that was answered with success may have stored nothing: it counts if there is a whole object.
    fn confirm(&self, names: &[String], codes: PerKey<()>) -> Result<Vec<Result<()>>> {
        let mut out: Vec<Result<()>> = codes.into_iter().map(|c| c.map_err(|code| code.error(PUT))).collect();
        let stored: Vec<_> = (0..names.len()).filter(|i| out[*i].is_ok()).collect();
        if stored.is_empty() {
            return Ok(out);
        }
        let asked: Vec<_> = stored.iter().map(|i| names[*i].clone()).collect();
        let whole = There { payload: true, description: self.form == Form::Described };
        for (i, there) in stored.into_iter().zip(self.there(&asked)?) {
            out[i] = match there {
                Ok(there) if there == whole => Ok(()),
                Ok(_) => {
                    let why = "it was said to be stored, and is not there: another writer has begun it, or it was evicted at once";
                    Err(Error::new(ErrorKind::Busy, PUT, why))
                }
                Err(code) => Err(code.error(PUT)),
            };
        }
        Ok(out)
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
