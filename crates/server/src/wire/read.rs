//! Arguments of a request, as they are read.

use bytes::Bytes;

use super::{DESCRIPTOR, Operation};
use crate::api::{DeviceTensor, EngineDriven, EngineGroup, Hint, Key, LmcacheDriven, Request, Tokens};
use crate::msgpack::{Read, Reader, Unreadable};

fn arity<const N: usize>(arguments: &[Bytes]) -> Read<&[Bytes; N]> {
    arguments
        .try_into()
        .map_err(|_| Unreadable { field: "arguments", expected: "as many as the operation has" })
}

pub(super) fn whole<'a, T>(
    part: &'a [u8],
    field: &'static str,
    f: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<T> {
    let mut r = Reader::new(part, field);
    let value = f(&mut r)?;
    r.end()?;
    Ok(value)
}

fn instance(part: &[u8]) -> Read<i64> {
    whole(part, "instance_id", Reader::i64)
}

fn text(part: &[u8], field: &'static str) -> Read<String> {
    whole(part, field, |r| r.str().map(str::to_owned))
}

fn blocks(part: &[u8]) -> Read<Vec<Vec<i64>>> {
    whole(part, "block_ids", |r| r.list(|r| r.list(Reader::i64)))
}

fn bytes(part: &[u8], field: &'static str) -> Read<Vec<u8>> {
    whole(part, field, |r| r.bin().map(<[u8]>::to_vec))
}

/// Reads an operation's arguments.
///
/// # Errors
/// The argument or field that cannot be read, and what would be accepted. `Unreadable` with the field `operation` for one
/// that exists in LMCache and not here.
pub fn read_request(op: Operation, arguments: &[Bytes]) -> Result<Request, Unreadable> {
    use Operation as Op;
    Ok(match op {
        Op::RegisterKvCache => Request::RegisterKvCache(Box::new(read_lmcache_driven(arity(arguments)?)?)),
        Op::UnregisterKvCache => {
            let [i] = arity(arguments)?;
            Request::UnregisterKvCache(instance(i)?)
        }
        Op::Store => {
            let [key, i, b, event] = arity(arguments)?;
            let event = bytes(event, "event_handle")?;
            Request::Store { key: read_key(key)?, instance: instance(i)?, blocks: blocks(b)?, event }
        }
        Op::Retrieve => {
            let [key, i, b, event, skip] = arity(arguments)?;
            let (event, skip) =
                (bytes(event, "event_handle")?, whole(skip, "skip_first_n_tokens", Reader::i64)?);
            Request::Retrieve { key: read_key(key)?, instance: instance(i)?, blocks: blocks(b)?, event, skip }
        }
        Op::Lookup | Op::FreeLookupLocks => {
            let [key, tp] = arity(arguments)?;
            whole(tp, "tp_size", Reader::int)?;
            let key = read_key(key)?;
            if op == Op::Lookup { Request::Lookup(key) } else { Request::FreeLookupLocks(key) }
        }
        Op::QueryPrefetchStatus => {
            let [id] = arity(arguments)?;
            Request::QueryPrefetchStatus(text(id, "request_id")?)
        }
        Op::WaitPrefetchStatus => {
            let [id, seconds] = arity(arguments)?;
            let seconds = whole(seconds, "timeout", Reader::f64)?;
            let wait =
                std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(std::time::Duration::MAX);
            Request::WaitPrefetchStatus(text(id, "request_id")?, wait)
        }
        Op::EndSession => {
            let [id] = arity(arguments)?;
            Request::EndSession(text(id, "request_id")?)
        }
        Op::RegisterEngineDriven => {
            let [payload] = arity(arguments)?;
            Request::RegisterEngineDriven(whole(payload, "payload", read_engine_driven)?)
        }
        Op::UnregisterEngineDriven => {
            let [i] = arity(arguments)?;
            Request::UnregisterEngineDriven(instance(i)?)
        }
        Op::PrepareStore | Op::PrepareRetrieve | Op::CommitRetrieve => {
            let [key, i] = arity(arguments)?;
            let (key, i) = (read_key(key)?, instance(i)?);
            match op {
                Op::PrepareStore => Request::PrepareStore(key, i),
                Op::PrepareRetrieve => Request::PrepareRetrieve(key, i),
                _ => Request::CommitRetrieve(key, i),
            }
        }
        Op::CommitStore => {
            let [key, i, data] = arity(arguments)?;
            Request::CommitStore {
                key: read_key(key)?,
                instance: instance(i)?,
                payload: bytes(data, "data")?,
            }
        }
        Op::Clear => {
            let [force] = arity(arguments)?;
            Request::Clear { force: whole(force, "force", Reader::bool)? }
        }
        Op::GetChunkSize => {
            let [] = arity(arguments)?;
            Request::GetChunkSize
        }
        Op::Ping => {
            let [id] = arity(arguments)?;
            Request::Ping(whole(id, "instance_id", |r| if r.nil() { Ok(None) } else { r.i64().map(Some) })?)
        }
        Op::ReportBlockAllocation => {
            let [i, model, records] = arity(arguments)?;
            whole(records, "records", Reader::skip)?;
            let (instance, model) = (instance(i)?, text(model, "model_name")?);
            Request::ReportBlockAllocation { instance, model, records: records.to_vec() }
        }
        Op::Noop => {
            let [] = arity(arguments)?;
            Request::Noop
        }
        Op::GetExperimental => {
            let [] = arity(arguments)?;
            Request::GetExperimental
        }
        Op::SubscribeKvEvents => {
            let [i, model, cursor, max] = arity(arguments)?;
            let (cursor, max_events) =
                (whole(cursor, "cursor", Reader::i64)?, whole(max, "max_events", Reader::i64)?);
            Request::SubscribeKvEvents {
                instance: instance(i)?,
                model: text(model, "model_name")?,
                cursor,
                max_events,
            }
        }
        _ => return Err(Unreadable { field: "operation", expected: "one that this server offers" }),
    })
}

