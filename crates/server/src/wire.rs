//! LMCache's ZeroMQ wire, 0.5.5 and later: `[uid][operation][argument…]` and back `[uid][operation]` with at most one result.
//!
//! Each part is a MessagePack document of its own. Structures are maps by field name: unknown fields are passed over, and
//! those with a default may be missing. An answer of nothing has no result part. There is no error message on this wire,
//! but a client refuses an answer to another operation at once, and that is how a request is refused for which no result
//! says so.

use std::borrow::Cow;

use bytes::Bytes;

use crate::api::{
    DeviceTensor, EngineDriven, EngineGroup, Key, KvEventBatch, LmcacheDriven, Reply, Request, Slot, Tokens,
};
use crate::msgpack::{Read, Reader, Unreadable, Writer};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $wire:expr, $text:literal;)*) => {
        /// What can be asked, by its number or name on the wire.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[expect(missing_docs, reason = "the names are LMCache's")]
        pub enum Operation { $($(#[$doc])* $name,)* }

        impl Operation {
            /// Every operation.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in LMCache.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its number; `None` if it goes by its name.
            pub fn number(self) -> Option<u8> {
                match self { $(Self::$name => $wire,)* }
            }
        }
    };
}

operations! {
    RegisterKvCache = Some(1), "register_kv_cache";
    UnregisterKvCache = Some(2), "unregister_kv_cache";
    RegisterQCache = Some(3), "register_q_cache";
    UnregisterQCache = Some(4), "unregister_q_cache";
    StoreQ = Some(5), "store_q";
    Store = Some(6), "store";
    Retrieve = Some(7), "retrieve";
    Lookup = Some(8), "lookup";
    QueryPrefetchStatus = Some(9), "query_prefetch_status";
    WaitPrefetchStatus = Some(10), "wait_prefetch_status";
    FreeLookupLocks = Some(12), "free_lookup_locks";
    EndSession = Some(13), "end_session";
    RegisterEngineDriven = Some(14), "register_kv_cache_engine_driven_context";
    UnregisterEngineDriven = Some(15), "unregister_kv_cache_engine_driven_context";
    PrepareStore = Some(16), "prepare_store";
    CommitStore = Some(17), "commit_store";
    PrepareRetrieve = Some(18), "prepare_retrieve";
    CommitRetrieve = Some(19), "commit_retrieve";
    Clear = Some(20), "clear";
    GetChunkSize = Some(21), "get_chunk_size";
    Ping = Some(22), "ping";
    ReportBlockAllocation = Some(23), "report_block_allocation";
    Noop = Some(24), "noop";
    CbRegisterRope = Some(25), "cb_register_rope";
    CbUnregisterRope = Some(26), "cb_unregister_rope";
    CbRetrievePreComputed = Some(27), "cb_retrieve_pre_computed";
    CbUnifiedLookup = Some(28), "cb_unified_lookup";
    P2pLookupAndLock = Some(29), "p2p_lookup_and_lock";
    P2pQueryLookupResults = Some(30), "p2p_query_lookup_results";
    P2pUnlockObjects = Some(31), "p2p_unlock_objects";
    GetExperimental = Some(32), "get_experimental";
    CbProtocolHandshake = Some(33), "cb_protocol_handshake";
    SubscribeKvEvents = None, "subscribe_kv_events";
    ServerModuleCall = None, "server_module_call";
    CbReorderPlan = None, "cb_reorder_plan";
}

impl Operation {
    /// Reads an operation's part.
    ///
    /// # Errors
    /// What it should have been.
    pub fn read(part: &[u8]) -> Result<Self, Unreadable> {
        const UNKNOWN: Unreadable = Unreadable { field: "operation", expected: "one that LMCache 0.5.6 has" };
        let mut r = Reader::new(part, "operation");
        let found = if let Ok(name) = r.clone().str() {
            r.skip()?;
            // Those with a number go by it alone.
            Self::ALL.iter().find(|op| op.number().is_none() && op.name() == name)
        } else {
            let number = r.int()?;
            Self::ALL.iter().find(|op| op.number().map(i128::from) == Some(number))
        };
        r.end()?;
        found.copied().ok_or(UNKNOWN)
    }

    /// Its part.
    pub fn part(self) -> Bytes {
        let mut w = Writer::default();
        match self.number() {
            Some(n) => w.uint(n.into()),
            None => w.str(self.name()),
        }
        w.0.into()
    }

    /// What a client is told when a request cannot be read or served: the operation's own no, where it has one.
    pub fn negative(self) -> Reply {
        match self {
            Self::CommitStore | Self::CommitRetrieve => Reply::Bool(false),
            Self::PrepareStore => Reply::PrepareStore(None),
            Self::PrepareRetrieve => Reply::PrepareRetrieve(None),
            Self::Store | Self::Retrieve => Reply::Transferred(false),
            Self::QueryPrefetchStatus | Self::WaitPrefetchStatus => Reply::Int(0),
            // Nothing is lost, and nothing would come of an error.
            Self::FreeLookupLocks | Self::EndSession | Self::ReportBlockAllocation => Reply::None,
            _ => Reply::Refused,
        }
    }
}

fn arity<const N: usize>(arguments: &[Bytes]) -> Read<&[Bytes; N]> {
    arguments
        .try_into()
        .map_err(|_| Unreadable { field: "arguments", expected: "as many as the operation has" })
}

fn whole<'a, T>(part: &'a [u8], field: &'static str, f: impl FnOnce(&mut Reader<'a>) -> Read<T>) -> Read<T> {
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
fn fields<'a>(r: &mut Reader<'a>, mut field: impl FnMut(&'a str, &mut Reader<'a>) -> Read<bool>) -> Read<()> {
    for _ in 0..r.map()? {
        let name = r.at("field name").str()?;
        if !field(name, r)? {
            r.at("value of an unknown field").skip()?;
        }
    }
    Ok(())
}

