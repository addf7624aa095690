//! A server to ask, and prompts to ask it for.

use std::path::Path;

use kvstrata_server::api::Key;
use kvstrata_tests::live::Prompt;

pub(crate) use kvstrata_tests::live::{Engine, SLOT_BYTES, Server, WITHIN, engine_driven};

pub(crate) const MOCK: &str = r#"{"type":"mock","name":"disk","max_size_gb":0.1,"mock_bandwidth_gb":100}"#;

/// `kvstrata serve` with 64 MiB of memory, a mock adapter named `disk`, and these flags.
pub(crate) fn start(more: &[&str]) -> Server {
    let flags = [&["--l1-size-gb", "0.0625", "--l2-adapter", MOCK], more].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_kvstrata")), &flags)
}

/// A prompt of so many whole chunks, told apart by its first token.
pub(crate) fn key(prompt: u32, chunks: usize, request: &str, salt: &str, worker: Option<i64>) -> Key {
    Key { salt: salt.into(), ..Prompt { number: prompt, chunks }.key(request, worker) }
}
