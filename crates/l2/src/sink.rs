//! Where an adapter pushes each key's answer, exactly once.

use std::fmt;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::{Answer, Stored};

/// Takes the answers of one request. Called from any thread, once per key; must not block.
pub trait Receive<T>: Send + Sync + 'static {
    /// The key at `position` of the batch is answered.
    fn answer(&self, position: usize, answer: T);
}

impl<T, F: Fn(usize, T) + Send + Sync + 'static> Receive<T> for F {
    fn answer(&self, position: usize, answer: T) {
        self(position, answer);
    }
}

/// Makes the answer of a key that its adapter never answered.
pub trait Unanswered: Send + 'static {
    /// The answer instead.
    fn unanswered() -> Self;
}

fn dropped() -> Error {
    Error::new(
        ErrorKind::Internal,
        "answer request",
        "the adapter dropped the request without an answer for this key",
    )
}

impl Unanswered for Result<Stored> {
    fn unanswered() -> Self {
        Err(dropped())
    }
}

impl Unanswered for Answer {
    fn unanswered() -> Self {
        Answer::Failed(dropped(), None)
    }
}

/// The sending end of a request's answers. Clones share it; the first answer per key counts, later ones are dropped, and
/// when the last clone goes, keys without an answer are answered with an `Internal` error. So the receiver hears of each
/// key exactly once, whatever an adapter does.
pub struct Sink<T: Unanswered>(Arc<Shared<T>>);

/// Takes the answers of a [`crate::Put`].
pub type PutSink = Sink<Result<Stored>>;
/// Takes the answers of a [`crate::Get`].
pub type GetSink = Sink<Answer>;

struct Shared<T: Unanswered> {
    open: Mutex<Open>,
    receiver: Arc<dyn Receive<T>>,
}

struct Open {
    waiting: Vec<bool>,
    left: usize,
}

impl<T: Unanswered> Sink<T> {
    /// A sink for `keys` answers.
    pub fn new(keys: usize, receiver: Arc<dyn Receive<T>>) -> Self {
        let open = Mutex::new(Open { waiting: vec![true; keys], left: keys });
        Self(Arc::new(Shared { open, receiver }))
    }

    /// Answers the key at `position`. Returns whether this was its first answer; a later one is dropped, buffer and all.
    ///
    /// # Panics
    /// If the batch has no such position.
    pub fn answer(&self, position: usize, answer: T) -> bool {
        {
            let mut open = self.0.open.lock();
            if !std::mem::replace(&mut open.waiting[position], false) {
                return false;
            }
            open.left -= 1;
        }
        self.0.receiver.answer(position, answer);
        true
    }

    /// Answers every key that has no answer yet.
    pub fn answer_rest(&self, mut answer: impl FnMut(usize) -> T) {
        let n = self.0.open.lock().waiting.len();
        for position in 0..n {
            if self.is_open(position) {
                self.answer(position, answer(position));
            }
        }
    }

    /// Whether the key at `position` still waits for its answer.
    pub fn is_open(&self, position: usize) -> bool {
        self.0.open.lock().waiting[position]
    }

    /// How many keys still wait.
    pub fn left(&self) -> usize {
        self.0.open.lock().left
    }
}

impl<T: Unanswered> Clone for Sink<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Unanswered> fmt::Debug for Sink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({} keys left)", self.left())
    }
}

impl<T: Unanswered> Drop for Shared<T> {
    fn drop(&mut self) {
        for (position, waiting) in self.open.get_mut().waiting.iter().enumerate() {
            if *waiting {
                self.receiver.answer(position, T::unanswered());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collecting() -> (Arc<Mutex<Vec<(usize, bool)>>>, PutSink) {
        let seen = Arc::new(Mutex::new(Vec::new()));
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
}
