//! The messages, as protobuf has them on the wire: fields of a number and a type, lengths and numbers as varints.

use crate::{Attribute, Span, Value};

/// A varint.
const VARINT: u32 = 0;
/// Eight bytes, little-endian.
const FIXED64: u32 = 1;
/// A length, and so many bytes.
const BYTES: u32 = 2;

/// `SPAN_KIND_SERVER`.
const SERVER: u64 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: u64 = 2;

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn tag(field: u32, kind: u32, out: &mut Vec<u8>) {
    varint(u64::from(field << 3 | kind), out);
}

fn number(field: u32, n: u64, out: &mut Vec<u8>) {
    tag(field, VARINT, out);
    varint(n, out);
}

fn time(field: u32, nanos: u64, out: &mut Vec<u8>) {
    tag(field, FIXED64, out);
    out.extend_from_slice(&nanos.to_le_bytes());
}

fn bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    tag(field, BYTES, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn message(field: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(field, &inner, out);
}

/// `KeyValue`: the key, and an `AnyValue`.
fn attribute(field: u32, (name, value): &Attribute, out: &mut Vec<u8>) {
    message(field, out, |out| {
        bytes(1, name.as_bytes(), out);
        message(2, out, |out| match value {
            Value::Text(text) => bytes(1, text.as_bytes(), out),
            Value::Bool(truth) => number(2, u64::from(*truth), out),
            // Two's complement, as `int64` has it.
            Value::Int(n) => number(3, *n as u64, out),
        });
    });
}

fn span(span: &Span, out: &mut Vec<u8>) {
    bytes(1, &span.trace, out);
    bytes(2, &span.id, out);
    bytes(5, span.name.as_bytes(), out);
    number(6, SERVER, out);
    time(7, span.start_nanos, out);
    time(8, span.end_nanos, out);
    span.attributes.iter().for_each(|a| attribute(9, a, out));
    if let Some(why) = &span.error {
        message(15, out, |out| {
            bytes(2, why.as_bytes(), out);
            number(3, ERROR, out);
        });
    }
}

/// An `ExportTraceServiceRequest` of spans of one resource, under one instrumentation scope.
pub fn encode(resource: &[Attribute], scope: &str, spans: &[Span]) -> Vec<u8> {
    let mut out = Vec::with_capacity(spans.len() * 160);
    message(1, &mut out, |out| {
        message(1, out, |out| resource.iter().for_each(|a| attribute(1, a, out)));
        message(2, out, |out| {
            message(1, out, |out| bytes(1, scope.as_bytes(), out));
            spans.iter().for_each(|s| message(2, out, |out| span(s, out)));
        });
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_protobuf_has_them() {
        for (n, wire) in [(0, &[0][..]), (127, &[127]), (128, &[0x80, 1]), (300, &[0xac, 2])] {
            let mut out = Vec::new();
            varint(n, &mut out);
            assert_eq!(out, wire, "{n}");
        }
        let mut out = Vec::new();
        varint(u64::MAX, &mut out);
        assert_eq!(out, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }

    /// The bytes that Google's own library writes for the same request.
    #[test]
    fn a_request_is_byte_for_byte_what_protobuf_writes() {
        let spans = [Span {
            trace: [0xab; 16],
            id: [0xcd; 8],
            name: "lookup",
            start_nanos: 1,
            end_nanos: 258,
            attributes: vec![("n", Value::Int(-1)), ("ok", Value::Bool(true))],
            error: Some("no".into()),
        }];
        let got = encode(&[("service.name", Value::from("kv"))], "s", &spans);
        let hex: String = got.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("../tests/data/request.hex").trim());
    }
}
