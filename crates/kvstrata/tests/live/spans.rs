//! What a collector gets of a live server's requests.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use kvstrata_server::api::Request;
use kvstrata_tests::live::{Prompt, Server, WITHIN};

use crate::{Done, MOCK, Test, engine, program, with};

pub(crate) const TESTS: &[Test] =
    &[("a_collector_gets_a_span_of_every_request", a_collector_gets_a_span_of_every_request)];

/// One request of the exporter: its body, which has names and texts as they are.
fn take(listener: &TcpListener) -> Vec<u8> {
    let (mut socket, _) = listener.accept().expect("a connection");
    socket.set_read_timeout(Some(WITHIN)).expect("a limit");
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let n = socket.read(&mut piece).expect("bytes");
        assert!(n > 0, "it ended early");
        got.extend_from_slice(&piece[..n]);
        let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&got[..at]).into_owned();
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).expect("a length");
        if got.len() - at - 4 == length.parse::<usize>().expect("a number") {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("it reads");
            return got.split_off(at + 4);
        }
    }
}

fn a_collector_gets_a_span_of_every_request() -> Done {
    let collector = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", collector.local_addr()?);
    let flags = ["--l1-size-gb", "0.0625", "--l2-adapter", MOCK, "--otlp-endpoint", &url];
    let server = Server::start(program(), &flags);
    with(async {
        let mut engine = engine(&server).await;
        engine.look_up(Prompt { number: 1, chunks: 1 }.key("the-request", None)).await;
        engine.ask(&Request::PrepareStore(Prompt { number: 1, chunks: 1 }.key("another", Some(0)), 77)).await;
        engine.ask(&Request::Noop).await;
    });
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    let (mut got, until) = (Vec::new(), Instant::now() + WITHIN);
    while !has(&got, "noop") {
        assert!(Instant::now() < until, "no span of the last request");
        got.extend(take(&collector));
    }
    for text in
        ["service.name", "lookup", "query_prefetch_status", "the-request", "prepare_store", "no such worker"]
    {
        assert!(has(&got, text), "{text}");
    }
    Ok(())
}
