//! The stream of what L1 gains and loses, and what a worker is told that a restart forgot.

use super::*;
use kvstrata_server::Subscription;
use kvstrata_server::api::KvEvent;
use std::sync::Arc;

impl World {
    fn follow(&self, instance: i64, cursor: i64, most: i64) -> Subscription {
        let follow = Request::SubscribeKvEvents { instance, model: "m".into(), cursor, max_events: most };
        match self.service.call(ME, follow) {
            Ok(Answer::Stream(stream)) => stream,
            other => panic!("{other:?}"),
        }
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("in time")
}

#[tokio::test]
async fn what_comes_and_goes_is_told_in_order_with_its_tokens_and_parents() {
    let w = world();
    w.now(engine(1, 1, false));
    let k = key(3, 3, "a", Some(0));
    let mut stream = w.follow(1, 0, 2);
    let first = soon(stream.next()).await.unwrap();
    assert!(first.enabled && !first.lost && first.events.is_empty());
    w.store(&k, 1, 5);
    let mut events: Vec<Arc<KvEvent>> = Vec::new();
    while events.len() < 3 {
        let batch = soon(stream.next()).await.unwrap();
        assert!((1..=2).contains(&batch.events.len()) && !batch.lost);
        assert_eq!(batch.next_cursor, batch.events.last().unwrap().seq);
        events.extend(batch.events);
    }
    // Each names its parent, which was told before it.
    for (i, event) in events.iter().enumerate() {
        assert!(event.stored && *event.model == *"m");
        assert_eq!(event.tokens.as_be_bytes(), &k.tokens.as_be_bytes()[i * CHUNK * 4..(i + 1) * CHUNK * 4]);
        let parent = i.checked_sub(1).map(|i| events[i].hashes[0]);
        assert_eq!(event.parent, parent);
    }
    w.now(Request::Clear { force: false });
    let mut gone = Vec::new();
    while gone.len() < 3 {
        gone.extend(soon(stream.next()).await.unwrap().events);
    }
    let sorted = |events: &[Arc<KvEvent>]| {
        let mut all: Vec<_> = events.iter().map(|e| e.hashes[0]).collect();
        all.sort();
        all
    };
    assert!(gone.iter().all(|e| !e.stored));
    assert_eq!(sorted(&gone), sorted(&events));
    // From the start again: the same, and nothing of another model.
    let mut again = w.follow(1, 0, 1024);
    assert!(soon(stream.next()).await.is_none(), "the same instance follows anew");
    assert_eq!(soon(again.next()).await.unwrap().events.len(), 6);
    assert_eq!(w.service.status().followers, 1);
    w.now(Request::UnregisterEngineDriven(1));
    assert!(soon(again.next()).await.is_none(), "its worker went");
    assert_eq!(w.service.status().followers, 0);
}

#[tokio::test]
async fn a_log_that_is_too_short_says_what_it_lost_and_a_bad_cursor_is_refused() {
    let w = world_with(4, Options { event_log: 2, ..Options::default() }, None);
    w.now(engine(1, 1, false));
    drop(w.follow(1, 0, 8));
    w.store(&key(3, 3, "a", Some(0)), 1, 5);
    let batch = soon(w.follow(1, 0, 8).next()).await.unwrap();
    assert!(batch.lost && batch.events.len() == 2);
    let ahead = soon(w.follow(1, 99, 8).next()).await.unwrap();
    assert!(ahead.lost && ahead.next_cursor == 3, "another run's cursor");
    for (cursor, most) in [(-1, 8), (0, 0), (0, 1025)] {
        let bad = Request::SubscribeKvEvents { instance: 1, model: "m".into(), cursor, max_events: most };
        assert_eq!(w.service.call(ME, bad).unwrap_err().kind(), ErrorKind::Invalid);
    }
    let none = world_with(4, Options { event_log: 0, ..Options::default() }, None);
    assert_eq!(none.now(Request::GetExperimental), Reply::Texts(vec![]));
    let mut stream = none.follow(1, 0, 8);
    assert!(!soon(stream.next()).await.unwrap().enabled);
    assert!(soon(stream.next()).await.is_none());
}

#[tokio::test]
async fn a_worker_that_is_not_known_fails_one_ping_and_registers_at_the_next() {
    let w = world();
    let ping = |i| w.now(Request::Ping(i));
    assert_eq!(ping(None), Reply::Bool(true), "a scheduler is nobody's worker");
    assert_eq!((ping(Some(7)), ping(Some(7))), (Reply::Bool(false), Reply::Bool(true)));
    w.now(engine(7, 1, false));
    assert_eq!((ping(Some(7)), ping(Some(7))), (Reply::Bool(true), Reply::Bool(true)));
    w.now(Request::UnregisterEngineDriven(7));
    assert_eq!(ping(Some(7)), Reply::Bool(false));
}
