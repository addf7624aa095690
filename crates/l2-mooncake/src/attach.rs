//! Through an official `mooncake_client` on this machine, to which L1's memory is handed over.

mod link;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::MemoryKinds;
use kvstrata_mem::Region;
use kvstrata_mooncake_sys::{Source, Target};
use parking_lot::Mutex;

use crate::route::{Code, PerKey, Route};
use crate::wire::pack::{Type, Writer};
use crate::wire::rpc::{CallError, Connection, Traffic};
use link::{Link, PATIENCE, failed, id_message, probe, size, value, values};

/// What coro_rpc answers to an unknown function.
const UNKNOWN_FUNCTION: u8 = 11;

/// The attached way: requests carry keys, addresses and sizes, and the client's transport reads and writes our own pages.
///
/// A client that restarts or has dropped us is attached to again by itself.
#[derive(Debug)]
pub struct Attach {
    link: Arc<Link>,
    heart: Mutex<Option<JoinHandle<()>>>,
}

impl Attach {
    /// Finds a client at `client` and a release whose types it takes. Nothing of this has an effect on the client.
    /// `preferred` names the segment that new objects are to lie in, if it has room; `run` is a number that no other process
    /// has.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers there, or the client is not ready; `Mismatch` if it is of a release that is not known.
    pub fn connect(client: SocketAddr, preferred: Option<String>, run: u64) -> Result<Self> {
        const OP: &str = "attach to Mooncake client";
        let about = |e: Error| e.with("client", client);
        let traffic = Arc::<Traffic>::default();
        let mut connection = Connection::open(client, &traffic).map_err(|e| about(failed(OP, &e)))?;
        connection.patience(PATIENCE).map_err(|e| about(Error::io(OP, e)))?;
        let ready = connection.call("service_ready_internal", &[]).map_err(|e| about(failed(OP, &e)))?;
        let ready = value(&ready, Type::Nothing, |_| Ok(()))
            .map_err(|e| about(failed(OP, &CallError::Garbled(e))))?;
        ready.map_err(|code| {
            let why = "the client is not ready: it has no master, perhaps";
            about(Error::new(ErrorKind::Unavailable, OP, why).with("code", code))
        })?;
        let profile = probe(&mut connection).map_err(about)?;
        let link = Arc::new(Link::new(client, profile, preferred, run, traffic));
        let heart = {
            let link = Arc::clone(&link);
            std::thread::Builder::new().name("kvs-mc-beat".into()).spawn(move || link.beat())
        };
        let heart = heart.map_err(|e| Error::io("start heartbeat thread", e))?;
        Ok(Self { link, heart: Mutex::new(Some(heart)) })
    }

    /// The first release whose types the client takes.
    pub fn release(&self) -> &'static str {
        self.link.profile.since
    }

    /// Calls, and bytes through sockets, so far.
    pub fn traffic(&self) -> (u64, u64) {
        let order = std::sync::atomic::Ordering::Relaxed;
        (self.link.traffic.calls.load(order), self.link.traffic.bytes.load(order))
    }

    /// Lets the client forget what was handed to it, as it does with those that it has not heard of for ten seconds.
    ///
    /// # Errors
    /// If the client cannot be asked.
    pub fn let_forget(&self) -> Result<()> {
        let epoch = self.link.session.lock().epoch;
        let asked = self.link.ask("unmap_shm_internal", &id_message(self.link.id(epoch)));
        asked.map(drop).map_err(|e| failed("let the Mooncake client forget", &e))
    }

    /// How often memory was handed over anew: once at the start, and after each client that had forgotten us.
    pub fn attachments(&self) -> u64 {
        self.link.session.lock().epoch
    }
}

impl Route for Attach {
    fn describe(&self) -> String {
        format!(
            "attached to the Mooncake client at {} (release {} or later)",
            self.link.client, self.link.profile.since
        )
    }

    fn kinds(&self) -> MemoryKinds {
        MemoryKinds { private: false, shared: true, device: false }
    }

    fn max_keys(&self) -> usize {
        256
    }

