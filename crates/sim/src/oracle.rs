//! What must hold, watched from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvstrata_core::{Instant, ObjectKey};
use kvstrata_mem::ReadBuf;
use kvstrata_testkit::payload;
use parking_lot::Mutex;

/// The watcher. Clones are the same; it outlives restarts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    /// Keys that somebody committed at some time.
    committed: BTreeSet<[u8; 32]>,
    /// Hook calls by commit and key.
    hooks: BTreeMap<(u64, [u8; 32]), u32>,
    commits: u64,
    /// Keys that adapters told the manager they have: how often, and since the last kill.
    stored: BTreeMap<[u8; 32], u64>,
    /// Keys that hooks were called for since the last kill.
    hooked: BTreeSet<[u8; 32]>,
    /// Keys that somebody deleted since the last kill.
    deleted: BTreeSet<[u8; 32]>,
    /// Engines at work.
    clients: usize,
    wrong: Vec<String>,
    hits: u64,
    misses: u64,
}

impl Oracle {
    pub(crate) fn wrong(&self, what: String) {
        self.0.lock().wrong.push(what);
    }

    /// The first thing that did not hold.
    pub(crate) fn verdict(&self) -> Option<String> {
        self.0.lock().wrong.first().cloned()
    }

    /// Chunks that were delivered and verified, and chunks that were not there.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let watched = self.0.lock();
        (watched.hits, watched.misses)
    }

    pub(crate) fn client(&self) -> Client {
        self.0.lock().clients += 1;
        Client(self.clone())
    }

    pub(crate) fn clients(&self) -> usize {
        self.0.lock().clients
    }

    /// The engines are gone with the process.
    pub(crate) fn killed(&self) {
        let mut watched = self.0.lock();
        watched.clients = 0;
        watched.stored.clear();
        watched.hooked.clear();
        watched.deleted.clear();
    }

    /// The number of a commit that is about to be made.
    pub(crate) fn commit<'a>(&self, keys: impl Iterator<Item = &'a ObjectKey>) -> u64 {
        let mut watched = self.0.lock();
        watched.committed.extend(keys.map(|key| *key.fingerprint256()));
        watched.commits += 1;
        watched.commits
    }

    /// A hook was called for a key of a commit.
    pub(crate) fn hook(&self, commit: u64, key: &ObjectKey) {
        let mut watched = self.0.lock();
        watched.hooked.insert(*key.fingerprint256());
        if watched.stored.get(key.fingerprint256()).is_none_or(|n| *n == 0) {
            watched.wrong.push(format!("the hook was called for {key}, which no adapter has taken"));
        }
        let calls = watched.hooks.entry((commit, *key.fingerprint256())).or_default();
        *calls += 1;
        if *calls > 1 {
            watched.wrong.push(format!("the hook of commit {commit} was called twice for {key}"));
        }
    }

    /// An adapter says that it has a key, or the manager had been answered for it before.
    pub(crate) fn stored(&self, key: &ObjectKey, heard: bool) {
        let mut watched = self.0.lock();
        let times = watched.stored.entry(*key.fingerprint256()).or_default();
        *times = if heard { *times + 1 } else { times.saturating_sub(1) };
    }

    /// Somebody deletes these keys: what is stored of them meanwhile is undone, and no hook comes.
    pub(crate) fn deletes(&self, keys: &[ObjectKey]) {
        self.0.lock().deleted.extend(keys.iter().map(|key| *key.fingerprint256()));
    }

    /// Every store is over: whoever's key was taken has heard of it.
    pub(crate) fn at_rest(&self) {
        let watched = &mut *self.0.lock();
        let silent = watched.stored.iter().filter(|(key, times)| {
            **times > 0 && !watched.hooked.contains(*key) && !watched.deleted.contains(*key)
        });
        let silent = silent.count();
        if silent > 0 {
            watched.wrong.push(format!("{silent} keys were stored, and their hooks were not called"));
        }
    }

    /// A key that was answered as a duplicate must not have had a hook.
    pub(crate) fn silent(&self, commit: u64, key: &ObjectKey) {
        let mut watched = self.0.lock();
        if watched.hooks.contains_key(&(commit, *key.fingerprint256())) {
            watched.wrong.push(format!("the hook of commit {commit} was called for {key}, a duplicate"));
        }
    }

    /// A chunk was delivered.
    pub(crate) fn hit(&self, key: &ObjectKey, buf: &ReadBuf) {
        let verified = payload::verify(key, buf).expect("host memory");
        let mut watched = self.0.lock();
        watched.hits += 1;
        if !watched.committed.contains(key.fingerprint256()) {
            watched.wrong.push(format!("{key} was found and never stored"));
        }
        if let Err(bytes) = verified {
            watched.wrong.push(format!("{key}: {bytes}"));
        }
    }

    pub(crate) fn missed(&self) {
        self.0.lock().misses += 1;
    }

    /// A call ended.
    pub(crate) fn ended(&self, what: &str, deadline: Instant, now: Instant) {
        if now > deadline {
            let late = now.since(deadline);
            self.wrong(format!("{what} ended {late:?} after its deadline"));
        }
    }
}

/// An engine at work, until this is dropped.
pub(crate) struct Client(Oracle);

impl Drop for Client {
    fn drop(&mut self) {
        let mut watched = self.0.0.lock();
        // A killed process' engines were counted out already.
        watched.clients = watched.clients.saturating_sub(1);
    }
}