fn required<T>(value: Option<T>, field: &'static str) -> Read<T> {
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

/// The extension type of a tensor's descriptor.
const DESCRIPTOR: u8 = 1;

fn read_lmcache_driven(
    [i, tensors, model, world, engine, hints, groups]: &[Bytes; 7],
) -> Read<LmcacheDriven> {
    let tensors = whole(tensors, "kv_caches", |r| {
        r.list(|r| {
            let body = r.ext(DESCRIPTOR)?;
            whole(body, "kv_caches", read_tensor)
        })
    })?;
    let mut texts = Vec::new();
    whole(hints, "layout_hints", |r| {
        fields(r, |name, r| {
            let Ok(text) = r.clone().str() else { return Ok(false) };
            r.skip()?;
            texts.push((name.to_owned(), text.to_owned()));
            Ok(true)
        })
    })?;
    Ok(LmcacheDriven {
        instance: instance(i)?,
        tensors,
        model: text(model, "model_name")?,
        world_size: whole(world, "world_size", Reader::i64)?,
        engine: text(engine, "engine_type")?,
        hints: texts,
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
    let mut version = None;
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
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            // What a device's handle is made of; nothing here opens one.
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if version != Some(1) {
        return Err(Unreadable { field: "version", expected: "1" });
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

/// An answer's parts: the request's own number first.
pub fn reply_parts(uid: Bytes, op: Operation, reply: &Reply) -> Vec<Bytes> {
    let part = match reply {
        // The client sees that this is not its operation, and fails the request.
        Reply::Refused => {
            let other = if op == Operation::Noop { Operation::GetChunkSize } else { Operation::Noop };
            return vec![uid, other.part()];
        }
        Reply::None => return vec![uid, op.part()],
        _ => {
            let mut w = Writer::default();
            write_reply(&mut w, reply);
            w.0.into()
        }
    };
    vec![uid, op.part(), part]
}

fn write_reply(w: &mut Writer, reply: &Reply) {
    match reply {
        Reply::None | Reply::Refused => w.nil(),
        Reply::Bool(b) => w.bool(*b),
        Reply::Int(n) => w.uint(*n),
        Reply::Text(text) => w.str(text),
        Reply::Texts(texts) => {
            w.array(texts.len());
            texts.iter().for_each(|t| w.str(t));
        }
        Reply::Pool { name, bytes } => {
            w.map(2);
            w.str("shm_name");
            w.str(name);
            w.str("pool_size");
            w.uint(*bytes);
        }
        Reply::PrepareStore(granted) => {
            w.map(1);
            w.str("context");
            let Some((slots, indices)) = granted else { return w.map(0) };
            w.map(2);
            w.str("slots");
            write_slots(w, slots);
            w.str("chunk_indices");
            w.array(indices.len());
            indices.iter().for_each(|n| w.uint(*n));
        }
        Reply::PrepareRetrieve(slots) => {
            w.map(3);
            w.str("success");
            w.bool(slots.is_some());
            w.str("data");
            w.bin(b"");
            w.str("context");
            let Some(slots) = slots else { return w.map(0) };
            w.map(1);
            w.str("slots");
            write_slots(w, slots);
        }
        Reply::Transferred(done) => {
            w.array(2);
            w.bin(b"");
            w.bool(*done);
        }
        Reply::Events(batch) => write_events(w, batch),
    }
}

fn write_slots(w: &mut Writer, slots: &[Slot]) {
    w.array(slots.len());
    for slot in slots {
        w.map(4);
        w.str("offset");
        w.uint(slot.offset);
        w.str("length");
        w.uint(slot.length);
        w.str("shape");
        w.array(slot.shape.len());
        slot.shape.iter().for_each(|n| w.uint(*n));
        w.str("dtype");
        w.str(&slot.dtype);
    }
}

fn write_events(w: &mut Writer, batch: &KvEventBatch) {
    w.map(5);
    w.str("enabled");
    w.bool(batch.enabled);
    w.str("incarnation");
    w.uint(batch.incarnation);
    w.str("next_cursor");
    w.uint(batch.next_cursor);
    w.str("lost");
    w.bool(batch.lost);
    w.str("events");
    w.array(batch.events.len());
    for event in &batch.events {
        w.map(7);
        w.str("seq");
        w.uint(event.seq);
        w.str("kind");
        w.str(if event.stored { "stored" } else { "removed" });
        w.str("medium");
        w.str("CPU");
        w.str("model_name");
        w.str(&event.model);
        w.str("block_hashes");
        w.array(event.hashes.len());
        event.hashes.iter().for_each(|h| w.bin(h));
        w.str("parent_block_hash");
        match &event.parent {
            Some(parent) => w.bin(parent),
            None => w.nil(),
        }
        w.str("token_ids");
        write_tokens(w, &event.tokens);
    }
}

fn write_tokens(w: &mut Writer, tokens: &Tokens) {
    w.array(tokens.len());
    for token in tokens.as_be_bytes().chunks_exact(4) {
        w.uint(u32::from_be_bytes(token.try_into().expect("four bytes")).into());
    }
}

/// A request's parts, as a client sends them: for tests, and for clients of our own.
pub fn request_parts(uid: u64, request: &Request) -> Vec<Bytes> {
    let (op, arguments) = request_arguments(request);
    let mut number = Writer::default();
    number.uint(uid);
    [number.0.into(), op.part()].into_iter().chain(arguments).collect()
}

fn part(f: impl FnOnce(&mut Writer)) -> Bytes {
    let mut w = Writer::default();
    f(&mut w);
    w.0.into()
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
        r.hints.iter().for_each(|(name, text)| {
            w.str(name);
            w.str(text);
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

/// What a request is about, for the log: its session, if it has one.
pub fn session_of(request: &Request) -> Cow<'_, str> {
    match request {
        Request::Lookup(key)
        | Request::FreeLookupLocks(key)
        | Request::PrepareStore(key, _)
        | Request::PrepareRetrieve(key, _)
        | Request::CommitRetrieve(key, _)
        | Request::CommitStore { key, .. }
        | Request::Store { key, .. }
        | Request::Retrieve { key, .. } => Cow::Borrowed(&key.request),
        Request::QueryPrefetchStatus(id) | Request::WaitPrefetchStatus(id, _) | Request::EndSession(id) => {
            Cow::Borrowed(id)
        }
        _ => Cow::Borrowed(""),
    }
}
