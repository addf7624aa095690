//! L2-6: usage never exceeds the limit; no space is a declined store, and loads go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvstrata_core::ErrorKind;
use kvstrata_l2::{L2Usage, StoreUsage, Stored};

use super::rig::{Rig, Setup, opaque};
use super::{Ignored, Outcome};

const LIMIT: u64 = 1 << 20;
const LEN: usize = 64 << 10;

async fn limited(setup: Setup) -> Result<(Rig, Arc<dyn L2Usage>), Ignored> {
    let rig = setup.limited(Some(LIMIT)).await?;
    let usage = rig.usage()?;
    match usage.usage().capacity {
        Some(capacity) => assert_eq!(capacity, LIMIT, "the limit is the one that was set"),
        None => return Err(Ignored("the store has no limit".into())),
    }
    Ok((rig, usage))
}

/// Twice as much is stored as there is room for, by two tasks, while another one watches.
pub(super) async fn l2_6_usage_never_exceeds_the_limit(setup: Setup) -> Outcome {
    let (rig, usage) = limited(setup).await?;
    let empty = usage.usage().used;
    rig.write([0], LEN).await;
    let cost = usage.usage().used - empty;
    assert!(cost >= LEN as u64, "an object takes at least its payload");

    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watch = {
        let (done, peak, usage) = (Arc::clone(&done), Arc::clone(&peak), Arc::clone(&usage));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(usage.usage().used, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
    };
    let rig = Arc::new(rig);
    let fill = |first: u64| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move {
            let (mut written, mut declined) = (0u64, 0u64);
            for batch in 0..4 {
                let first = first + batch * 4;
                for answer in rig.put(first..first + 4, LEN).await {
                    match answer {
                        Ok(_) => written += 1,
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                            declined += 1;
                        }
                    }
                }
            }
            (written, declined)
        })
    };
    let (a, b) = (fill(100), fill(200));
    let (a, b) = (a.await.expect("a task"), b.await.expect("a task"));
    done.store(true, Ordering::Relaxed);
    watch.await.expect("a task");

    let (written, declined) = (1 + a.0 + b.0, a.1 + b.1);
    let now = usage.usage();
    assert!(
        peak.load(Ordering::Relaxed) <= LIMIT,
        "{} of {LIMIT} bytes were used",
        peak.load(Ordering::Relaxed)
    );
    assert_eq!(now.declined, declined, "what is declined is counted");
    assert_eq!(now.objects + now.evicted, written, "what was stored is there or was evicted");
    assert!(declined + now.evicted > 0, "there was not room for all");
    assert_eq!(now.used - empty, now.objects * cost, "bytes are counted exactly");
    if now.evicted == 0 {
        // An object lies in one part: of several paths, the one with the most room counts.
        let room =
            |usage: &StoreUsage| usage.capacity.map_or(0, |capacity| capacity.saturating_sub(usage.used));
        let largest = usage.parts().iter().map(|part| room(&part.usage)).max().unwrap_or_else(|| room(&now));
        assert!(largest < cost, "nothing is declined while there is room: {largest} bytes");
    }
    let ids: Vec<u64> = std::iter::once(0).chain(100..116).chain(200..216).collect();
    let mut hits = 0;
    for (id, answer) in ids.iter().zip(rig.get(ids.iter().copied(), LEN).await) {
        hits += u64::from(rig.is_right(*id, *id, LEN, answer));
    }
    assert_eq!(hits, now.objects, "loads go on in a full store");
    Arc::into_inner(rig).expect("the tasks have ended").finish().await
}

pub(super) async fn l2_6_too_large_is_declined_alone(setup: Setup) -> Outcome {
    let (rig, usage) = limited(setup).await?;
    rig.write([0], 5000).await;
    let before = usage.usage();
    let items = vec![rig.item(1, 5000), rig.item(2, LIMIT as usize + 1), rig.item(3, 5000)];
    let answers = rig.put_items(items, rig.far()).await;
    assert_eq!(answers[0].as_ref().expect("a put"), &Stored::Written);
    assert_eq!(answers[1].as_ref().expect_err("larger than the store").kind(), ErrorKind::NoSpace);
    assert_eq!(answers[2].as_ref().expect("a put"), &Stored::Written);
    let now = usage.usage();
    assert_eq!((now.objects, now.evicted, now.declined), (3, before.evicted, before.declined + 1));
    assert!(!rig.is_found(2).await, "a declined store leaves nothing");
    rig.read([0, 1, 3], 5000).await;
    rig.finish().await
}

pub(super) async fn l2_6_room_of_failed_puts_comes_back(setup: Setup) -> Outcome {
    let (rig, usage) = limited(setup).await?;
    let device = rig.device()?;
    rig.write([0], LEN).await;
    let before = usage.usage();
    device.hang();
    let items = (1..9).map(|id| rig.item(id, LEN)).collect();
    let answers = rig.put_items(items, rig.soon()).await;
    assert!(answers.iter().all(Result::is_err));
    device.resume();
    rig.settle(0).await;
    let back = async {
        while usage.usage().used != before.used {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    rig.ends("giving the room back", back).await;
    assert_eq!(usage.usage().objects, 1);
    rig.write(1..9, LEN).await;
    rig.finish().await
}

pub(super) async fn l2_6_removed_bytes_come_back(setup: Setup) -> Outcome {
    let (rig, usage) = limited(setup).await?;
    let remove = rig.remove()?;
    let empty = usage.usage().used;
    for _ in 0..3 {
        rig.write(0..12, LEN).await;
        let smaller = (0..12).map(|id| rig.item(id, 100)).collect();
        for answer in rig.put_items(smaller, rig.far()).await {
            assert_eq!(answer.expect("room for a smaller one"), Stored::Written);
        }
        let items = (0..12).map(|id| rig.to_load(id, &opaque(100))).collect();
        for (id, answer) in (0..12).zip(rig.get_items(items, rig.far()).await) {
            assert!(rig.is_right(id, id, 100, answer), "key {id} is a miss");
        }
        assert!(remove.remove(rig.keys(0..12), rig.far()).await.into_iter().all(|r| r.expect("a removal")));
        assert_eq!((usage.usage().used, usage.usage().objects), (empty, 0));
    }
    rig.finish().await
}
