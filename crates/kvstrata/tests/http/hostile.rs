//! Bad input over HTTP: an answer or a closed connection within a time limit, and a server that goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use crate::server::{Server, WITHIN, start};

/// Numbers that look random, and are the same every time.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// Sends bytes, ends the sending side, and reads what comes; the status line, if there is one.
fn say(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = server.connect();
    // It may close before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let begun = Instant::now();
    match stream.take(1 << 20).read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("neither an answer nor an end after {:?}: {e}", begun.elapsed()),
    }
    let text = String::from_utf8_lossy(&answer);
    text.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let mut server = start(&[]);
    let nested = "[".repeat(200_000);
    let long_path = "x".repeat(100_000);
    let many_headers: String = (0..5000).map(|n| format!("h{n}: v\r\n")).collect();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("no HTTP", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL".to_vec(), &[400]),
        ("no version", b"GET /status\r\n\r\n".to_vec(), &[400]),
        (
            "a long path",
            format!("GET /{long_path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
            &[404, 414, 431],
        ),
        ("many headers", format!("GET / HTTP/1.1\r\n{many_headers}\r\n").into_bytes(), &[400, 431]),
        (
            "a lying length",
            b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{}".to_vec(),
            &[400],
        ),
        (
            "two lengths",
            b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
                .to_vec(),
            &[400],
        ),
        (
            "a length beyond all",
            b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec(),
            &[400, 413, 431],
        ),
        (
            "bad chunks",
            b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            &[400],
        ),
        ("nesting", post("/cache/clear", nested.as_bytes()), &[400, 422]),
        (
            "nesting in an object",
            post("/cache/clear", format!("{{\"tier\":{nested}").as_bytes()),
            &[400, 422],
        ),
        ("a body too long", post("/cache/clear", &vec![b' '; 9 << 20]), &[413]),
        ("other types", post("/cache/clear", br#"{"tier":{"l1":1},"force":[]}"#), &[422]),
        ("no UTF-8", post("/cache/clear", b"{\"tier\":\"\xff\xfe\"}"), &[422]),
        ("code", post("/run_script", b"import os"), &[501]),
        (
            "above the root",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(),
            &[404],
        ),
        (
            "percents",
            b"GET /quota/%ff%00%2f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(),
            &[200, 400],
        ),
    ];
    for (what, bytes, accepted) in &cases {
        let status = say(&server, bytes);
        // A connection that is closed without an answer is one, too, of what is not HTTP at all.
        let good = status.is_none_or(|s| accepted.contains(&s));
        assert!(good, "{what}: {status:?} is none of {accepted:?}");
        assert!(server.runs(), "{what}: the server is gone");
    }
    // The same requests, cut and with bytes changed.
    let mut random = Lcg(2024);
    for round in 0..400 {
        let (_, bytes, _) = &cases[round % cases.len()];
        let mut bytes = bytes[..bytes.len().min(64 << 10)].to_vec();
        bytes.truncate(random.next() as usize % (bytes.len() + 1));
        for _ in 0..random.next() % 8 {
            if let Some(last) = bytes.len().checked_sub(1) {
                bytes[random.next() as usize % (last + 1)] = random.next() as u8;
            }
        }
        say(&server, &bytes);
    }
    assert!(server.runs());
    assert_eq!(server.ask("GET", "/healthcheck", ""), (200, r#"{"status":"healthy"}"#.into()));
    let kib = server.private_kib();
    assert!(kib < 100 << 10, "{kib} KiB after bad input");
}

#[test]
fn clients_that_say_nothing_keep_nobody_from_asking() {
    let server = start(&[]);
    let silent: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = server.connect();
            let begun =
                ["", "GET /status", "POST /cache/clear HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"][n % 3];
            stream.write_all(begun.as_bytes()).expect("it takes that");
            stream
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(server.ask("GET", "/healthcheck", "").0, 200);
    assert!(begun.elapsed() < WITHIN);
    drop(silent);
}

#[test]
fn it_listens_on_loopback_unless_told_otherwise() {
    let server = start(&[]);
    assert!(server.http.ip().is_loopback(), "{}", server.http);
    assert!(server.endpoint.starts_with("tcp://127.0.0.1:"), "{}", server.endpoint);
}
