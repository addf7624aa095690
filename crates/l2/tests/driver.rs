//! The driver under virtual time.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{ErrorKind, Instant, Result};
use kvstrata_l2::{Context, Driver, PutSink, Stored};
use parking_lot::Mutex;

type Seen = Arc<Mutex<Vec<(usize, Result<Stored>)>>>;

fn collecting(keys: usize) -> (Seen, PutSink) {
    let seen = Seen::default();
    let to = Arc::clone(&seen);
    (seen, PutSink::new(keys, Arc::new(move |i: usize, a| to.lock().push((i, a)))))
}

fn driver() -> Driver {
    Driver::new(Context::tokio(tokio::runtime::Handle::current()))
}

fn kinds(seen: &Seen) -> Vec<Option<ErrorKind>> {
    let mut seen: Vec<_> =
        seen.lock().iter().map(|(i, a)| (*i, a.as_ref().err().map(|e| e.kind()))).collect();
    seen.sort_by_key(|(i, _)| *i);
    seen.into_iter().map(|(_, kind)| kind).collect()
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn at_the_deadline_the_rest_is_answered_and_the_work_goes_on() {
    let driver = driver();
    let (seen, sink) = collecting(2);
    let (buffer, device) = (Arc::new(()), Arc::new(()));
    let held = Arc::downgrade(&buffer);
    let to = sink.clone();
    let work = async move {
        to.answer(0, Ok(Stored::Written));
        tokio::time::sleep(50 * MS).await;
        assert!(!to.answer(1, Ok(Stored::Written)), "too late");
        drop(buffer);
        drop(device);
    };
    driver.run("put", driver.timer().now() + 10 * MS, sink, work).await;
    assert_eq!(kinds(&seen), [None, Some(ErrorKind::TimedOut)]);
    assert!(held.upgrade().is_some(), "the device is not done");
    let e = driver.shutdown(driver.timer().now() + MS).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::TimedOut);
    driver.shutdown(driver.timer().now() + 100 * MS).await.unwrap();
    assert!(held.upgrade().is_none(), "idle means that every buffer is free");
}

#[tokio::test(start_paused = true)]
async fn work_goes_on_and_answers_when_nobody_waits() {
    let driver = driver();
    let (seen, sink) = collecting(1);
    let to = sink.clone();
    let work = async move {
        tokio::time::sleep(5 * MS).await;
        to.answer(0, Ok(Stored::Written));
    };
    let far = driver.timer().now() + 1000 * MS;
    assert!(tokio::time::timeout(MS, driver.run("put", far, sink, work)).await.is_err(), "given up");
    driver.shutdown(far).await.unwrap();
    assert_eq!(kinds(&seen), [None]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_work_answers_its_keys_and_leaves_the_driver_idle() {
    let driver = driver();
    let (seen, sink) = collecting(2);
    let to = sink.clone();
    let work = async move {
        to.answer(1, Ok(Stored::Written));
        panic!("a defect in an adapter");
    };
    driver.run("put", driver.timer().now() + 1000 * MS, sink, work).await;
    assert_eq!(kinds(&seen), [Some(ErrorKind::Internal), None]);
    driver.shutdown(driver.timer().now() + MS).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn late_and_closed_calls_do_not_start() {
    let driver = driver();
    tokio::time::sleep(MS).await;
    let (seen, sink) = collecting(1);
    driver.run("put", Instant::ZERO, sink, async { panic!("must not run") }).await;
    let late: Result<()> = driver.call("probe", Instant::ZERO, async { panic!("must not run") }).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    driver.shutdown(Instant::ZERO).await.expect("nothing is in flight, so no time is needed");
    driver.run("put", Instant::FAR_FUTURE, collecting(0).1, async { panic!("must not run") }).await;
    let (after, sink) = collecting(1);
    driver.run("put", Instant::FAR_FUTURE, sink, async { panic!("must not run") }).await;
    assert_eq!(
        (kinds(&seen), kinds(&after)),
        (vec![Some(ErrorKind::TimedOut)], vec![Some(ErrorKind::Closed)])
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_is_given_up_at_its_deadline() {
    let driver = driver();
    let soon = driver.timer().now() + 3 * MS;
    let hung = driver.call("probe", soon, std::future::pending::<()>()).await;
    assert_eq!(hung.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(driver.call("probe", soon + MS, async { 7 }).await.unwrap(), 7);
    driver.shutdown(soon + MS).await.unwrap();
}
