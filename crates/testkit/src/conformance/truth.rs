//! L2-2: exactly the bytes that were stored, or a miss.

use std::sync::Arc;

use kvstrata_core::{DType, Layout, TensorDesc};
use kvstrata_l2::{Answer, Checked, Miss, Stored, Verify};

use super::rig::{Rig, Setup, opaque};
use super::{Damage, Ignored, Outcome};
use crate::rng::Rng;

const SIZES: [usize; 6] = [1, 4095, 4096, 4097, 64 << 10, (1 << 20) + 1];

pub(super) async fn l2_2_every_size_comes_back(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let items = (0..).zip(SIZES).map(|(id, len)| rig.item(id, len)).collect();
    for answer in rig.put_items(items, rig.far()).await {
        assert_eq!(answer.expect("a put"), Stored::Written);
    }
    let items = (0..).zip(SIZES).map(|(id, len)| rig.to_load(id, &opaque(len))).collect();
    let answers = rig.get_items(items, rig.far()).await;
    for ((id, len), answer) in (0..).zip(SIZES).zip(answers) {
        assert!(rig.is_right(id, id, len, answer), "{len} bytes are a miss");
    }
    rig.finish().await
}

pub(super) async fn l2_2_absent_is_a_miss(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    for answer in rig.get(0..3, 4096).await {
        assert!(matches!(answer, Answer::Miss(Miss::Absent, _)), "{answer:?}");
    }
    rig.finish().await
}

/// Loading as something else, of the same length or another, is a miss, and the object stays.
pub(super) async fn l2_2_another_layout_is_a_miss(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write([0], 4096).await;
    let halves = Layout::new(vec![TensorDesc { dtype: DType::U8, shape: vec![2, 2048] }]).expect("a layout");
    for layout in [halves, opaque(4095), opaque(8192), opaque(1)] {
        let answers = rig.get_items(vec![rig.to_load(0, &layout)], rig.far()).await;
        assert!(matches!(answers[0], Answer::Miss(Miss::Layout, _)), "as {layout:?}: {answers:?}");
    }
    rig.read([0], 4096).await;
    rig.finish().await
}

pub(super) async fn l2_2_replaced_by_another_digest(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write(0..2, 5000).await;
    let other = rig.arena.item(&rig.key(0), &rig.key(77), &opaque(5000)).expect("an item");
    let digest = other.digest.known();
    let answers = rig.put_items(vec![other], rig.far()).await;
    assert_eq!(answers[0].as_ref().expect("a put"), &Stored::Written);
    assert!(rig.is_right(0, 77, 5000, rig.get([0], 5000).await.remove(0)), "a miss");
    let found = rig.probe([0]).await.remove(0).expect("a probe").expect("the key");
    assert_eq!(found.digest, digest, "the digest is the new one's");
    let other = rig.arena.item(&rig.key(0), &rig.key(0), &opaque(300)).expect("an item");
    let answers = rig.put_items(vec![other], rig.far()).await;
    assert_eq!(answers[0].as_ref().expect("a put"), &Stored::Written, "another layout takes its place too");
    rig.read([0], 300).await;
    rig.read([1], 5000).await;
    rig.finish().await
}

/// After damage to the keys `0..n`: misses, never wrong bytes; the next puts heal; the neighbours are as they were.
async fn heals(mut rig: Rig, n: u64, damage: Damage<'_>) -> Outcome {
    const LEN: usize = 20_000;
    // Bytes are judged by the checked handle, on whatever is below it.
    rig.adapter = Checked::new(rig.adapter, Verify::On, rig.cx.clone()).adapter;
    rig.write(0..4, LEN).await;
    rig.damage(damage)?;
    for (id, answer) in (0..4).zip(rig.get(0..4, LEN).await) {
        assert_eq!(rig.is_right(id, id, LEN, answer), id >= n, "key {id} after {damage:?}");
    }
    for answer in rig.put(0..n, LEN).await {
        assert_eq!(answer.expect("a put"), Stored::Written, "a bad object is not said to be there");
    }
    for (id, answer) in (0..4).zip(rig.get(0..4, LEN).await) {
        if let Answer::Loaded(loaded) = &answer {
            assert!(loaded.verified, "key {id}");
        }
        assert!(rig.is_right(id, id, LEN, answer), "key {id} was not healed");
    }
    rig.finish().await
}

pub(super) async fn l2_2_flipped_bit_is_healed(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let key = rig.key(0);
    heals(rig, 1, Damage::Flip(&key)).await
}

