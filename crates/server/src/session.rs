//! Sessions: what is remembered of an engine's request until it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Instant, KeyScope, Result};
use kvstrata_manager::Request as Circumstances;

use crate::chain::Chain;
use crate::lookup::Job;
use crate::service::ClientId;

/// One engine request.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) chain: Chain,
    pub(crate) job: Option<Arc<Job>>,
    /// The shards that it looked up or stored: what its end marks as used.
    pub(crate) scopes: Vec<Arc<KeyScope>>,
    /// What eviction policies see of it.
    pub(crate) circumstances: Circumstances,
    last: Instant,
    /// The connections that asked for it and are open: a scheduler's, and those of its workers.
    clients: Vec<ClientId>,
}

/// All sessions, by their requests' names.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: HashMap<String, Session>,
}

/// A request's name is the client's to choose, up to this.
const MAX_NAME: usize = 1024;

impl Sessions {
    /// The session, which begins here if it is new.
    pub(crate) fn enter(
        &mut self,
        name: &str,
        client: ClientId,
        now: Instant,
        most: usize,
        begin: impl FnOnce() -> Circumstances,
    ) -> Result<&mut Session> {
        if !self.all.contains_key(name) {
            if name.len() > MAX_NAME {
                return Err(Error::invalid("begin session", "a request's name has at most 1024 bytes")
                    .with("request_id", name.len()));
            }
            if self.all.len() >= most {
                return Err(Error::new(ErrorKind::Busy, "begin session", "there are too many sessions")
                    .with("limit", most));
            }
            let session = Session {
                chain: Chain::default(),
                job: None,
                scopes: Vec::new(),
                circumstances: begin(),
                last: now,
                clients: Vec::new(),
            };
            self.all.insert(name.to_owned(), session);
        }
        let session = self.all.get_mut(name).expect("it is there now");
        session.last = now;
        if !session.clients.contains(&client) {
            session.clients.push(client);
        }
        Ok(session)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Session> {
        self.all.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Session> {
        self.all.get_mut(name)
    }

    pub(crate) fn end(&mut self, name: &str) -> Option<Session> {
        self.all.remove(name)
    }

    /// Takes out what nobody asked about for so long.
    pub(crate) fn expired(&mut self, now: Instant, ttl: Duration) -> Vec<(String, Session)> {
        self.all.extract_if(|_, session| session.last + ttl <= now).collect()
    }

    /// A connection is gone for good. Takes out the sessions that no other one asked for.
    pub(crate) fn left_alone(&mut self, client: ClientId) -> Vec<(String, Session)> {
        let leaves = |_: &String, session: &mut Session| {
            let Some(at) = session.clients.iter().position(|c| *c == client) else { return false };
            session.clients.swap_remove(at);
            session.clients.is_empty()
        };
        self.all.extract_if(leaves).collect()
    }

    /// The lookups of all sessions.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.all.values().filter_map(|s| s.job.as_ref())
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn drain(&mut self) -> Vec<Session> {
        self.all.drain().map(|(_, s)| s).collect()
    }
}
