//! Where an adapter pushes each key's answer, exactly once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mem::sync::Mutex;

use crate::{Answer, Stored};

/// Takes the answers of one request. Called from any thread, once per key; must not wait.
pub trait Receive<T>: Send + Sync + 'static {
    /// The key at `position` of the batch is answered.
    fn answer(&self, position: usize, answer: T);
}

impl<T, F: Fn(usize, T) + Send + Sync + 'static> Receive<T> for F {
    fn answer(&self, position: usize, answer: T) {
        self(position, answer);
    }
}

/// An answer that can say that something went wrong.
pub trait Fail: Send + 'static {
    /// The answer to a key that `error` happened to.
    fn failed(error: Error) -> Self;
}

impl Fail for Result<Stored> {
    fn failed(error: Error) -> Self {
        Err(error)
    }
}

impl Fail for Answer {
    fn failed(error: Error) -> Self {
        Answer::Failed(error, None)
    }
}

fn dropped() -> Error {
    Error::new(
        ErrorKind::Internal,
        "answer request",
        "the adapter dropped the request without an answer for this key",
    )
}

/// The sending end of a request's answers. Clones share it; the first answer per key counts, later ones are dropped, and
/// when the last clone goes, keys without an answer are answered with an `Internal` error. So the receiver hears of each
/// key exactly once, whatever an adapter does.
pub struct Sink<T: Fail>(Arc<Shared<T>>);

/// Takes the answers of a [`crate::Put`].
pub type PutSink = Sink<Result<Stored>>;
/// Takes the answers of a [`crate::Get`].
pub type GetSink = Sink<Answer>;

struct Shared<T: Fail> {
    progress: Arc<Progress>,
    receiver: Arc<dyn Receive<T>>,
}

/// Apart from the receiver, so that waiting for the answers does not keep the sink alive.
struct Progress(Mutex<Keys>);

struct Keys {
    open: Vec<bool>,
    left: usize,
    waiting: Vec<Waker>,
}

impl Progress {
    fn take(&self, position: usize) -> bool {
        std::mem::replace(&mut self.0.lock().open[position], false)
    }

    /// One more answer reached the receiver.
    fn arrived(&self) {
        let wake = {
            let mut keys = self.0.lock();
            keys.left -= 1;
            if keys.left > 0 {
                return;
            }
            std::mem::take(&mut keys.waiting)
        };
        wake.into_iter().for_each(Waker::wake);
    }
}

impl<T: Fail> Sink<T> {
    /// A sink for `keys` answers.
    pub fn new(keys: usize, receiver: Arc<dyn Receive<T>>) -> Self {
        let keys = Keys { open: vec![true; keys], left: keys, waiting: Vec::new() };
        Self(Arc::new(Shared { progress: Arc::new(Progress(Mutex::new(keys))), receiver }))
    }

    /// Answers the key at `position`. Returns whether this was its first answer; a later one is dropped, buffer and all.
    ///
    /// # Panics
    /// If the batch has no such position.
    pub fn answer(&self, position: usize, answer: T) -> bool {
        self.claim(position).map(|claim| claim.answer(answer)).is_some()
    }

    /// Takes the right to answer the key at `position`, unless it was answered or claimed: from then on no time-out
    /// answers it. For what must not happen to a key that has failed already, such as publishing it.
    ///
    /// # Panics
    /// If the batch has no such position.
    pub fn claim(&self, position: usize) -> Option<Claim<T>> {
        self.0.progress.take(position).then(|| Claim { sink: self.clone(), position, answered: false })
    }

    /// Answers every key that has no answer yet.
    pub fn answer_rest(&self, mut answer: impl FnMut(usize) -> T) {
        let n = self.0.progress.0.lock().open.len();
        for position in 0..n {
            if let Some(claim) = self.claim(position) {
                claim.answer(answer(position));
            }
        }
    }

    /// Whether the key at `position` has neither been answered nor claimed.
    pub fn is_open(&self, position: usize) -> bool {
        self.0.progress.0.lock().open[position]
    }

    /// How many keys the receiver has not heard of.
    pub fn left(&self) -> usize {
        self.0.progress.0.lock().left
    }

    /// Resolves when the receiver has heard of every key. Does not keep the sink alive.
    pub fn answered(&self) -> Answered {
        Answered(Arc::clone(&self.0.progress))
    }
}

