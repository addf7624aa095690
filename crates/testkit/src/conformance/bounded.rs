//! L2-5: every call ends by its deadline. L2-7: what is refused is refused visibly.

use kvstrata_core::{Affinity, ErrorKind};
use kvstrata_l2::Probe;

use super::Outcome;
use super::rig::{Setup, failure, opaque};

pub(super) async fn l2_5_past_deadline_is_answered_at_once(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write(0..2, 5000).await;
    let past = rig.past().await;
    let items = (0..3).map(|id| rig.to_load(id, &opaque(5000))).collect();
    let answers = rig.get_items(items, past).await;
    assert!(answers.iter().all(|a| failure(a) == Some(ErrorKind::TimedOut)), "{answers:?}");
    drop(answers);
    let request = Probe { keys: rig.keys(0..2), deadline: past, affinity: Affinity::default() };
    // A probe may be answered from memory, which takes no time; if not, it has timed out.
    for found in rig.ends("probe", rig.adapter.store.probe(request)).await {
        assert!(
            found.as_ref().map_or_else(|e| e.kind() == ErrorKind::TimedOut, Option::is_some),
            "{found:?}"
        );
    }
    rig.read(0..2, 5000).await;
    rig.finish().await
}

/// Whatever hangs, each call ends by its own deadline, and afterwards the store is as it was.
pub(super) async fn l2_5_hung_device_holds_nobody(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    rig.write(0..2, 5000).await;
    device.hang();
    // More than once, so that later calls wait behind the first.
    for round in 0..3 {
        let items = (0..2).map(|id| rig.to_load(id, &opaque(5000))).collect();
        let answers = rig.get_items(items, rig.soon()).await;
        assert!(answers.iter().all(|a| failure(a) == Some(ErrorKind::TimedOut)), "{answers:?}");
        let answers = rig.put_items(vec![rig.item(10 + round, 5000)], rig.soon()).await;
        assert_eq!(answers[0].as_ref().expect_err("the device hangs").kind(), ErrorKind::TimedOut);
        let request = Probe { keys: rig.keys(0..2), deadline: rig.soon(), affinity: Affinity::default() };
        rig.ends("probe", rig.adapter.store.probe(request)).await;
        if let Some(remove) = &rig.adapter.remove {
            rig.ends("remove", remove.remove(rig.keys([99]), rig.soon())).await;
        }
    }
    device.resume();
    rig.settle(0).await;
    rig.read(0..2, 5000).await;
    rig.finish().await
}

pub(super) async fn l2_7_closed_after_shutdown(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    rig.write(0..2, 5000).await;
    let store = &rig.adapter.store;
    rig.ends("shutdown", store.shutdown(rig.far())).await.expect("a shutdown");
    for answer in rig.put(0..2, 5000).await {
        assert_eq!(answer.expect_err("closed").kind(), ErrorKind::Closed);
    }
    for answer in rig.get(0..2, 5000).await {
        assert_eq!(failure(&answer), Some(ErrorKind::Closed), "{answer:?}");
    }
    for found in rig.probe(0..2).await {
        assert_eq!(found.expect_err("closed").kind(), ErrorKind::Closed);
    }
    if let Some(remove) = &rig.adapter.remove {
        for removed in remove.remove(rig.keys(0..2), rig.far()).await {
            assert_eq!(removed.expect_err("closed").kind(), ErrorKind::Closed);
        }
    }
    if let Some(list) = &rig.adapter.list {
        assert_eq!(list.list(None, 10).await.expect_err("closed").kind(), ErrorKind::Closed);
    }
    // The end of the case shuts down once more, which must be harmless.
    rig.finish().await
}

/// The shutdown does not end before what is in flight, unless its deadline passes; either way each key is answered.
pub(super) async fn l2_7_shutdown_answers_what_is_in_flight(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let device = rig.device()?;
    rig.write(0..2, 5000).await;
    device.hang();
    let (mut put, stored) = rig.put_call(vec![rig.item(5, 5000)], rig.far());
    let items = (0..2).map(|id| rig.to_load(id, &opaque(5000))).collect();
    let (mut get, loaded) = rig.get_call(items, rig.far());
    super::rig::poll_times(&mut put, 3).await;
    super::rig::poll_times(&mut get, 3).await;
    let early = rig.ends("shutdown", rig.adapter.store.shutdown(rig.soon())).await;
    assert_eq!(early.expect_err("something is in flight").kind(), ErrorKind::TimedOut);
    device.resume();
    rig.ends("put", put).await;
    rig.ends("get", get).await;
    for answer in stored.arrive(&rig).await {
        if let Err(e) = answer {
            assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
        }
    }
    for (id, answer) in (0..2).zip(loaded.arrive(&rig).await) {
        match failure(&answer) {
            Some(kind) => assert_eq!(kind, ErrorKind::Closed),
            None => assert!(rig.is_right(id, id, 5000, answer), "key {id} is a miss"),
        }
    }
    rig.finish().await
}
