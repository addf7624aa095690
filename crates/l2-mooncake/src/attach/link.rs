//! What is known of a client, and what it knows of us.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mem::{Region, RegionId};
use kvstrata_mooncake_sys::send_with_fd;
use parking_lot::{Condvar, Mutex};

use crate::route::{Code, PerKey};
use crate::wire::pack::{Garbled, Reader, Type, Writer};
use crate::wire::profile::{self, ClientId, Profile};
use crate::wire::rpc::{CallError, Connection, Traffic};

/// A client drops what was handed over 10 seconds after the last sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a heartbeat waits for its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Handing memory over takes the client's transport some seconds for each hundred gigabytes.
const REGISTRATION: Duration = Duration::from_secs(120);
/// Between two looks at a client that has lost a connection.
const SETTLING: Duration = Duration::from_millis(50);

/// What coro_rpc answers to arguments of other types.
const WRONG_ARGUMENTS: u8 = 4;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: SocketAddr,
    /// The client's abstract socket, for descriptors.
    socket: String,
    pub(super) profile: &'static Profile,
    pub(super) preferred: Option<String>,
    /// Sets the ids of this process apart from those of others.
    run: u64,
    pub(super) traffic: Arc<Traffic>,
    idle: Mutex<Vec<Connection>>,
    pub(super) session: Mutex<Session>,
    pub(super) closed: (Mutex<bool>, Condvar),
}

/// What the client knows of us.
#[derive(Debug)]
pub(super) struct Session {
    /// Counts the ids that we had.
    pub(super) epoch: u64,
    pub(super) live: bool,
    arenas: Vec<Arena>,
}

#[derive(Debug)]
struct Arena {
    id: RegionId,
    base: u64,
    len: u64,
    region: Weak<dyn Region>,
}

/// Who calls, and under which of the ids.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    id: ClientId,
    epoch: u64,
}

/// Asks for an empty put in the types of each release, which does nothing.
pub(super) fn probe(connection: &mut Connection) -> Result<&'static Profile> {
    const OP: &str = "find release of Mooncake client";
    for profile in &profile::ALL {
        let body = profile.batch(&[], [].into_iter(), Some(None), (0, 0));
        match connection.call("batch_put_from_dummy_helper", &body) {
            Ok(_) => return Ok(profile),
            Err(CallError::Refused(WRONG_ARGUMENTS, _)) => {}
            Err(e) => return Err(failed(OP, &e).with("profile", profile.since)),
        }
    }
    let tried = profile::ALL.map(|p| p.since).join(", ");
    let why = "the client takes the types of no release that is known here; releases from 0.3.10 on are";
    Err(Error::new(ErrorKind::Mismatch, OP, why).with("tried", tried))
}

pub(super) fn failed(operation: &'static str, error: &CallError) -> Error {
    let kind = match error {
        CallError::Unreachable(_) | CallError::Lost(_) => ErrorKind::Unavailable,
        CallError::Refused(..) | CallError::Garbled(_) => ErrorKind::Mismatch,
    };
    Error::new(kind, operation, error.to_string())
}

fn one_value<'a>(body: &'a [u8], ty: Type) -> Result<Reader<'a>, Garbled> {
    Reader::new(body, &Type::expected(ty))
}

pub(super) fn value<T>(
    body: &[u8],
    ty: Type,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Garbled>,
) -> Result<Result<T, i32>, Garbled> {
    one_value(body, ty)?.expected(read)
}