/// Reads the fields of a map, each by `field`, which says whether it knows the name and reads or leaves the value.
pub(super) fn fields<'a>(
    r: &mut Reader<'a>,
    mut field: impl FnMut(&'a str, &mut Reader<'a>) -> Read<bool>,
) -> Read<()> {
    for _ in 0..r.map()? {
        let name = r.at("field name").str()?;
        if !field(name, r)? {
            r.at("value of an unknown field").skip()?;
        }
    }
    Ok(())
}

pub(super) fn required<T>(value: Option<T>, field: &'static str) -> Read<T> {
    value.ok_or(Unreadable { field, expected: "given" })
}

fn read_key(part: &[u8]) -> Read<Key> {
    let (mut model, mut world, mut worker, mut tokens) = (None, None, None, None);
    let (mut start, mut end, mut request, mut salt, mut configs, mut readers) =
        (None, None, None, "", None, 0);
    whole(part, "key", |r| {
        fields(r, |name, r| {
            match name {
                "model_name" => model = Some(r.at("model_name").str()?),
                "world_size" => world = Some(r.at("world_size").i64()?),
                "worker_id" => {
                    worker = Some(if r.at("worker_id").nil() { None } else { Some(r.i64()?) });
                }
                "token_ids" => tokens = Some(r.at("token_ids").tokens()?),
                "start" => start = Some(r.at("start").i64()?),
                "end" => end = Some(r.at("end").i64()?),
                "request_id" => request = Some(r.at("request_id").str()?),
                "cache_salt" => salt = r.at("cache_salt").str()?,
                "request_configs" if r.nil() => configs = None,
                "request_configs" => configs = Some(r.at("request_configs").document()?.to_vec()),
                "num_kv_readers" => readers = r.at("num_kv_readers").i64()?,
                _ => return Ok(false),
            }
            Ok(true)
        })
    })?;
    Ok(Key {
        model: required(model, "model_name")?.to_owned(),
        world_size: required(world, "world_size")?,
        worker: required(worker, "worker_id")?,
        tokens: Tokens::from_be_bytes(required(tokens, "token_ids")?),
        start: required(start, "start")?,
        end: required(end, "end")?,
        request: required(request, "request_id")?.to_owned(),
        salt: salt.to_owned(),
        configs,
        readers,
    })
}

