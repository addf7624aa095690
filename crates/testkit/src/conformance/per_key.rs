//! L2-4: one key's failure never fails another; each answer carries its key's position.

use kvstrata_l2::{Answer, Miss, Stored};

use super::Outcome;
use super::rig::{Setup, opaque};

/// The most keys that a case puts into one batch.
const MANY: usize = 1024;

/// Hits, misses and sizes are mixed, so that an answer at another's position is a wrong answer.
pub(super) async fn l2_4_answers_carry_their_positions(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let len = |id: u64| 1000 + 777 * id as usize;
    let items = (0..12).filter(|id| id % 3 != 1).rev().map(|id| rig.item(id, len(id))).collect();
    rig.put_items(items, rig.far())
        .await
        .into_iter()
        .for_each(|a| assert_eq!(a.expect("a put"), Stored::Written));
    let items = (0..12).map(|id| rig.to_load(id, &opaque(len(id)))).collect();
    for (id, answer) in (0..12).zip(rig.get_items(items, rig.far()).await) {
        assert_eq!(rig.is_right(id, id, len(id), answer), id % 3 != 1, "key {id}");
    }
    let again = (0..12).map(|id| rig.item(id, len(id))).collect();
    for (id, answer) in (0..12).zip(rig.put_items(again, rig.far()).await) {
        let expected = if id % 3 == 1 { Stored::Written } else { Stored::Present };
        assert_eq!(answer.expect("a put"), expected, "key {id}");
    }
    rig.finish().await
}

pub(super) async fn l2_4_bad_keys_fail_alone(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write([0, 1, 3], 5000).await;
    let items = vec![
        rig.to_load(0, &opaque(5000)),
        rig.to_load(1, &opaque(4999)),
        rig.to_load(2, &opaque(5000)),
        rig.to_load(3, &opaque(5000)),
    ];
    let mut answers = rig.get_items(items, rig.far()).await.into_iter();
    assert!(rig.is_right(0, 0, 5000, answers.next().expect("four answers")));
    let other = answers.next();
    assert!(matches!(other, Some(Answer::Miss(Miss::Layout, _))), "{other:?}");
    let absent = answers.next();
    assert!(matches!(absent, Some(Answer::Miss(Miss::Absent, _))), "{absent:?}");
    assert!(rig.is_right(3, 3, 5000, answers.next().expect("four answers")));
    drop((other, absent));
    rig.finish().await
}

pub(super) async fn l2_4_zero_keys(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    assert!(rig.put([], 1).await.is_empty());
    assert!(rig.get([], 1).await.is_empty());
    assert!(rig.probe([]).await.is_empty());
    if let Some(remove) = &rig.adapter.remove {
        assert!(remove.remove(rig.keys([]), rig.far()).await.is_empty());
    }
    rig.finish().await
}

/// A batch of as many keys as the adapter says it takes.
pub(super) async fn l2_4_full_batch(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let max = rig.adapter.store.desc().max_batch;
    assert!(max > 0, "an adapter takes at least one key");
    let n = max.min(MANY) as u64;
    rig.write(0..n, 100).await;
    rig.read(0..n, 100).await;
    assert!(rig.probe(0..n).await.into_iter().all(|f| f.expect("a probe").is_some()));
    rig.finish().await
}
