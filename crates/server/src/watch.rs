//! Those who are told of every answer.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::Error;

use crate::Service;
use crate::api::Request;
use crate::wire::session_of;

/// An answer that is known.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The operation's name on the wire.
    pub operation: &'static str,
    /// The engine's request, if the operation names one.
    pub session: &'a str,
    /// From the request to its answer.
    pub took: Duration,
    /// Why it was no.
    pub error: Option<&'a Error>,
}

/// Is told of every answer.
///
/// 1. Each request that could be read is told once, when its answer is known; a stream, when it begins. Not told is one whose
///    client went before its answer.
/// 2. A call must not block: it runs where the request does.
pub trait RequestWatch: Send + Sync + 'static {
    /// A request was answered.
    fn answered(&self, answer: &Answered<'_>);
}

impl Service {
    /// Has every answer from now on told to `watch`. There is one at most; a second is not taken.
    pub fn watch_requests(&self, watch: Arc<dyn RequestWatch>) {
        let _ = self.0.watch.set(watch);
    }

    /// Whoever is to be told of this request's answer, with what it is about.
    pub(crate) fn teller(&self, request: &Request, operation: &'static str) -> Teller {
        let watch = self.0.watch.get();
        Teller(watch.map(|w| (Arc::clone(w), operation, session_of(request).into_owned())))
    }
}

/// What of a request is told with its answer; nothing, where nobody wants to know.
pub(crate) struct Teller(Option<(Arc<dyn RequestWatch>, &'static str, String)>);

impl Teller {
    pub(crate) fn tell(&self, took: Duration, error: Option<&Error>) {
        if let Some((watch, operation, session)) = &self.0 {
            watch.answered(&Answered { operation, session, took, error });
        }
    }
}