fn read_engine_driven(r: &mut Reader<'_>) -> Read<EngineDriven> {
    let (mut instance, mut model, mut world, mut block, mut layers) = (None, None, None, None, None);
    let (mut hidden, mut dtype, mut mla, mut slots) = (None, None, None, None);
    fields(r, |name, r| {
        match name {
            "instance_id" => instance = Some(r.at("instance_id").i64()?),
            "model_name" => model = Some(r.at("model_name").str()?),
            "world_size" => world = Some(r.at("world_size").i64()?),
            "block_size" => block = Some(r.at("block_size").i64()?),
            "num_layers" => layers = Some(r.at("num_layers").i64()?),
            "hidden_dim_size" => hidden = Some(r.at("hidden_dim_size").i64()?),
            "dtype_str" => dtype = Some(r.at("dtype_str").str()?),
            "use_mla" => mla = Some(r.at("use_mla").bool()?),
            "num_physical_slots" if r.nil() => slots = None,
            "num_physical_slots" => slots = Some(r.at("num_physical_slots").i64()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(EngineDriven {
        instance: required(instance, "instance_id")?,
        model: required(model, "model_name")?.to_owned(),
        world_size: required(world, "world_size")?,
        block_size: required(block, "block_size")?,
        layers: required(layers, "num_layers")?,
        hidden: required(hidden, "hidden_dim_size")?,
        dtype: required(dtype, "dtype_str")?.to_owned(),
        mla: required(mla, "use_mla")?,
        slots,
    })
}

fn read_lmcache_driven(
    [i, tensors, model, world, engine, hints, groups]: &[Bytes; 7],
) -> Read<LmcacheDriven> {
    let tensors = whole(tensors, "kv_caches", |r| {
        r.list(|r| {
            let body = r.ext(DESCRIPTOR)?;
            whole(body, "kv_caches", read_tensor)
        })
    })?;
    let mut known = Vec::new();
    whole(hints, "layout_hints", |r| {
        fields(r, |name, r| {
            let hint = if let Ok(text) = r.clone().str() {
                Hint::from(text)
            } else if let Ok(n) = r.clone().i64() {
                Hint::from(n)
            } else {
                return Ok(false);
            };
            r.skip()?;
            known.push((name.to_owned(), hint));
            Ok(true)
        })
    })?;
    Ok(LmcacheDriven {
        instance: instance(i)?,
        tensors,
        model: text(model, "model_name")?,
        world_size: whole(world, "world_size", Reader::i64)?,
        engine: text(engine, "engine_type")?,
        hints: known,
        groups: whole(groups, "engine_group_infos", |r| r.list(read_group))?,
    })
}

fn read_tensor(r: &mut Reader<'_>) -> Read<DeviceTensor> {
    let mut t = DeviceTensor {
        kind: String::new(),
        shm_name: String::new(),
        bytes: 0,
        dtype: String::new(),
        shape: Vec::new(),
        stride: Vec::new(),
        offset: 0,
        device: String::new(),
    };
    let (mut version, mut unknown) = (None, false);
    fields(r, |name, r| {
        match name {
            "type" => t.kind = r.at("type").str()?.to_owned(),
            "shm_name" => t.shm_name = r.at("shm_name").str()?.to_owned(),
            "nbytes" => t.bytes = r.at("nbytes").i64()?,
            "version" => version = Some(r.at("version").i64()?),
            "metadata" => fields(r.at("metadata"), |name, r| {
                match name {
                    "dtype" => t.dtype = r.at("dtype").str()?.to_owned(),
                    "shape" => t.shape = r.at("shape").list(Reader::i64)?,
                    "stride" => t.stride = r.at("stride").list(Reader::i64)?,
                    "storage_offset" => t.offset = r.at("storage_offset").i64()?,
                    "device_uuid" => t.device = r.at("device_uuid").str()?.to_owned(),
                    _ => {
                        unknown = true;
                        return Ok(false);
                    }
                }
                Ok(true)
            })?,
            // What a device's handle is made of; nothing here opens one.
            _ => {
                unknown = true;
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    if version != Some(1) {
        return Err(Unreadable { field: "version", expected: "1" });
    }
    // Elsewhere they are passed over. Here one may say where the bytes are.
    if unknown && t.kind == "cpu_shm" {
        return Err(Unreadable { field: "kv_caches", expected: "no unknown field in a cpu_shm descriptor" });
    }
    Ok(t)
}

fn read_group(r: &mut Reader<'_>) -> Read<EngineGroup> {
    let mut g =
        EngineGroup { id: 0, layers: Vec::new(), block_tokens: 0, window: -1, tag: 0, recurrent: false };
    let mut seen = 0;
    fields(r, |name, r| {
        match name {
            "engine_group_id" => g.id = r.at("engine_group_id").i64()?,
            "layer_indices" => g.layers = r.at("layer_indices").list(Reader::i64)?,
            "tokens_per_block" => g.block_tokens = r.at("tokens_per_block").i64()?,
            "sw_size_tokens" => g.window = r.at("sw_size_tokens").i64()?,
            "extra_object_group_tag" => g.tag = r.at("extra_object_group_tag").i64()?,
            "recurrent_state" => g.recurrent = r.at("recurrent_state").bool()?,
            _ => return Ok(false),
        }
        seen += u32::from(["engine_group_id", "layer_indices", "tokens_per_block"].contains(&name));
        Ok(true)
    })?;
    required((seen == 3).then_some(()), "engine_group_id, layer_indices and tokens_per_block")?;
    Ok(g)
}
