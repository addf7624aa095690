//! An exporter against a collector on loopback that takes the messages apart by itself.

use std::time::Duration;

use kvstrata_otlp::{Exporter, Span, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A field of a message: its number, and a varint, eight bytes or so many bytes.
#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut n, mut shift) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        n |= u64::from(first & 0x7f) << shift;
        shift += 7;
        if first & 0x80 == 0 {
            return n;
        }
    }
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (eight, rest) = bytes.split_first_chunk::<8>().expect("eight bytes");
                bytes = rest;
                Field::Number(u64::from_le_bytes(*eight))
            }
            2 => {
                let len = varint(&mut bytes) as usize;
                let (inner, rest) = bytes.split_at(len);
                bytes = rest;
                Field::Bytes(inner)
            }
            other => panic!("a type of {other}"),
        };
        out.push((tag >> 3, field));
    }
    out
}

/// The messages in the fields along a path.
fn inside<'a>(bytes: &'a [u8], path: &[u64]) -> Vec<&'a [u8]> {
    let Some((first, rest)) = path.split_first() else { return vec![bytes] };
    let inner = fields(bytes).into_iter().filter(|(n, _)| n == first);
    inner.flat_map(|(_, f)| if let Field::Bytes(b) = f { inside(b, rest) } else { vec![] }).collect()
}

fn number(bytes: &[u8], field: u64) -> u64 {
    let found = fields(bytes).into_iter().find(|(n, _)| *n == field);
    match found {
        Some((_, Field::Number(n))) => n,
        other => panic!("{field}: {other:?}"),
    }
}

/// Takes one request: its head, and its body.
async fn take(listener: &TcpListener, answer: &str) -> (String, Vec<u8>) {
    let (mut socket, _) = listener.accept().await.expect("a connection");
    let mut got = Vec::new();
    loop {
        assert!(socket.read_buf(&mut got).await.expect("bytes") > 0, "it ended early");
        let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(got[..at].to_vec()).expect("text");
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).expect("a length");
        let body = at + 4;
        if got.len() - body == length.parse::<usize>().expect("a number") {
            socket.write_all(answer.as_bytes()).await.expect("it reads");
            return (head, got[body..].to_vec());
        }
    }
}

fn span(n: u8) -> Span {
    Span {
        trace: [n; 16],
        id: [n; 8],
        name: "lookup",
        start_nanos: 1000 + u64::from(n),
        end_nanos: 2000,
        attributes: vec![("n", Value::Int(n.into())), ("who", "a".into()), ("ok", true.into())],
        error: (n == 2).then(|| "no room".to_owned()),
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time")
}

#[tokio::test]
async fn a_collector_gets_what_was_exported_and_what_it_refuses_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint =
        format!("http://{}", listener.local_addr().expect("an address")).parse().expect("an address");
    let (exporter, sending) = Exporter::new(endpoint, vec![("service.name", "kv".into())]);
    let sending = tokio::spawn(sending);
    exporter.export(span(1));
    exporter.export(span(2));
    let (head, body) = soon(take(&listener, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(
        head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/x-protobuf"),
        "{head}"
    );

    // resource_spans, resource, attributes: key and string_value.
    assert_eq!(inside(&body, &[1, 1, 1, 1]), [b"service.name"]);
    assert_eq!(inside(&body, &[1, 1, 1, 2, 1]), [b"kv"]);
    let spans = inside(&body, &[1, 2, 2]);
    assert_eq!(spans.len(), 2, "in one request");
    for (span, n) in spans.iter().zip([1u8, 2]) {
        assert_eq!((inside(span, &[1]), inside(span, &[2])), (vec![&[n; 16][..]], vec![&[n; 8][..]]));
        assert_eq!((inside(span, &[5]), number(span, 6)), (vec![&b"lookup"[..]], 2));
        assert_eq!((number(span, 7), number(span, 8)), (1000 + u64::from(n), 2000));
        assert_eq!(inside(span, &[9, 1]), [&b"n"[..], b"who", b"ok"]);
        let values = inside(span, &[9, 2]);
        assert_eq!(
            (number(values[0], 3), inside(values[1], &[1]), number(values[2], 2)),
            (n.into(), vec![&b"a"[..]], 1)
        );
        let status = inside(span, &[15]);
        assert_eq!(status.len(), usize::from(n == 2));
        if let [status] = status[..] {
            assert_eq!((inside(status, &[2]), number(status, 3)), (vec![&b"no room"[..]], 2));
        }
    }

    let losses = exporter.losses();
    assert_eq!(losses.count(), 0);
    exporter.export(span(3));
    soon(take(&listener, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")).await;
    soon(async {
        while losses.count() != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Nobody is there any more; it ends all the same when nothing can come.
    drop(listener);
    exporter.export(span(4));
    drop(exporter);
    soon(sending).await.expect("it ends");
    assert_eq!(losses.count(), 2);
}

#[tokio::test]
async fn what_nobody_takes_is_lost_and_nobody_waits() {
    let (exporter, sending) = Exporter::new("http://127.0.0.1:9".parse().expect("an address"), vec![]);
    for n in 0..10_000u32 {
        exporter.export(span(n as u8));
    }
    assert!(exporter.losses().count() > 1000, "the queue has an end");
    drop((exporter, sending));
}
