//! LMCache's ZeroMQ wire, 0.5.5 and later: `[uid][operation][argument…]` and back `[uid][operation]` with at most one result.
//!
//! Each part is a MessagePack document of its own. Structures are maps by field name: unknown fields are passed over, and
//! those with a default may be missing. An answer of nothing has no result part. There is no error message on this wire,
//! but a client refuses an answer to another operation at once, and that is how a request is refused for which no result
//! says so.

use std::borrow::Cow;

use bytes::Bytes;

use crate::api::{KvEventBatch, Reply, Request, Slot, Tokens};
use crate::msgpack::{Reader, Unreadable, Writer};

mod answer;
mod read;
mod request;

pub use answer::read_answer;
pub use read::read_request;
pub use request::request_parts;

/// The extension type of a tensor's descriptor.
const DESCRIPTOR: u8 = 1;

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
fn part(f: impl FnOnce(&mut Writer)) -> Bytes {
    let mut w = Writer::default();
    f(&mut w);
    w.0.into()
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