pub(super) fn values<T>(
    body: &[u8],
    ty: Type,
    n: usize,
    read: impl Fn(&mut Reader<'_>) -> Result<T, Garbled>,
) -> Result<PerKey<T>, Garbled> {
    let mut reader = Reader::new(body, &Type::list(Type::expected(ty)))?;
    let list = reader.list(n, |r| r.expected(&read))?;
    reader.end()?;
    Ok(list.into_iter().map(|v| v.map_err(Code)).collect())
}

pub(super) fn size(r: &mut Reader<'_>) -> Result<u64, Garbled> {
    let bytes = r.i64()?;
    u64::try_from(bytes).map_err(|_| Garbled(format!("a size of {bytes} bytes")))
}

pub(super) fn id_message(id: ClientId) -> Vec<u8> {
    let mut w = Writer::default();
    profile::write_client_id(&mut w, id);
    w.finish(&profile::client_id())
}

impl Link {
    /// A client that is ready, and nothing handed over yet.
    pub(super) fn new(
        client: SocketAddr,
        profile: &'static Profile,
        preferred: Option<String>,
        run: u64,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            client,
            socket: format!("@mooncake_client_{}.sock", client.port()),
            profile,
            preferred,
            run,
            traffic,
            idle: Mutex::new(Vec::new()),
            session: Mutex::new(Session { epoch: 0, live: false, arenas: Vec::new() }),
            closed: (Mutex::new(false), Condvar::new()),
        }
    }

    /// Lets go of a region, if it was handed over.
    pub(super) fn release(&self, region: RegionId) {
        let (id, arena) = {
            let mut session = self.session.lock();
            let at = session.arenas.iter().position(|a| a.id == region);
            (self.id(session.epoch), at.map(|at| session.arenas.swap_remove(at)))
        };
        if let Some(arena) = arena {
            self.take_back(id, arena.base);
        }
    }

    pub(super) fn id(&self, epoch: u64) -> ClientId {
        (self.run, epoch)
    }

    fn connection(&self) -> Result<Connection, CallError> {
        let idle = self.idle.lock().pop();
        idle.map_or_else(|| Connection::open(self.client, &self.traffic), Ok)
    }

    /// A call that gives no memory away.
    pub(super) fn ask(&self, function: &str, body: &[u8]) -> Result<Vec<u8>, CallError> {
        // One that had been idle may be from before the client restarted.
        for fresh in [false, true] {
            let mut connection = match fresh {
                false => self.connection()?,
                true => Connection::open(self.client, &self.traffic)?,
            };
            match connection.call(function, body) {
                Err(CallError::Lost(_)) if !fresh => self.idle.lock().clear(),
                Err(lost @ CallError::Lost(_)) => return Err(lost),
                answer => {
                    self.idle.lock().push(connection);
                    return answer;
                }
            }
        }
        Err(CallError::Refused(0, "no connection was tried".into()))
    }

    /// Who we are to a client that knows these regions.
    pub(super) fn caller<'a>(
        &self,
        regions: impl Iterator<Item = &'a Arc<dyn Region>> + Clone,
    ) -> Result<Caller> {
        let mut session = self.session.lock();
        if !session.live {
            session.epoch += 1;
            session.arenas.retain(|a| a.region.strong_count() > 0);
            let known: Vec<_> = session.arenas.drain(..).filter_map(|a| a.region.upgrade()).collect();
            for region in &known {
                self.hand_over(&mut session, region)?;
            }
            session.live = true;
            if session.epoch > 1 {
                tracing::info!(client = %self.client, regions = known.len(), "attached to the Mooncake client again");
            }
        }
        let mut last = None;
        for region in regions {
            let id = region.id();
            if last != Some(id) && !session.arenas.iter().any(|a| a.id == id) {
                self.hand_over(&mut session, region)?;
            }
            last = Some(id);
        }
        Ok(Caller { id: self.id(session.epoch), epoch: session.epoch })
    }

    /// Hands a region to the client, in place of those that were at its addresses and are gone.
    fn hand_over(&self, session: &mut Session, region: &Arc<dyn Region>) -> Result<()> {
        const OP: &str = "hand memory to Mooncake client";
        let about = |e: Error| e.with("client", self.client);
        let (base, len) = (region.base().addr().get() as u64, region.len() as u64);
        let fd = region.shared_fd().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, OP, "the memory is private to this process: only a memfd or named shared memory can be handed over")
        })?;
        let id = self.id(session.epoch);
        let gone = session.arenas.extract_if(.., |a| a.base < base + len && base < a.base + a.len);
        for arena in gone.collect::<Vec<_>>() {
            self.take_back(id, arena.base);
        }
        let io = |step: &'static str| move |e: std::io::Error| Error::io(OP, e).with("step", step);
        let address =
            UnixAddr::from_abstract_name(&self.socket).map_err(|e| about(io("name its socket")(e)))?;
        let mut socket = UnixStream::connect_addr(&address).map_err(|e| {
            let why = format!("its socket {} is not in this network namespace ({e})", self.socket);
            about(Error::new(ErrorKind::Unavailable, OP, why))
        })?;
        socket.set_read_timeout(Some(REGISTRATION)).map_err(|e| about(io("bound the wait")(e)))?;
        // Two messages: what is asked for (0 is a registration), and what it is about.
        socket.write_all(&0u32.to_ne_bytes()).map_err(|e| about(io("ask")(e)))?;
        let message = self.profile.registration(id, base, len);
        send_with_fd(&socket, &message, fd).map_err(|e| about(io("send its descriptor")(e)))?;
        let mut answer = [0; 4];
        socket.read_exact(&mut answer).map_err(|e| about(io("wait for its answer")(e)))?;
        match i32::from_ne_bytes(answer) {
            0 => {}
            code => {
                let why = "the client could not register the memory; its log says why";
                return Err(about(
                    Error::new(ErrorKind::Unavailable, OP, why).with("code", code).with("bytes", len),
                ));
            }
        }
        session.arenas.push(Arena { id: region.id(), base, len, region: Arc::downgrade(region) });
        Ok(())
    }

    fn take_back(&self, id: ClientId, base: u64) {
        let mut w = Writer::default();
        w.u64(base);
        profile::write_client_id(&mut w, id);
        let body = w.finish(&Type::Struct(vec![Type::U64, profile::client_id()]));
        match self.ask("unregister_shm_buffer_internal", &body) {
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the Mooncake client keeps a region that is gone"),
        }
    }

    /// From now on the client knows nothing of us.
    fn forgotten(&self, epoch: u64) {
        let mut session = self.session.lock();
        if session.epoch == epoch {
            session.live = false;
        }
    }

    /// Whether the client still has our memory: it looks at addresses before it looks for objects.
    fn is_known(&self, caller: Caller) -> bool {
        let Some((base, len)) = self.session.lock().arenas.first().map(|a| (a.base, a.len)) else {
            return true;
        };
        let key = [format!("kvstrata-canary-{:x}-{:x}", caller.id.0, caller.id.1)];
        let body = self.profile.batch(&key, [(base, len.min(64))].into_iter(), None, caller.id);
        let answer = self.ask("batch_get_into_dummy_helper", &body);
        let code = answer.ok().and_then(|body| values(&body, Type::I64, 1, size).ok());
        code.is_none_or(|per_key| per_key[0] != Err(Code::INVALID_PARAMS))
    }

    /// Waits until a client that has lost a connection is done with the buffers of the call: it is gone, or it has let go of
    /// our memory, for which it waits for the calls that use it.
    fn until_settled(&self, caller: Caller) {
        loop {
            let gone = UnixAddr::from_abstract_name(&self.socket)
                .and_then(|a| UnixStream::connect_addr(&a))
                .is_err();
            let let_go = gone
                || match Connection::open(self.client, &self.traffic) {
                    Ok(mut c) => !matches!(
                        c.call("unmap_shm_internal", &id_message(caller.id)),
                        Err(CallError::Lost(_) | CallError::Unreachable(_))
                    ),
                    Err(_) => false,
                };
            if let_go {
                return;
            }
            std::thread::sleep(SETTLING);
        }
    }

    /// A call that gives buffers away. If the client has forgotten us, or is a new one, it is called again, once.
    pub(super) fn transfer<'a, T>(
        &self,
        operation: &'static str,
        function: &str,
        regions: impl Iterator<Item = &'a Arc<dyn Region>> + Clone,
        body: impl Fn(ClientId) -> Vec<u8>,
        read: impl Fn(&[u8]) -> Result<PerKey<T>, Garbled>,
    ) -> Result<PerKey<T>> {
        let about = |e: Error| e.with("client", self.client);
        let mut again = true;
        loop {
            let caller = self.caller(regions.clone())?;
            let called = self
                .connection()
                .and_then(|mut c| c.call(function, &body(caller.id)).map(|answer| (c, answer)));
            match called {
                Ok((connection, answer)) => {
                    self.idle.lock().push(connection);
                    let per_key =
                        read(&answer).map_err(|e| about(failed(operation, &CallError::Garbled(e))))?;
                    let none = !per_key.is_empty()
                        && per_key.iter().all(|v| v.as_ref().is_err_and(|c| *c == Code::INVALID_PARAMS));
                    if !none || !again || self.is_known(caller) {
                        return Ok(per_key);
                    }
                }
                Err(e) => {
                    if let CallError::Lost(_) = e {
                        self.until_settled(caller);
                        self.idle.lock().clear();
                    }
                    if let CallError::Unreachable(_) | CallError::Lost(_) = e {
                        self.forgotten(caller.epoch);
                    }
                    if !again || !matches!(e, CallError::Lost(_)) {
                        return Err(about(failed(operation, &e)));
                    }
                }
            }
            self.forgotten(caller.epoch);
            again = false;
        }
    }

    /// Tells the client each second that we live, on a connection of its own: a transfer would hold the others up.
    pub(super) fn beat(&self) {
        let mut own: Option<Connection> = None;
        loop {
            {
                let mut closed = self.closed.0.lock();
                if !*closed {
                    self.closed.1.wait_for(&mut closed, HEARTBEAT);
                }
                if *closed {
                    return;
                }
            }
            let caller = {
                let session = self.session.lock();
                if !session.live {
                    continue;
                }
                Caller { id: self.id(session.epoch), epoch: session.epoch }
            };
            let mut connection = match own.take() {
                Some(connection) => connection,
                None => match Connection::open(self.client, &self.traffic) {
                    Ok(c) if c.patience(PATIENCE).is_ok() => c,
                    _ => continue,
                },
            };
            let status = Type::Struct(vec![Type::I64, Type::I32]);
            match connection.call("ping", &id_message(caller.id)) {
                Ok(body) => {
                    if let Ok(Err(code)) = value(&body, status, |r| r.i64()) {
                        tracing::debug!(code, "the Mooncake client does not know us");
                        self.forgotten(caller.epoch);
                    }
                    own = Some(connection);
                }
                Err(error) => tracing::debug!(%error, "a heartbeat was not answered"),
            }
        }
    }
}
