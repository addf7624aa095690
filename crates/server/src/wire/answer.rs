//! Answers, as a client reads them.

use std::sync::Arc;

use bytes::Bytes;

use super::Operation;
use super::read::{fields, required, whole};
use crate::api::{KvEvent, KvEventBatch, Reply, Slot, Tokens};
use crate::msgpack::{Read, Reader, Unreadable};

/// Reads the answer to an operation, the parts after the request's number: for tests, and for clients of our own.
///
/// # Errors
/// The field that cannot be read, and what would be accepted.
pub fn read_answer(op: Operation, answer: &[Bytes]) -> Result<Reply, Unreadable> {
    use Operation as Op;
    let (answered, result) = match answer {
        [op] => (op, None),
        [op, result] => (op, Some(&result[..])),
        _ => return Err(Unreadable { field: "answer", expected: "an operation and at most one result" }),
    };
    if Operation::read(answered)? != op {
        return Ok(Reply::Refused);
    }
    let Some(result) = result else { return Ok(Reply::None) };
    match op {
        Op::QueryPrefetchStatus | Op::WaitPrefetchStatus | Op::GetChunkSize => {
            whole(result, "result", count).map(Reply::Int)
        }
        Op::CommitStore | Op::CommitRetrieve | Op::Ping => {
            whole(result, "result", Reader::bool).map(Reply::Bool)
        }
        Op::Noop => whole(result, "result", |r| Ok(Reply::Text(r.str()?.to_owned().into()))),
        Op::GetExperimental => {
            let texts = whole(result, "result", |r| r.list(|r| Ok(r.str()?.to_owned().into())))?;
            Ok(Reply::Texts(texts))
        }
        Op::RegisterEngineDriven => whole(result, "result", pool),
        Op::PrepareStore => whole(result, "result", prepared_store),
        Op::PrepareRetrieve => whole(result, "result", prepared_retrieve),
        Op::Store | Op::Retrieve => whole(result, "result", |r| {
            if r.array()? != 2 {
                return Err(Unreadable { field: "result", expected: "an event handle and a truth" });
            }
            r.at("event_handle").bin()?;
            r.at("success").bool().map(Reply::Transferred)
        }),
        Op::SubscribeKvEvents => whole(result, "result", batch).map(Reply::Events),
        _ => Err(Unreadable { field: "result", expected: "none: this operation's answer is empty" }),
    }
}

fn count(r: &mut Reader<'_>) -> Read<u64> {
    let n = r.int()?;
    u64::try_from(n).map_err(|_| Unreadable { field: "number", expected: "one from 0 on that fits 64 bits" })
}

fn pool(r: &mut Reader<'_>) -> Read<Reply> {
    let (mut name, mut bytes) = (None, None);
    fields(r, |field, r| {
        match field {
            "shm_name" => name = Some(r.at("shm_name").str()?.to_owned()),
            "pool_size" => bytes = Some(count(r.at("pool_size"))?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Reply::Pool { name: required(name, "shm_name")?, bytes: required(bytes, "pool_size")? })
}

/// A context, as far as it is there.
#[derive(Default)]
struct Context {
    slots: Option<Vec<Slot>>,
    indices: Option<Vec<u64>>,
}

fn context(r: &mut Reader<'_>) -> Read<Context> {
    let Context { mut slots, mut indices } = Context::default();
    fields(r, |field, r| {
        match field {
            "slots" => slots = Some(r.at("slots").list(slot)?),
            "chunk_indices" => indices = Some(r.at("chunk_indices").list(count)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Context { slots, indices })
}

fn slot(r: &mut Reader<'_>) -> Read<Slot> {
    let (mut offset, mut length, mut shape, mut dtype) = (None, None, None, None);
    fields(r, |field, r| {
        match field {
            "offset" => offset = Some(count(r.at("offset"))?),
            "length" => length = Some(count(r.at("length"))?),
            "shape" => shape = Some(r.at("shape").list(count)?),
            "dtype" => dtype = Some(r.at("dtype").str()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Slot {
        offset: required(offset, "offset")?,
        length: required(length, "length")?,
        shape: required(shape, "shape")?.into(),
        dtype: required(dtype, "dtype")?.into(),
    })
}

fn prepared_store(r: &mut Reader<'_>) -> Read<Reply> {
    let mut found = None;
    fields(r, |field, r| {
        if field != "context" {
            return Ok(false);
        }
        found = Some(context(r.at("context"))?);
        Ok(true)
    })?;
    Ok(Reply::PrepareStore(match required(found, "context")? {
        Context { slots: None, .. } => None,
        Context { slots: Some(slots), indices } => {
            let indices = required(indices, "chunk_indices")?;
            if slots.len() != indices.len() {
                return Err(Unreadable { field: "chunk_indices", expected: "one for each slot" });
            }
            Some((slots, indices))
        }
    }))
}

fn prepared_retrieve(r: &mut Reader<'_>) -> Read<Reply> {
    let (mut success, mut slots) = (None, None);
    fields(r, |field, r| {
        match field {
            "success" => success = Some(r.at("success").bool()?),
            "context" => slots = context(r.at("context"))?.slots,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Reply::PrepareRetrieve(if required(success, "success")? {
        Some(required(slots, "slots")?)
    } else {
        None
    }))
}

fn batch(r: &mut Reader<'_>) -> Read<KvEventBatch> {
    let (mut enabled, mut incarnation, mut next, mut lost, mut events) = (None, None, None, None, None);
    fields(r, |field, r| {
        match field {
            "enabled" => enabled = Some(r.at("enabled").bool()?),
            "incarnation" => incarnation = Some(count(r.at("incarnation"))?),
            "next_cursor" => next = Some(count(r.at("next_cursor"))?),
            "lost" => lost = Some(r.at("lost").bool()?),
            "events" => events = Some(r.at("events").list(event)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(KvEventBatch {
        enabled: required(enabled, "enabled")?,
        incarnation: required(incarnation, "incarnation")?,
        next_cursor: required(next, "next_cursor")?,
        lost: required(lost, "lost")?,
        events: required(events, "events")?,
    })
}

fn hash(r: &mut Reader<'_>) -> Read<[u8; 32]> {
    const SIZE: Unreadable = Unreadable { field: "block_hashes", expected: "hashes of 32 bytes" };
    r.bin()?.try_into().map_err(|_| SIZE)
}

fn event(r: &mut Reader<'_>) -> Read<Arc<KvEvent>> {
    let (mut seq, mut stored, mut model, mut hashes) = (None, None, None, None);
    let (mut parent, mut tokens) = (None, Vec::new());
    fields(r, |field, r| {
        match field {
            "seq" => seq = Some(count(r.at("seq"))?),
            "kind" => {
                stored = Some(match r.at("kind").str()? {
                    "stored" => true,
                    "removed" => false,
                    _ => return Err(Unreadable { field: "kind", expected: "stored or removed" }),
                });
            }
            "model_name" => model = Some(r.at("model_name").str()?),
            "block_hashes" => hashes = Some(r.at("block_hashes").list(hash)?),
            "parent_block_hash" if r.nil() => parent = None,
            "parent_block_hash" => parent = Some(hash(r)?),
            "token_ids" => tokens = r.at("token_ids").tokens()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Arc::new(KvEvent {
        seq: required(seq, "seq")?,
        stored: required(stored, "kind")?,
        model: required(model, "model_name")?.into(),
        hashes: required(hashes, "block_hashes")?,
        parent,
        tokens: Tokens::from_be_bytes(tokens),
    }))
}
