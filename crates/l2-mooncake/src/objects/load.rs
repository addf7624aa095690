//! Loads and lookups.

use kvstrata_core::{ObjectKey, Result};
use kvstrata_l2::{Answer, Found, GetItem, GetSink, Keys, Loaded, Miss};
use kvstrata_mem::Allocate;
use kvstrata_mooncake_sys::Target;

use super::{Form, Objects};
use crate::record::{Description, SUFFIX, header_len, lmcache_header_fits};
use crate::route::Code;

const GET: &str = "load objects";

impl Objects {
    /// Reads descriptions. `Err` is a miss, or a code that is none.
    pub(super) fn descriptions(
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
pub(super) fn described(
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
