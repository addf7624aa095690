//! L2-3: found only after its put; a failed put leaves nothing.

use kvstrata_core::ErrorKind;
use kvstrata_l2::Stored;

use super::Outcome;
use super::rig::{Setup, opaque};

pub(super) async fn l2_3_found_only_after_the_put(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    assert!(rig.probe(0..3).await.into_iter().all(|f| f.expect("a probe").is_none()), "the store is fresh");
    let item = rig.item(1, 5000);
    let digest = item.digest.known();
    assert_eq!(rig.put_items(vec![item], rig.far()).await.remove(0).expect("a put"), Stored::Written);
    let found: Vec<_> = rig.probe([0, 1, 2, 1]).await.into_iter().map(|f| f.expect("a probe")).collect();
    assert_eq!([found[0], found[2]], [None, None]);
    assert_eq!(found[1], found[3], "a key may be asked for twice");
    let found = found[1].expect("the key was stored");
    assert_eq!(found.len, 5000);
    assert!(found.layout.is_none_or(|id| id == opaque(5000).id()));
    assert!(found.digest.is_none() || found.digest == digest, "the digest is the one that was given");
    rig.finish().await
}

pub(super) async fn l2_3_put_again_is_present(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let used = || rig.adapter.usage.as_ref().map(|u| u.usage().used);
    let empty = used();
    rig.write(0..2, 5000).await;
    let two = used();
    let answers = rig.put(0..3, 5000).await;
    let answers: Vec<Stored> = answers.into_iter().map(|a| a.expect("a put")).collect();
    assert_eq!(answers, [Stored::Present, Stored::Present, Stored::Written]);
    rig.read(0..3, 5000).await;
    if let (Some(empty), Some(two), Some(three)) = (empty, two, used()) {
        assert_eq!((three - empty) * 2, (two - empty) * 3, "what is present is not counted twice");
    }
    rig.finish().await
}

/// Its deadline has passed before it starts.
pub(super) async fn l2_3_late_put_leaves_nothing(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let past = rig.past().await;
    let answers = rig.put_items((0..2).map(|id| rig.item(id, 5000)).collect(), past).await;
    assert!(
        answers.iter().all(|a| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut)),
        "{answers:?}"
    );
    rig.settle(0).await;
    assert!(!rig.is_found(0).await && !rig.is_found(1).await);
    rig.finish().await
}

/// Its deadline passes while the device hangs; then the device goes on.
pub(super) async fn l2_3_timed_out_put_leaves_nothing(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    device.hang();
    let answers = rig.put_items((0..3).map(|id| rig.item(id, 5000)).collect(), rig.soon()).await;
    assert!(
        answers.iter().all(|a| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut)),
        "{answers:?}"
    );
    device.resume();
    rig.settle(0).await;
    for id in 0..3 {
        assert!(!rig.is_found(id).await, "key {id} failed and is there");
    }
    rig.write(0..3, 5000).await;
    rig.finish().await
}
