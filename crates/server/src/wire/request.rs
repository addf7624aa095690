//! Requests, as a client writes them.

use bytes::Bytes;

use super::{DESCRIPTOR, Operation, part, write_tokens};
use crate::api::{DeviceTensor, EngineDriven, Hint, Key, LmcacheDriven, Request};
use crate::msgpack::Writer;

/// A request's parts, as a client sends them: for tests, and for clients of our own.
pub fn request_parts(uid: u64, request: &Request) -> Vec<Bytes> {
    let (op, arguments) = request_arguments(request);
    let mut number = Writer::default();
    number.uint(uid);
    [number.0.into(), op.part()].into_iter().chain(arguments).collect()
}

fn request_arguments(request: &Request) -> (Operation, Vec<Bytes>) {
    use Operation as Op;
    let int = |n: i64| part(|w| w.int(n));
    let text = |t: &str| part(|w| w.str(t));
    let key = |k: &Key| part(|w| write_key(w, k));
    let lists = |lists: &[Vec<i64>]| {
        part(|w| {
            w.array(lists.len());
            for list in lists {
                w.ints(list);
            }
        })
    };
    match request {
        Request::RegisterKvCache(r) => (Op::RegisterKvCache, lmcache_driven_arguments(r)),
        Request::UnregisterKvCache(i) => (Op::UnregisterKvCache, vec![int(*i)]),
        Request::Store { key: k, instance, blocks, event } => {
            (Op::Store, vec![key(k), int(*instance), lists(blocks), part(|w| w.bin(event))])
        }
        Request::Retrieve { key: k, instance, blocks, event, skip } => {
            (Op::Retrieve, vec![key(k), int(*instance), lists(blocks), part(|w| w.bin(event)), int(*skip)])
        }
        Request::Lookup(k) => (Op::Lookup, vec![key(k), int(1)]),
        Request::QueryPrefetchStatus(id) => (Op::QueryPrefetchStatus, vec![text(id)]),
        Request::WaitPrefetchStatus(id, wait) => {
            (Op::WaitPrefetchStatus, vec![text(id), part(|w| w.f64(wait.as_secs_f64()))])
        }
        Request::FreeLookupLocks(k) => (Op::FreeLookupLocks, vec![key(k), int(1)]),
        Request::EndSession(id) => (Op::EndSession, vec![text(id)]),
        Request::RegisterEngineDriven(r) => {
            (Op::RegisterEngineDriven, vec![part(|w| write_engine_driven(w, r))])
        }
        Request::UnregisterEngineDriven(i) => (Op::UnregisterEngineDriven, vec![int(*i)]),
        Request::PrepareStore(k, i) => (Op::PrepareStore, vec![key(k), int(*i)]),
        Request::CommitStore { key: k, instance, payload } => {
            (Op::CommitStore, vec![key(k), int(*instance), part(|w| w.bin(payload))])
        }
        Request::PrepareRetrieve(k, i) => (Op::PrepareRetrieve, vec![key(k), int(*i)]),
        Request::CommitRetrieve(k, i) => (Op::CommitRetrieve, vec![key(k), int(*i)]),
        Request::Clear { force } => (Op::Clear, vec![part(|w| w.bool(*force))]),
        Request::GetChunkSize => (Op::GetChunkSize, vec![]),
        Request::Ping(i) => (Op::Ping, vec![i.map_or_else(|| part(Writer::nil), int)]),
        Request::ReportBlockAllocation { instance, model, records } => {
            (Op::ReportBlockAllocation, vec![int(*instance), text(model), records.clone().into()])
        }
        Request::Noop => (Op::Noop, vec![]),
        Request::GetExperimental => (Op::GetExperimental, vec![]),
        Request::SubscribeKvEvents { instance, model, cursor, max_events } => {
            (Op::SubscribeKvEvents, vec![int(*instance), text(model), int(*cursor), int(*max_events)])
        }
    }
}

fn write_key(w: &mut Writer, key: &Key) {
    w.map(10);
    w.str("model_name");
    w.str(&key.model);
    w.str("world_size");
    w.int(key.world_size);
    w.str("worker_id");
    match key.worker {
        Some(n) => w.int(n),
        None => w.nil(),
    }
    w.str("token_ids");
    write_tokens(w, &key.tokens);
    w.str("start");
    w.int(key.start);
    w.str("end");
    w.int(key.end);
    w.str("request_id");
    w.str(&key.request);
    w.str("cache_salt");
    w.str(&key.salt);
    w.str("request_configs");
    w.0.extend_from_slice(key.configs.as_deref().unwrap_or(&[0xc0]));
    w.str("num_kv_readers");
    w.int(key.readers);
}

fn write_engine_driven(w: &mut Writer, r: &EngineDriven) {
    w.map(9);
    let numbers = [("world_size", r.world_size), ("block_size", r.block_size), ("num_layers", r.layers)];
    w.str("instance_id");
    w.int(r.instance);
    w.str("model_name");
    w.str(&r.model);
    for (name, n) in numbers.into_iter().chain([("hidden_dim_size", r.hidden)]) {
        w.str(name);
        w.int(n);
    }
    w.str("dtype_str");
    w.str(&r.dtype);
    w.str("use_mla");
    w.bool(r.mla);
    w.str("num_physical_slots");
    match r.slots {
        Some(n) => w.int(n),
        None => w.nil(),
    }
}

fn lmcache_driven_arguments(r: &LmcacheDriven) -> Vec<Bytes> {
    let tensors = part(|w| {
        w.array(r.tensors.len());
        r.tensors.iter().for_each(|t| w.ext(DESCRIPTOR, &part(|w| write_tensor(w, t))));
    });
    let hints = part(|w| {
        w.map(r.hints.len());
        r.hints.iter().for_each(|(name, hint)| {
            w.str(name);
            match hint {
                Hint::Text(text) => w.str(text),
                Hint::Int(n) => w.int(*n),
            }
        });
    });
    let groups = part(|w| {
        w.array(r.groups.len());
        for g in &r.groups {
            w.map(6);
            w.str("engine_group_id");
            w.int(g.id);
            w.str("layer_indices");
            w.ints(&g.layers);
            for (name, n) in [
                ("tokens_per_block", g.block_tokens),
                ("sw_size_tokens", g.window),
                ("extra_object_group_tag", g.tag),
            ] {
                w.str(name);
                w.int(n);
            }
            w.str("recurrent_state");
            w.bool(g.recurrent);
        }
    });
    let (model, engine) = (part(|w| w.str(&r.model)), part(|w| w.str(&r.engine)));
    vec![part(|w| w.int(r.instance)), tensors, model, part(|w| w.int(r.world_size)), engine, hints, groups]
}

/// As a `cpu_shm` descriptor: no other has all it needs in a [`DeviceTensor`].
fn write_tensor(w: &mut Writer, t: &DeviceTensor) {
    w.map(5);
    for (name, text) in [("type", &t.kind), ("shm_name", &t.shm_name)] {
        w.str(name);
        w.str(text);
    }
    w.str("nbytes");
    w.int(t.bytes);
    w.str("version");
    w.int(1);
    w.str("metadata");
    w.map(5);
    w.str("dtype");
    w.str(&t.dtype);
    w.str("shape");
    w.ints(&t.shape);
    w.str("stride");
    w.ints(&t.stride);
    w.str("storage_offset");
    w.int(t.offset);
    w.str("device_uuid");
    w.str(&t.device);
}
