//! The adapter seen from host memory, with every chunk taken through a GPU's: what tests hand over is copied to device
//! memory and stored from there, and what they load is loaded to device memory and copied back. So every test of host
//! memory is one of device memory.

use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Affinity, Error, ErrorKind, Instant, Result};
use kvstrata_io::IoEngine;
use kvstrata_l2::{
    Adapter, Answer, Context, Found, Get, GetItem, GetSink, L2Desc, L2Store, Loaded, MemoryKinds, Probe, Put,
    PutItem, PutSink,
};
use kvstrata_l2_gds::GdsStore;
use kvstrata_mem::{Allocate, ReadBuf, UNIT};
use kvstrata_testkit::conformance::BusyThreads;
use parking_lot::Mutex;

use crate::common::device::Device;

/// An adapter whose chunks go by a GPU's memory.
#[derive(Debug)]
pub(crate) struct Via {
    inner: Arc<dyn L2Store>,
    device: Arc<Device>,
    desc: L2Desc,
    cx: Context,
}

/// Puts it on top of an adapter.
pub(crate) fn via(adapter: Adapter, device: &Arc<Device>, cx: &Context) -> Adapter {
    let desc = L2Desc { kinds: MemoryKinds::HOST, ..adapter.store.desc().clone() };
    let store = Via { inner: adapter.store, device: Arc::clone(device), desc, cx: cx.clone() };
    Adapter { store: Arc::new(store), ..adapter }
}

fn gpu(affinity: Affinity) -> Affinity {
    Affinity { ordinal: affinity.ordinal.or(Some(0)), ..affinity }
}

#[async_trait]
impl L2Store for Via {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        let (mut items, mut positions) = (Vec::new(), Vec::new());
        for (position, item) in request.items.into_iter().enumerate() {
            match upload(&self.device, &item.buf) {
                Ok(buf) => {
                    positions.push(position);
                    items.push(PutItem { buf, ..item });
                }
                Err(e) => {
                    done.answer(position, Err(e));
                }
            }
        }
        let to = done.clone();
        let sink = PutSink::new(
            items.len(),
            Arc::new(move |i: usize, a| {
                to.answer(positions[i], a);
            }),
        );
        drop(done);
        self.inner
            .put(Put { items, deadline: request.deadline, affinity: gpu(request.affinity) }, sink)
            .await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        let (mut items, mut rest) = (Vec::new(), Vec::new());
        for (position, item) in request.items.into_iter().enumerate() {
            match self.device.pool.reserve(item.buf.len(), UNIT) {
                Ok(buf) => {
                    rest.push(Mutex::new(Some((position, item.buf))));
                    items.push(GetItem { buf, key: item.key, layout: item.layout });
                }
                Err(e) => {
                    done.answer(position, Answer::Failed(e, Some(item.buf)));
                }
            }
        }
        let (to, device) = (done.clone(), Arc::clone(&self.device));
        let answer = move |i: usize, answer: Answer| {
            let Some((position, mut host)) = rest[i].lock().take() else { return };
            let answer = match answer {
                Answer::Loaded(loaded) => {
                    match device.bytes(&loaded.buf).and_then(|b| host.write_at(0, &b)) {
                        Ok(()) => Answer::Loaded(Loaded { buf: host, ..loaded }),
                        Err(e) => Answer::Failed(e, Some(host)),
                    }
                }
                Answer::Miss(miss, _) => Answer::Miss(miss, Some(host)),
                // The device may still have its chunk, but not the host's.
                Answer::Failed(e, Some(_)) => Answer::Failed(e, Some(host)),
                Answer::Failed(e, None) => Answer::Failed(e, None),
            };
            to.answer(position, answer);
        };
        let sink = GetSink::new(items.len(), Arc::new(answer));
        drop(done);
        self.inner
            .get(Get { items, deadline: request.deadline, affinity: gpu(request.affinity) }, sink)
            .await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.inner.probe(request).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await?;
        // Chunks of device memory are all back when nothing is in flight.
        let used = self.device.pool.usage().buffers;
        if used == 0 || deadline <= self.cx.timer.now() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Internal,
            "shut down",
            format!("{used} chunks of device memory are still out"),
        ))
    }
}

fn upload(device: &Device, from: &ReadBuf) -> Result<ReadBuf> {
    let len = from.len();
    Ok(device.filled(len, |to| from.read_at(0, to))?.seal(len))
}

/// Hangs an adapter by keeping all its threads busy: they wait for whatever moves its bytes.
pub(crate) fn hang(gds: GdsStore) -> Arc<BusyThreads> {
    let threads = gds.threads().threads();
    Arc::new(BusyThreads::new(threads, move |job| {
        gds.threads().spawn(true, job).ok().expect("an open engine");
    }))
}
