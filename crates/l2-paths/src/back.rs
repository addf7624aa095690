//! How a path comes back.
//!
//! A path that was out may have objects that were removed meanwhile, and older copies of what was stored elsewhere. Both are
//! taken off it before it is in service again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{Keys, Phase};

use crate::path::{Door, Turn};
use crate::paths::Inner;

/// Keys that are looked at, or taken off, at once.
const BATCH: usize = 1024;
/// How long one such step may take.
const STEP: Duration = Duration::from_secs(10);

impl Inner {
    pub(crate) fn turn(self: &Arc<Self>, at: usize, turn: Turn) {
        let weak = Arc::downgrade(self);
        match turn {
            Turn::Returns(door) => self.cx.spawn.spawn(Box::pin(returns(weak, at, door))),
            Turn::Reopens(door) => self.cx.spawn.spawn(Box::pin(async move {
                if let Some(inner) = weak.upgrade() {
                    inner.close(at, door).await;
                }
            })),
        }
    }

    /// Closes the store of a path that is out for long, and has it opened again.
    async fn close(self: &Arc<Self>, at: usize, door: Arc<Door>) {
        let path = &self.paths[at];
        let deadline = self.cx.timer.now() + STEP;
        match door.adapter.store.shutdown(deadline).await {
            // It hangs still: it keeps its store, and is tried again.
            Err(e) if e.kind() == ErrorKind::TimedOut => {
                tracing::warn!(path = %path.place.name, error = %e, "a path that is out does not close");
            }
            result => {
                drop(door);
                path.closed(result.err());
                self.reopen(at);
            }
        }
    }

    /// Opens a path's store in the background.
    pub(crate) fn reopen(self: &Arc<Self>, at: usize) {
        let Some(open) = self.paths[at].open.clone() else { return };
        let weak = Arc::downgrade(self);
        let timer = Arc::clone(&self.cx.timer);
        let (first, longest) = (self.options.reopen_after, self.options.breaker.cool_down_max);
        self.cx.spawn.spawn(Box::pin(async move {
            let mut pause = first;
            loop {
                timer.sleep_until(timer.now() + pause).await;
                // Whoever owned the paths may be gone; then nobody opens anything.
                if weak.upgrade().is_none_or(|inner| inner.driver.is_closed()) {
                    return;
                }
                let opened = open.open().await;
                let Some(inner) = weak.upgrade() else { return };
                let path = &inner.paths[at];
                match opened.and_then(|adapter| Door::new(adapter, &inner.options, &inner.cx)) {
                    Ok(door) if inner.driver.is_closed() => {
                        let deadline = inner.cx.timer.now() + STEP;
                        drop(door.adapter.store.shutdown(deadline).await);
                        return;
                    }
                    Ok(door) => {
                        inner.apply_quotas(at, &door);
                        path.opened(Arc::clone(&door));
                        drop(inner);
                        return returns(weak, at, door).await;
                    }
                    Err(e) => {
                        tracing::warn!(path = %path.place.name, error = %e, "a path cannot be opened");
                        path.closed(Some(e));
                    }
                }
                pause = (pause * 2).min(longest);
            }
        }));
    }

    /// Takes off what must not come back.
    async fn reconcile(&self, at: usize, door: &Door) -> Result<()> {
        let path = &self.paths[at];
        self.take_off(at, door).await?;
        let mut cursor = None;
        loop {
            let step = self.cx.timer.now() + STEP;
            let page = self.within(step, door.list().list(cursor.as_deref(), BATCH)).await?;
            let listed: Keys = page.entries.iter().map(|(key, _)| key.clone()).collect();
            let others: Vec<usize> = (0..self.paths.len()).filter(|other| *other != at).collect();
            let elsewhere = self.holders(&listed, &others, step).await;
            let twice: Keys = listed
                .iter()
                .zip(&elsewhere)
                .filter(|(_, at)| !at.is_empty())
                .map(|(k, _)| k.clone())
                .collect();
            remove(door, twice, step).await?;
            if self.driver.is_closed() {
                return Err(kvstrata_l2::closed("take path back"));
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        tracing::debug!(path = %path.place.name, "a path was compared with the others");
        Ok(())
    }

    /// Removes from a path what it was noted to have no more.
    async fn take_off(&self, at: usize, door: &Door) -> Result<()> {
        let path = &self.paths[at];
        let (gone, forgotten) = path.take_gone();
        if forgotten > 0 {
            let mut cursor = None;
            loop {
                let step = self.cx.timer.now() + STEP;
                let page = match self.within(step, door.list().list(cursor.as_deref(), BATCH)).await {
                    Ok(page) => page,
                    Err(e) => {
                        path.untake(gone);
                        return Err(e);
                    }
                };
                let keys = page.entries.into_iter().map(|(key, _)| key).collect();
                if let Err(e) = remove(door, keys, step).await {
                    path.untake(gone);
                    return Err(e);
                }
                match page.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
            // The keys were among them.
            path.emptied(forgotten);
            return Ok(());
        }
        for (i, part) in gone.chunks(BATCH).enumerate() {
            if let Err(e) = remove(door, Keys::from(part), self.cx.timer.now() + STEP).await {
                path.untake(gone[i * BATCH..].iter().cloned());
                return Err(e);
            }
        }
        Ok(())
    }

    async fn within<T>(&self, deadline: Instant, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let late = || kvstrata_l2::timed_out("take path back", deadline);
        kvstrata_l2::until(&*self.cx.timer, deadline, Box::pin(work)).await.unwrap_or_else(|| Err(late()))
    }
}

async fn remove(door: &Door, keys: Keys, deadline: Instant) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let parts = keys.chunks(door.adapter.store.desc().max_batch.max(1));
    for part in parts {
        door.remove()
            .remove(Keys::from(part), deadline)
            .await
            .into_iter()
            .collect::<Result<Vec<bool>, Error>>()?;
    }
    Ok(())
}

/// Brings a path back whose store works.
async fn returns(inner: Weak<Inner>, at: usize, door: Arc<Door>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let Some(inner) = inner.upgrade() else { return };
        if inner.driver.is_closed() {
            return;
        }
        let path = &inner.paths[at];
        let compared = inner.reconcile(at, &door).await;
        match compared {
            Ok(()) => {
                // What was stored or removed meanwhile was noted.
                while !path.comes_back() {
                    if inner.driver.is_closed() || inner.take_off(at, &door).await.is_err() {
                        break;
                    }
                }
                if path.standing() == crate::PathState::Live {
                    return;
                }
            }
            Err(e) => tracing::warn!(path = %path.place.name, error = %e, "a path does not come back yet"),
        }
        if door.breaker.view().phase != Phase::Closed {
            return path.out_again();
        }
        let timer = Arc::clone(&inner.cx.timer);
        let longest = inner.options.breaker.cool_down_max;
        drop(inner);
        timer.sleep_until(timer.now() + pause).await;
        pause = (pause * 2).min(longest);
    }
}
