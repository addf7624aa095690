//! `kvstrata serve` from outside, over its wire: what LMCache's server is weak at, bad input, clients that are killed, and
//! many that come and go. It starts itself again as those clients.

mod crowds;
mod hostile;
mod spans;
mod weaknesses;

use std::path::Path;
use std::process::ExitCode;

use kvstrata_tests::live::{Engine, Server, Worker};
use libtest_mimic::{Arguments, Failed, Trial};

type Done = Result<(), Failed>;
type Test = (&'static str, fn() -> Done);

const MOCK: &str = r#"{"type":"mock","name":"disk","max_size_gb":0.2,"mock_bandwidth_gb":100}"#;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kvstrata"))
}

/// A server with 64 MiB of memory and a mock adapter named `disk`.
fn server() -> Server {
    Server::start(program(), &["--l1-size-gb", "0.0625", "--l2-adapter", MOCK])
}

/// Runs one client's part.
fn with<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

async fn engine(server: &Server) -> Engine {
    Engine::connect(&server.endpoint).await.expect("it listens")
}

async fn worker(server: &Server, instance: i64) -> Worker {
    Worker::register(engine(server).await, instance).await.expect("it registers workers")
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = crowds::child(&args) {
        return code;
    }
    let mut trials: Vec<Trial> = weaknesses::TESTS
        .iter()
        .chain(crowds::TESTS)
        .chain(hostile::TESTS)
        .chain(spans::TESTS)
        .map(|(name, test)| Trial::test(*name, test))
        .collect();
    trials.push(hostile::another_user());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
