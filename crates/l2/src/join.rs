//! Waiting for several calls at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// A call that is under way.
pub type Call<'a, R> = Pin<Box<dyn Future<Output = R> + Send + 'a>>;

/// Waits for all calls at once; the results are in order. For the few parts of a batch: each wake polls all of them.
pub async fn all<R: Send>(calls: Vec<Call<'_, R>>) -> Vec<R> {
    let mut calls: Vec<(Call<'_, R>, Option<R>)> = calls.into_iter().map(|call| (call, None)).collect();
    poll_fn(|cx| {
        let mut ready = true;
        for (call, out) in calls.iter_mut().filter(|(_, out)| out.is_none()) {
            match call.as_mut().poll(cx) {
                Poll::Ready(r) => *out = Some(r),
                Poll::Pending => ready = false,
            }
        }
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    calls.into_iter().map(|(_, out)| out.expect("every call has ended")).collect()
}