impl<T: Fail> Clone for Sink<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Fail> fmt::Debug for Sink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({} keys left)", self.left())
    }
}

impl<T: Fail> Drop for Shared<T> {
    fn drop(&mut self) {
        let n = self.progress.0.lock().open.len();
        for position in 0..n {
            if self.progress.take(position) {
                self.receiver.answer(position, T::failed(dropped()));
                self.progress.arrived();
            }
        }
    }
}

/// The right to answer one key; dropped without an answer, it answers with an `Internal` error.
pub struct Claim<T: Fail> {
    sink: Sink<T>,
    position: usize,
    answered: bool,
}

impl<T: Fail> Claim<T> {
    /// Answers the key.
    pub fn answer(mut self, answer: T) {
        self.answered = true;
        self.sink.0.receiver.answer(self.position, answer);
    }
}

impl<T: Fail> Drop for Claim<T> {
    fn drop(&mut self) {
        if !self.answered {
            self.sink.0.receiver.answer(self.position, T::failed(dropped()));
        }
        // Also when the receiver panicked: whoever waits for the answers must not wait for ever.
        self.sink.0.progress.arrived();
    }
}

impl<T: Fail> fmt::Debug for Claim<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim(key {})", self.position)
    }
}

/// See [`Sink::answered`].
pub struct Answered(Arc<Progress>);

impl Future for Answered {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut keys = self.0.0.lock();
        if keys.left == 0 {
            return Poll::Ready(());
        }
        if !keys.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            keys.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answered({} keys left)", self.0.0.lock().left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = Arc<Mutex<Vec<(usize, bool)>>>;

    fn collecting() -> (Seen, PutSink) {
        let seen = Seen::default();
        let to = Arc::clone(&seen);
        let sink = PutSink::new(3, Arc::new(move |i, a: Result<Stored>| to.lock().push((i, a.is_ok()))));
        (seen, sink)
    }

    #[test]
    fn the_first_answer_counts() {
        let (seen, sink) = collecting();
        assert!(sink.answer(1, Ok(Stored::Written)));
        assert!(!sink.clone().answer(1, Err(dropped())));
        assert_eq!((sink.left(), seen.lock().clone()), (2, vec![(1, true)]));
    }

    #[test]
    fn what_was_never_answered_is_answered_by_the_drop() {
        let (seen, sink) = collecting();
        sink.answer(2, Ok(Stored::Present));
        let other = sink.clone();
        drop(sink);
        assert_eq!(seen.lock().len(), 1, "a clone may still answer");
        drop(other);
        assert_eq!(seen.lock().clone(), [(2, true), (0, false), (1, false)]);
    }

    #[test]
    fn the_rest_is_answered_once() {
        let (seen, sink) = collecting();
        sink.answer(0, Ok(Stored::Written));
        sink.answer_rest(|_| Err(dropped()));
        drop(sink);
        assert_eq!(seen.lock().clone(), [(0, true), (1, false), (2, false)]);
    }

    fn is_ready(answered: &mut Answered) -> bool {
        Pin::new(answered).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_claimed_key_is_answered_by_its_claim_alone() {
        let (seen, sink) = collecting();
        let mut answered = sink.answered();
        let claim = sink.claim(1).unwrap();
        assert!(sink.claim(1).is_none());
        sink.answer_rest(|_| Err(dropped()));
        assert_eq!((sink.left(), seen.lock().len(), is_ready(&mut answered)), (1, 2, false));
        drop(sink);
        assert!(!is_ready(&mut answered), "the claim keeps the request open");
        claim.answer(Ok(Stored::Written));
        assert!(is_ready(&mut answered));
        assert_eq!(seen.lock().clone(), [(0, false), (2, false), (1, true)]);
    }

    #[test]
    fn a_dropped_claim_and_a_panicking_receiver_still_count_as_answers() {
        let (seen, sink) = collecting();
        drop(sink.claim(0));
        assert_eq!(seen.lock().clone(), [(0, false)]);
        let sink = PutSink::new(1, Arc::new(|_, _| panic!("a receiver's own defect")));
        let mut answered = sink.answered();
        let claim = sink.claim(0).unwrap();
        assert!(
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim.answer(Ok(Stored::Written))))
                .is_err()
        );
        assert!(is_ready(&mut answered));
    }
}
