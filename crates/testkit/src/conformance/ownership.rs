//! L2-1: a buffer belongs to the driver until the device is finished with it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use kvstrata_core::{Affinity, ErrorKind, Result};
use kvstrata_l2::{Answer, Fail, Get, Put, Sink, Stored};

use super::Outcome;
use super::rig::{Rig, Setup, failure, opaque, poll_times};

const LEN: usize = 64 << 10;

/// A put is given up after some polls. Every key is still answered, freed memory is not read, and a key that failed is not
/// there.
pub(super) async fn l2_1_put_dropped_after_k_polls(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    for k in 0..5u64 {
        let ids: Vec<u64> = (k * 10..k * 10 + 4).collect();
        let items = ids.iter().map(|id| rig.item(*id, LEN)).collect();
        let (mut call, answers) = rig.put_call(items, rig.far());
        poll_times(&mut call, k as usize).await;
        drop(call);
        let poison = rig.arena.poison().expect("poison");
        let answers = answers.arrive(&rig).await;
        rig.settle(poison.buffers()).await;
        assert!(poison.is_untouched(), "freed memory was written to");
        drop(poison);
        for (id, answer) in ids.into_iter().zip(answers) {
            stored_or_absent(&rig, id, answer).await;
        }
    }
    rig.finish().await
}

async fn stored_or_absent(rig: &Rig, id: u64, answer: Result<Stored>) {
    match answer {
        Ok(_) => rig.read([id], LEN).await,
        Err(_) => assert!(!rig.is_found(id).await, "key {id} failed and is there"),
    }
}

/// A get is given up after some polls. Every key is still answered, what was loaded is right, and freed memory is not
/// written to.
pub(super) async fn l2_1_get_dropped_after_k_polls(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write(0..4, LEN).await;
    for k in 0..5 {
        let items = (0..4).map(|id| rig.to_load(id, &opaque(LEN))).collect();
        let (mut call, answers) = rig.get_call(items, rig.far());
        poll_times(&mut call, k).await;
        drop(call);
        let poison = rig.arena.poison().expect("poison");
        for (id, answer) in answers.arrive(&rig).await.into_iter().enumerate() {
            match answer {
                // It was dropped before the driver took it.
                Answer::Failed(..) => {}
                answer => assert!(rig.is_right(id as u64, id as u64, LEN, answer), "key {id} is a miss"),
            }
        }
        rig.settle(poison.buffers()).await;
        assert!(poison.is_untouched(), "freed memory was written to");
    }
    rig.read(0..4, LEN).await;
    rig.finish().await
}

/// The device hangs until the deadline has passed, then goes on: what it reads then is still the payload, or nobody
/// sees it.
pub(super) async fn l2_1_timed_out_put_keeps_its_buffers(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    device.hang();
    let items = (0..4).map(|id| rig.item(id, LEN)).collect();
    let answers = rig.put_items(items, rig.soon()).await;
    for answer in &answers {
        assert_eq!(answer.as_ref().unwrap_err().kind(), ErrorKind::TimedOut);
    }
    let poison = rig.arena.poison().expect("poison");
    device.resume();
    rig.settle(poison.buffers()).await;
    assert!(poison.is_untouched(), "freed memory was written to");
    drop(poison);
    rig.write(0..4, LEN).await;
    rig.read(0..4, LEN).await;
    rig.finish().await
}

/// As above for a get: the device writes late, and not into memory that was freed.
pub(super) async fn l2_1_timed_out_get_keeps_its_buffers(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    rig.write(0..4, LEN).await;
    device.hang();
    let items = (0..4).map(|id| rig.to_load(id, &opaque(LEN))).collect();
    let answers = rig.get_items(items, rig.soon()).await;
    assert!(answers.iter().all(|a| failure(a) == Some(ErrorKind::TimedOut)), "{answers:?}");
    drop(answers);
    let poison = rig.arena.poison().expect("poison");
    device.resume();
    rig.settle(poison.buffers()).await;
    assert!(poison.is_untouched(), "freed memory was written to");
    drop(poison);
    rig.read(0..4, LEN).await;
    rig.finish().await
}

/// Who counts the bytes in flight goes by the sink: while the driver has a buffer, it has the sink, answered or not.
pub(super) async fn l2_1_sink_is_kept_with_the_buffers(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    rig.write(0..2, LEN).await;
    device.hang();
    let (sink, stores) = watched::<Result<Stored>>(2);
    let items = (10..12).map(|id| rig.item(id, LEN)).collect();
    let request = Put { items, deadline: rig.soon(), affinity: Affinity::default() };
    rig.ends("put", rig.adapter.store.put(request, sink)).await;
    let held = rig.arena.in_use();
    assert!(held == 0 || stores.strong_count() > 0, "{held} buffers are held without their sink");
    let (sink, loads) = watched::<Answer>(2);
    let items = (0..2).map(|id| rig.to_load(id, &opaque(LEN))).collect();
    let request = Get { items, deadline: rig.soon(), affinity: Affinity::default() };
    rig.ends("get", rig.adapter.store.get(request, sink)).await;
    let held = rig.arena.in_use() - held;
    assert!(held == 0 || loads.strong_count() > 0, "{held} buffers are held without their sink");
    device.resume();
    let gone = async {
        while stores.strong_count() + loads.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    rig.ends("dropping the sinks", gone).await;
    assert_eq!(rig.arena.in_use(), 0, "the sinks are gone, so the buffers are too");
    rig.finish().await
}

/// A sink that drops its answers, and whether it still lives.
fn watched<T: Fail>(keys: usize) -> (Sink<T>, Weak<impl Sized>) {
    let receiver = Arc::new(|_: usize, answer: T| drop(answer));
    let weak = Arc::downgrade(&receiver);
    (Sink::new(keys, receiver), weak)
}