pub(super) async fn l2_2_truncated_is_healed(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let key = rig.key(0);
    heals(rig, 1, Damage::Truncate(&key)).await
}

pub(super) async fn l2_2_swapped_is_healed(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let (a, b) = (rig.key(0), rig.key(1));
    heals(rig, 2, Damage::Swap(&a, &b)).await
}

/// An adapter that keeps the descriptions in memory may still load the object; one that reads the header must miss. Both
/// are right bytes or a miss, before and after the store is opened again.
pub(super) async fn l2_2_broken_header_is_healed(setup: Setup) -> Outcome {
    let mut rig = setup.rig().await?;
    rig.write(0..2, 9000).await;
    let key = rig.key(0);
    rig.damage(Damage::Header(&key))?;
    let answer = rig.get([0], 9000).await.remove(0);
    rig.is_right(0, 0, 9000, answer);
    reopen(&mut rig).await?;
    let answer = rig.get([0], 9000).await.remove(0);
    let lost = !rig.is_right(0, 0, 9000, answer);
    let answer = rig.put([0], 9000).await.remove(0).expect("a put");
    assert_eq!(answer == Stored::Written, lost, "written if and only if it was lost");
    rig.read(0..2, 9000).await;
    rig.finish().await
}

async fn reopen(rig: &mut Rig) -> Outcome {
    let durable = rig.adapter.store.desc().durable;
    assert_eq!(durable, rig.subject.reopen.is_some(), "every durable store, and no other, can be reopened");
    let reopen = rig.subject.reopen.as_ref().ok_or_else(|| Ignored("the store is not durable".into()))?;
    rig.adapter.store.shutdown(rig.far()).await.expect("a shutdown");
    let adapter = reopen(rig.cx.clone()).await.expect("the store again");
    rig.adopt(adapter);
    Ok(())
}

pub(super) async fn l2_2_everything_survives_reopening(setup: Setup) -> Outcome {
    let mut rig = setup.rig().await?;
    let items = (0..).zip(SIZES).map(|(id, len)| rig.item(id, len)).collect();
    rig.put_items(items, rig.far())
        .await
        .into_iter()
        .for_each(|a| assert_eq!(a.expect("a put"), Stored::Written));
    let n = SIZES.len() as u64;
    let before = rig.probe(0..n).await.into_iter().collect::<Result<Vec<_>, _>>().expect("a probe");
    let usage = rig.adapter.usage.as_ref().map(|u| u.usage().used);
    reopen(&mut rig).await?;
    let after = rig.probe(0..n).await.into_iter().collect::<Result<Vec<_>, _>>().expect("a probe");
    assert_eq!(before, after);
    assert_eq!(usage, rig.adapter.usage.as_ref().map(|u| u.usage().used), "what is found at start counts");
    for (id, len) in (0..).zip(SIZES) {
        rig.read([id], len).await;
        assert_eq!(rig.put([id], len).await.remove(0).expect("a put"), Stored::Present);
    }
    rig.finish().await
}

/// Several tasks put, replace, get and remove the same few keys. Each load is right or a miss.
pub(super) async fn l2_2_concurrent_tasks_get_right_bytes(setup: Setup) -> Outcome {
    const LEN: usize = 12_345;
    let rig = Arc::new(setup.rig().await?);
    let task = |seed| {
        let rig = Arc::clone(&rig);
        async move {
            let mut rng = Rng::new(seed);
            for _ in 0..60 {
                let first = rng.below(8);
                let ids = first..first + 1 + rng.below(4);
                match (rng.below(8), &rig.adapter.remove) {
                    (0, Some(remove)) => {
                        let keys = rig.keys(ids);
                        for removed in remove.remove(keys, rig.far()).await {
                            removed.expect("a removal");
                        }
                    }
                    (1..=3, _) => {
                        assert!(rig.put(ids, LEN).await.iter().all(Result::is_ok));
                    }
                    _ => {
                        for (id, answer) in ids.clone().zip(rig.get(ids, LEN).await) {
                            rig.is_right(id, id, LEN, answer);
                        }
                    }
                }
            }
        }
    };
    let tasks: Vec<_> = (1..=4).map(|seed| tokio::spawn(task(seed))).collect();
    for task in tasks {
        task.await.expect("no task fails");
    }
    assert!(rig.put(0..12, LEN).await.iter().all(Result::is_ok));
    rig.read(0..12, LEN).await;
    Arc::into_inner(rig).expect("the tasks have ended").finish().await
}
