//! One error type for the whole house: a kind, advice on trying again, the operation, and what it was about.

use std::fmt;
use std::time::Duration;

/// The result of an operation of this workspace.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it. The text of an error is not API; its kind is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input is wrong; the context names the field and what would be accepted.
    Invalid,
    /// What was asked for is not there.
    NotFound,
    /// A memory or disk limit, or the device itself, has no room.
    NoSpace,
    /// It cannot be done now: too much is in flight, or somebody else holds it.
    Busy,
    /// The deadline passed before the answer came.
    TimedOut,
    /// A component is missing or switched off on this machine (a library, a device, a privilege, a breaker).
    Unavailable,
    /// Bytes are not what they were when they were stored.
    Corrupt,
    /// The other side describes itself differently: another format version, namespace or layout.
    Mismatch,
    /// The operating system or a remote peer reported a failure.
    Io,
    /// The component is shutting down or gone.
    Closed,
    /// This component cannot do that at all.
    Unsupported,
    /// A defect on our side (a panic in a worker, a broken promise of an adapter).
    Internal,
}

impl ErrorKind {
    /// The kind's name in logs and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::NoSpace => "no_space",
            Self::Busy => "busy",
            Self::TimedOut => "timed_out",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Mismatch => "mismatch",
            Self::Io => "io",
            Self::Closed => "closed",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }
}

/// Whether the same call may succeed later. A retry layer asks this and never reads the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// The cause passes by itself: try again with the caller's own back-off.
    Later,
    /// Try again, but not before this long.
    After(Duration),
}

/// An error with its kind, retry advice, operation, context and source.
///
/// ```
/// use kvstrata_core::{Error, ErrorKind, Retry};
/// let e = Error::invalid("open store", "capacity must be at least one block (4096 bytes)").with("capacity", 12);
/// assert_eq!(e.kind(), ErrorKind::Invalid);
/// assert_eq!(e.retry(), Retry::Never);
/// assert_eq!(e.to_string(), "open store: capacity must be at least one block (4096 bytes) (capacity: 12)");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` (a verb phrase: "open store"). The retry advice starts as the kind's usual one.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Busy
            | ErrorKind::TimedOut
            | ErrorKind::Unavailable
            | ErrorKind::Io
            | ErrorKind::NoSpace => Retry::Later,
            _ => Retry::Never,
        };
        Self(Box::new(Inner {
            kind,
            retry,
            operation,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for an [`ErrorKind::Invalid`].
    pub fn invalid(operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, operation, message)
    }

    /// An operating system error, classified: `ENOSPC` and `EDQUOT` are no space, `ENOENT` is not found, `EAGAIN` and
    /// `EBUSY` are busy; permission and read-only errors are not worth a retry.
    pub fn io(operation: &'static str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let (kind, retry) = match source.kind() {
            K::NotFound => (ErrorKind::NotFound, Retry::Never),
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => (ErrorKind::NoSpace, Retry::Later),
            K::OutOfMemory => (ErrorKind::NoSpace, Retry::Later),
            K::WouldBlock | K::ResourceBusy | K::Interrupted => (ErrorKind::Busy, Retry::Later),
            K::TimedOut => (ErrorKind::TimedOut, Retry::Later),
            K::PermissionDenied
            | K::ReadOnlyFilesystem
            | K::NotADirectory
            | K::IsADirectory
            | K::InvalidInput => (ErrorKind::Io, Retry::Never),
            K::Unsupported => (ErrorKind::Unsupported, Retry::Never),
            _ => (ErrorKind::Io, Retry::Later),
        };
        Self::new(kind, operation, source.to_string()).retrying(retry).caused_by(source)
    }

    /// Adds a piece of context: a field, a path, a key.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// Replaces the retry advice.
    #[must_use]
    pub fn retrying(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(std::sync::Arc::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// What went wrong in words, without the operation and the context.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The pieces of context in the order they were added.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(n, v)| (*n, v.as_str()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, retry {:?}] {self}", self.0.kind.name(), self.0.retry)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operating_system_errors_are_classified() {
        let kind = |errno| Error::io("write", std::io::Error::from_raw_os_error(errno)).kind();
        assert_eq!(kind(28), ErrorKind::NoSpace, "ENOSPC");
        assert_eq!(kind(2), ErrorKind::NotFound, "ENOENT");
        assert_eq!(kind(5), ErrorKind::Io, "EIO");
        assert_eq!(kind(16), ErrorKind::Busy, "EBUSY");
        assert_eq!(Error::io("open", std::io::Error::from_raw_os_error(30)).retry(), Retry::Never, "EROFS");
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
