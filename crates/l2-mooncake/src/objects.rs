//! What a batch of objects is in the cluster: names, descriptions, and the order in which they come and go.
//!
//! Mooncake's stores are write-once, and a put of a key that is there, or that a writer who died has begun, is answered with
//! success. So a store here looks first, takes away what is something else, puts, and looks again; what failed, or was
//! answered while it went on, is taken away.

use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, ObjectKey, Result};
use kvstrata_l2::{Answer, Found, GetItem, GetSink, Keys, Loaded, Miss, PutItem, PutSink, Stored};
use kvstrata_mem::{Allocate, Pool, ReadBuf};
use kvstrata_mooncake_sys::{Source, Target};

use crate::gate::Gate;
use crate::record::{Description, SUFFIX, header_len, lmcache_header, lmcache_header_fits};
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
const GET: &str = "load objects";

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

    /// Reads descriptions. `Err` is a miss, or a code that is none.
    fn descriptions(
        &self,
        keys: &[(&ObjectKey, &String)],
    ) -> Result<Vec<Result<Result<Description, Miss>, Code>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = keys.iter().map(|(_, name)| format!("{name}{SUFFIX}")).collect();
        let mut room = self.scratch.reserve(keys.len() * Description::LEN, Description::LEN)?;
        let mut to = Target::parts(&mut room, keys.iter().map(|_| Description::LEN), Description::LEN);
        let sizes = self.route.get_into(&names, &mut to)?;
        let mut out = Vec::with_capacity(keys.len());
        for (i, (size, (key, _))) in sizes.into_iter().zip(keys).enumerate() {
            out.push(described(size, |bytes| room.read_at(i * Description::LEN, bytes), key));
        }
        Ok(out)
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

    pub(crate) fn get(&self, items: Vec<(usize, GetItem)>, done: &GetSink) {
        let keys: Vec<_> = items.iter().map(|(_, item)| item.key.clone()).collect();
        let within = self.gate.read(keys.iter());
        let mut items: Vec<_> = items.into_iter().filter(|(position, _)| done.is_open(*position)).collect();
        if items.is_empty() {
            return;
        }
        let names: Vec<_> = items.iter().map(|(_, item)| self.name(&item.key)).collect();
        let answers = match self.form {
            Form::Plain => self.get_plain(&mut items, &names),
            Form::Described => self.get_described(&mut items, &names),
            Form::Headed { .. } => self.get_headed(&mut items, &names),
        };
        drop(within);
        if let Ok(answers) = &answers {
            self.heal(items.iter().map(|(_, item)| &item.key).zip(answers));
        }
        match answers {
            Ok(answers) => {
                for ((position, item), found) in items.into_iter().zip(answers) {
                    let answer = match found {
                        Ok(Ok(found)) => Answer::Loaded(Loaded::new(item.buf, found)),
                        Ok(Err(miss)) => Answer::Miss(miss, Some(item.buf)),
                        Err(e) => Answer::Failed(e.with("key", &item.key), Some(item.buf)),
                    };
                    done.answer(position, answer);
                }
            }
            Err(e) => {
                for (position, item) in items {
                    done.answer(position, Answer::Failed(e.clone(), Some(item.buf)));
                }
            }
        }
    }

    /// Takes away what is not whole or not what its name says, so that the next store is not told that it is there.
    fn heal<'a>(&self, answers: impl Iterator<Item = (&'a ObjectKey, &'a Result<Result<Found, Miss>>)>) {
        let bad = |(key, found): (&'a ObjectKey, &'a Result<Result<Found, Miss>>)| match found {
            Ok(Err(miss @ (Miss::Truncated | Miss::Header | Miss::Foreign))) => {
                tracing::warn!(%key, reason = miss.name(), "a broken object is removed");
                Some(key)
            }
            _ => None,
        };
        let bad: Vec<_> = answers.filter_map(bad).collect();
        if self.form == Form::Described && !bad.is_empty() {
            let _within = self.gate.write(bad.iter().copied());
            self.take_back(&bad.iter().map(|key| self.name(key)).collect::<Vec<_>>());
        }
    }

    fn get_described(
        &self,
        items: &mut [(usize, GetItem)],
        names: &[String],
    ) -> Result<Vec<Result<Result<Found, Miss>>>> {
        let n = items.len();
        let mut room = self.scratch.reserve(n * Description::LEN, Description::LEN)?;
        let mut to: Vec<_> = items.iter_mut().map(|(_, item)| Target::of(&mut item.buf)).collect();
        to.extend(Target::parts(&mut room, (0..n).map(|_| Description::LEN), Description::LEN));
        let mut sizes = self.route.get_into(&self.with_descriptions(names), &mut to)?;
        drop(to);
        let descriptions = sizes.split_off(n);
        let one = |i: usize, (payload, description): (Result<u64, Code>, Result<u64, Code>)| {
            let (_, item) = &items[i];
            let at = i * Description::LEN;
            let found = described(description, |bytes| room.read_at(at, bytes), &item.key)
                .map_err(|c| c.error(GET))?;
            let Description { len, layout, digest } = match found {
                Ok(d) if d.layout != item.layout.id() || d.len != item.layout.bytes() => {
                    return Ok(Err(Miss::Layout));
                }
                Ok(d) => d,
                Err(miss) => return Ok(Err(miss)),
            };
            match payload {
                Ok(size) if size == len => Ok(Ok(Found { len, layout: Some(layout), digest })),
                // The description says that it fits.
                Ok(_) | Err(Code::INVALID_PARAMS) => Ok(Err(Miss::Truncated)),
                Err(code) => lost(code),
            }
        };
        Ok(sizes.into_iter().zip(descriptions).enumerate().map(|(i, codes)| one(i, codes)).collect())
    }

    fn get_plain(
        &self,
        items: &mut [(usize, GetItem)],
        names: &[String],
    ) -> Result<Vec<Result<Result<Found, Miss>>>> {
        let mut to: Vec<_> = items.iter_mut().map(|(_, item)| Target::of(&mut item.buf)).collect();
        let sizes = self.route.get_into(names, &mut to)?;
        let lens = items.iter().map(|(_, item)| item.layout.bytes());
        let found =
            |(size, len): (Result<u64, Code>, u64)| fits(size, len).map(|fit| fit.map(|()| bare(len)));
        Ok(sizes.into_iter().zip(lens).map(found).collect())
    }

    fn get_headed(
        &self,
        items: &mut [(usize, GetItem)],
        names: &[String],
    ) -> Result<Vec<Result<Result<Found, Miss>>>> {
        let room = |(_, item): &(usize, GetItem)| {
            self.scratch.reserve(header_len(item.layout.tensors().len()) + item.buf.len(), 64)
        };
        // Keys without room go without an answer of the store: their batch is as long as there is room.
        let rooms: Vec<_> = items.iter().map(room).collect();
        let (mut whole, mut at, mut out) = (Vec::new(), Vec::new(), Vec::with_capacity(items.len()));
        for (i, room) in rooms.into_iter().enumerate() {
            match room {
                Ok(room) => {
                    whole.push(room);
                    at.push(i);
                    out.push(Ok(Err(Miss::Absent)));
                }
                Err(e) => out.push(Err(e)),
            }
        }
        if at.is_empty() {
            return Ok(out);
        }
        let keys: Vec<_> = at.iter().map(|i| names[*i].clone()).collect();
        let mut to: Vec<_> = whole.iter_mut().map(Target::of).collect();
        let sizes = self.route.get_into(&keys, &mut to)?;
        drop(to);
        for ((i, size), room) in at.into_iter().zip(sizes).zip(&whole) {
            let item = &mut items[i].1;
            let fit = match fits(size, room.len() as u64) {
                Ok(Ok(())) => {
                    let mut header = vec![0; room.len() - item.buf.len()];
                    room.read_at(0, &mut header)?;
                    lmcache_header_fits(&header, &item.layout)
                }
                Ok(Err(miss)) => Err(miss),
                Err(e) => {
                    out[i] = Err(e);
                    continue;
                }
            };
            if fit.is_ok() {
                let (mut skip, mut to, mut copied) = (room.len() - item.buf.len(), 0, Ok(()));
                room.visit(|piece| {
                    let piece = &piece[skip.min(piece.len())..];
                    skip = 0;
                    copied =
                        std::mem::replace(&mut copied, Ok(())).and_then(|()| item.buf.write_at(to, piece));
                    to += piece.len();
                })?;
                copied?;
                self.route.stats.copied(item.buf.len());
            }
            out[i] = Ok(fit.map(|()| bare(item.layout.bytes())));
        }
        Ok(out)
    }

    pub(crate) fn probe(&self, keys: &Keys) -> Result<Vec<Result<Option<Found>>>> {
        const OP: &str = "look objects up";
        let names: Vec<_> = keys.iter().map(|k| self.name(k)).collect();
        let _within = self.gate.read(keys.iter());
        let there = self.route.exists(&names)?;
        let found: Vec<_> = (0..keys.len()).filter(|i| there[*i] == Ok(true)).collect();
        let mut out: Vec<Result<Option<Found>>> =
            there.into_iter().map(|t| t.map(|_| None).map_err(|code| code.error(OP))).collect();
        match self.form {
            Form::Described => {
                let asked: Vec<_> = found.iter().map(|i| (&keys[*i], &names[*i])).collect();
                for (i, description) in found.iter().zip(self.descriptions(&asked)?) {
                    out[*i] = match description {
                        Ok(Ok(Description { len, layout, digest })) => {
                            Ok(Some(Found { len, layout: Some(layout), digest }))
                        }
                        Ok(Err(_)) => Ok(None),
                        Err(code) => Err(code.error(OP)),
                    };
                }
            }
            Form::Plain | Form::Headed { .. } => {
                let before = match self.form {
                    Form::Headed { tensors } => header_len(tensors) as u64,
                    _ => 0,
                };
                let asked: Vec<_> = found.iter().map(|i| names[*i].clone()).collect();
                let sizes = if asked.is_empty() { Vec::new() } else { self.route.sizes(&asked)? };
                for (i, size) in found.into_iter().zip(sizes) {
                    out[i] = match size {
                        Ok(size) => Ok(size.checked_sub(before).map(bare)),
                        Err(code) if code.is_miss() => Ok(None),
                        Err(code) => Err(code.error(OP)),
                    };
                }
            }
        }
        Ok(out)
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

/// Of an object that does not describe itself.
fn bare(len: u64) -> Found {
    Found { len, layout: None, digest: None }
}

/// A code that a load ended with: a miss, or a failure.
fn lost<T>(code: Code) -> Result<Result<T, Miss>> {
    match code {
        Code::CHECKSUM => Ok(Err(Miss::Digest)),
        code if code.is_miss() => Ok(Err(Miss::Absent)),
        code => Err(code.error(GET)),
    }
}

/// Whether an object is as long as was expected.
fn fits(size: Result<u64, Code>, len: u64) -> Result<Result<(), Miss>> {
    match size {
        Ok(size) if size == len => Ok(Ok(())),
        Ok(size) if size < len => Ok(Err(Miss::Truncated)),
        // Longer than its room.
        Ok(_) | Err(Code::INVALID_PARAMS) => Ok(Err(Miss::Layout)),
        Err(code) => lost(code),
    }
}

/// A description from what a load of it ended with.
fn described(
    size: Result<u64, Code>,
    read: impl FnOnce(&mut [u8]) -> Result<()>,
    key: &ObjectKey,
) -> Result<Result<Description, Miss>, Code> {
    let mut bytes = [0; Description::LEN];
    match size {
        Ok(size) if size == Description::LEN as u64 && read(&mut bytes).is_ok() => {
            Ok(Description::decode(&bytes, key))
        }
        Ok(_) | Err(Code::INVALID_PARAMS) => Ok(Err(Miss::Header)),
        Err(code) if code.is_miss() => Ok(Err(Miss::Absent)),
        Err(code) => Err(code),
    }
}
