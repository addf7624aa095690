//! What only some adapters offer.

use std::collections::HashMap;

use kvstrata_core::ErrorKind;

use super::Outcome;
use super::rig::Setup;

pub(super) async fn l2_remove_says_what_was_there(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let remove = rig.remove()?;
    rig.write([0, 1, 2], 5000).await;
    let removed = rig.ends("remove", remove.remove(rig.keys([0, 9, 2]), rig.far())).await;
    let removed: Vec<bool> = removed.into_iter().map(|r| r.expect("a removal")).collect();
    assert_eq!(removed, [true, false, true]);
    let found: Vec<bool> = rig.probe(0..3).await.into_iter().map(|f| f.expect("a probe").is_some()).collect();
    assert_eq!(found, [false, true, false]);
    for (id, answer) in (0..3).zip(rig.get(0..3, 5000).await) {
        assert_eq!(rig.is_right(id, id, 5000, answer), id == 1, "key {id}");
    }
    let past = rig.past().await;
    for removed in rig.ends("remove", remove.remove(rig.keys([1]), past)).await {
        assert_eq!(removed.expect_err("too late").kind(), ErrorKind::TimedOut);
    }
    rig.write([0, 2], 5000).await;
    rig.read(0..3, 5000).await;
    rig.finish().await
}

pub(super) async fn l2_list_pages_have_everything_once(setup: Setup) -> Outcome {
    let rig = setup.rig().await?;
    let list = rig.list()?;
    let page = list.list(None, 10).await.expect("a page");
    assert!(page.entries.is_empty() && page.next.is_none(), "the store is fresh");
    for id in 0..25 {
        rig.write([id], 1000 + id as usize).await;
    }
    for limit in [1, 7, 25, 100] {
        let mut seen = HashMap::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = list.list(cursor.as_deref(), limit).await.expect("a page");
            assert!(page.entries.len() <= limit, "a page of {} entries", page.entries.len());
            for (key, found) in page.entries {
                assert!(seen.insert(key, found).is_none(), "listed twice");
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(seen.len(), 25, "pages of {limit}");
        for (id, found) in (0..25).zip(rig.probe(0..25).await) {
            assert_eq!(seen.get(&rig.key(id)).copied(), found.expect("a probe"), "key {id}");
        }
    }
    assert_eq!(list.list(None, 0).await.expect_err("no page has no entries").kind(), ErrorKind::Invalid);
    rig.finish().await
}
