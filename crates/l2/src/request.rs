//! What is asked of an adapter, and what it answers.

use std::sync::Arc;

use kvstrata_core::{Affinity, Digest, Error, Instant, Layout, LayoutId, ObjectKey, Result};
use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::{GetSink, digest_of};

/// The keys of a batch, shared.
pub type Keys = Arc<[ObjectKey]>;

/// One object to store. The payload is the buffer's bytes and as long as the layout says.
#[derive(Debug)]
pub struct PutItem {
    /// Its name.
    pub key: ObjectKey,
    /// What its bytes are.
    pub layout: Layout,
    /// The digest to keep with it: see [`Self::digest`].
    pub digest: PutDigest,
    /// The payload. The clone in here is a pin that the adapter drops when the device is finished.
    pub buf: ReadBuf,
}

/// The digest to keep with an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PutDigest {
    /// None. An adapter sees this where digests are off, and for device memory: whoever sees those bytes pass makes their
    /// digest itself ([`crate::PayloadCrc`]).
    #[default]
    None,
    /// This one.
    Is(Digest),
    /// That of the payload, which is still to be made. [`crate::Checked`] leaves that to the moment when the object's turn
    /// comes: the first objects of a large batch are on their way while the digests of the others are made.
    Due,
}

impl From<Option<Digest>> for PutDigest {
    fn from(digest: Option<Digest>) -> Self {
        digest.map_or(Self::None, Self::Is)
    }
}

impl PutDigest {
    /// The digest, if there is one and it has been made.
    pub fn known(self) -> Option<Digest> {
        match self {
            Self::Is(digest) => Some(digest),
            Self::None | Self::Due => None,
        }
    }
}

impl PutItem {
    /// The digest to keep with the object; it is made now if that is still to be done, and then it is there.
    ///
    /// # Errors
    /// As [`digest_of`].
    pub fn digest(&mut self) -> Result<Option<Digest>> {
        if self.digest == PutDigest::Due {
            self.digest = PutDigest::Is(digest_of(&self.key, self.layout.id(), &self.buf)?);
        }
        Ok(self.digest.known())
    }
}

/// A batch of objects to store.
#[derive(Debug)]
pub struct Put {
    /// The objects; a key appears at most once.
    pub items: Vec<PutItem>,
    /// When every key must have been answered, on the adapter's timer.
    pub deadline: Instant,
    /// Which device the request comes from.
    pub affinity: Affinity,
}

/// One object to load.
#[derive(Debug)]
pub struct GetItem {
    /// Its name.
    pub key: ObjectKey,
    /// What it is expected to be; something else under the same key is a miss.
    pub layout: Layout,
    /// Where it goes; as long as the layout says.
    pub buf: WriteBuf,
}

/// A batch of objects to load.
#[derive(Debug)]
pub struct Get {
    /// The objects; a key appears at most once.
    pub items: Vec<GetItem>,
    /// When every key must have been answered, on the adapter's timer.
    pub deadline: Instant,
    /// Which device the request comes from.
    pub affinity: Affinity,
}

impl Get {
    /// Answers every key with one error, and gives the buffers back.
    pub fn refuse(self, done: &GetSink, error: &Error) {
        for (position, item) in self.items.into_iter().enumerate() {
            done.answer(position, Answer::Failed(error.clone(), Some(item.buf)));
        }
    }
}

/// A batch of keys to look up.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The keys.
    pub keys: Keys,
    /// When the answer must be there.
    pub deadline: Instant,
    /// Which device the request comes from.
    pub affinity: Affinity,
}

/// What an adapter knows of an object without reading its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The payload's length in bytes.
    pub len: u64,
    /// What it is; `None` for foreign formats that do not say.
    pub layout: Option<LayoutId>,
    /// The digest kept with it, if any.
    pub digest: Option<Digest>,
}

/// A key was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// The bytes were written and published.
    Written,
    /// A valid object was there already, of the same layout and digest; nothing was written.
    Present,
}

/// A key was loaded: the buffer holds the payload.
#[derive(Debug)]
pub struct Loaded {
    /// The filled buffer.
    pub buf: WriteBuf,
    /// What was found, digest included.
    pub found: Found,
    /// The CRC of the payload as it passed through the CPU on its way to memory that the CPU does not touch, from adapters
    /// that see it pass. For other memory nobody asks: [`crate::Checked`] reads the bytes themselves.
    pub passed: Option<u64>,
    /// Whether the digest was checked against the bytes. Set by [`crate::Checked`], false from every backend.
    pub verified: bool,
}

impl Loaded {
    /// What an adapter answers.
    pub fn new(buf: WriteBuf, found: Found) -> Self {
        Self { buf, found, passed: None, verified: false }
    }
}

/// Why a key is not there. Each reason is a metric label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Miss {
    /// Never stored, evicted, or deleted.
    Absent,
    /// Shorter or longer on the medium than its description says.
    Truncated,
    /// The digest does not match the bytes.
    Digest,
    /// The description itself does not decode or does not verify.
    Header,
    /// Another key's object lies under this key's name.
    Foreign,
    /// The object has another layout than was asked for.
    Layout,
    /// It was replaced or removed while it was being read.
    Stale,
}

impl Miss {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::Absent, Self::Truncated, Self::Digest, Self::Header, Self::Foreign, Self::Layout, Self::Stale];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Truncated => "truncated",
            Self::Digest => "digest",
            Self::Header => "header",
            Self::Foreign => "foreign",
            Self::Layout => "layout",
            Self::Stale => "stale",
        }
    }
}

/// One key's answer to a [`Get`].
#[derive(Debug)]
pub enum Answer {
    /// It was loaded.
    Loaded(Loaded),
    /// It is not there. The buffer comes back where the adapter still has it.
    Miss(Miss, Option<WriteBuf>),
    /// It could not be loaded. After a time-out the buffer stays with the driver and is freed when that is done.
    Failed(Error, Option<WriteBuf>),
}