    fn register(&self, region: &Arc<dyn Region>) -> Result<()> {
        self.link.caller(std::iter::once(region)).map(|_| ())
    }

    fn unregister(&self, region: &Arc<dyn Region>) {
        self.link.release(region.id());
    }

    fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>> {
        let link = &*self.link;
        link.transfer(
            "put batch",
            "batch_put_from_dummy_helper",
            from.iter().map(Source::region),
            |id| {
                let at = from.iter().map(|s| (s.addr(), s.len() as u64));
                link.profile.batch(keys, at, Some(link.preferred.as_deref()), id)
            },
            |body| values(body, Type::Nothing, keys.len(), |_| Ok(())),
        )
    }

    fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        let link = &*self.link;
        let to = &*to;
        link.transfer(
            "get batch",
            "batch_get_into_dummy_helper",
            to.iter().map(Target::region),
            |id| link.profile.batch(keys, to.iter().map(|t| (t.addr(), t.len() as u64)), None, id),
            |body| values(body, Type::I64, keys.len(), size),
        )
    }

    fn exists(&self, keys: &[String]) -> Result<PerKey<bool>> {
        let mut w = Writer::default();
        w.texts(keys);
        let body = w.finish(&Type::list(Type::Text));
        let answer = self.link.ask("batchIsExist_internal", &body);
        let read = answer.and_then(|b| {
            values(&b, Type::Bool, keys.len(), |r| Ok(r.u8()? != 0)).map_err(CallError::Garbled)
        });
        read.map_err(|e| failed("look batch up", &e).with("client", self.link.client))
    }

    fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>> {
        let one = |key: &String| {
            let mut w = Writer::default();
            w.text(key);
            let answer = self.link.ask("getSize_internal", &w.finish(&Type::Text))?;
            value(&answer, Type::I64, size).map_err(CallError::Garbled)
        };
        let per_key = keys.iter().map(|key| one(key).map(|v| v.map_err(Code))).collect::<Result<_, _>>();
        per_key.map_err(|e| failed("ask for sizes", &e).with("client", self.link.client))
    }

    fn remove(&self, keys: &[String]) -> Result<PerKey<()>> {
        const OP: &str = "remove batch";
        let about = |e: CallError| failed(OP, &e).with("client", self.link.client);
        let mut w = Writer::default();
        w.texts(keys);
        w.u8(1);
        let body = w.finish(&Type::Struct(vec![Type::list(Type::Text), Type::Bool]));
        match self.link.ask("batchRemove_internal", &body) {
            Ok(answer) => {
                let read = values(&answer, Type::Nothing, keys.len(), |_| Ok(()));
                read.map_err(|e| about(CallError::Garbled(e)))
            }
            // Before 0.3.11 there is only the one for a single key.
            Err(CallError::Refused(UNKNOWN_FUNCTION, _)) => {
                let one = |key: &String| {
                    let mut w = Writer::default();
                    w.text(key);
                    w.u8(1);
                    let ty = Type::Struct(vec![Type::Text, Type::Bool]);
                    let answer = self.link.ask("remove_internal", &w.finish(&ty))?;
                    value(&answer, Type::Nothing, |_| Ok(())).map_err(CallError::Garbled)
                };
                keys.iter()
                    .map(|key| one(key).map(|v| v.map_err(Code)))
                    .collect::<Result<_, _>>()
                    .map_err(about)
            }
            Err(e) => Err(about(e)),
        }
    }

    fn close(&self) {
        *self.link.closed.0.lock() = true;
        self.link.closed.1.notify_all();
        if let Some(heart) = self.heart.lock().take() {
            // It ends by itself; a panic in it has nothing left to break.
            drop(heart.join());
        }
        let session = self.link.session.lock();
        if session.live {
            let id = self.link.id(session.epoch);
            if let Err(error) = self.link.ask("unmap_shm_internal", &id_message(id)) {
                tracing::debug!(%error, "the Mooncake client was not told that we go");
            }
        }
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        *self.link.closed.0.lock() = true;
        self.link.closed.1.notify_all();
    }
}
