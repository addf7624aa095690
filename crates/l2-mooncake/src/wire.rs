//! What Mooncake's processes say to each other, as bytes: coro_rpc frames around struct_pack messages, in the types of
//! each release.
//!
//! Nothing of it is guessed. A call is named by a hash of its function, and a message by a hash of its type, so a peer of
//! another release refuses what it does not know without losing the connection; [`profile::ALL`] has the types of the releases
//! that are known, and what a peer answers is read only if its type is the one that is expected.

pub(crate) mod md5;
pub(crate) mod pack;
pub(crate) mod profile;
pub(crate) mod rpc;
