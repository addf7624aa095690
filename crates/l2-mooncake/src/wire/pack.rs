//! struct_pack: a hash of the message's type, then its values, little-endian.
//!
//! The lowest bit of the hash says whether a byte about widths follows: bits 3 and 4 are the width of all lengths in the
//! message (1, 2, 4 or 8 bytes, by the longest container), bit 2 says that the type itself follows as a text that a NUL ends,
//! and bits 0 and 1 are the width of a total length.

use super::md5;

/// A type, as struct_pack spells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Type {
    I32,
    I64,
    U64,
    U8,
    Bool,
    Nothing,
    Text,
    List(Box<Type>),
    Maybe(Box<Type>),
    /// A value or an error code.
    Expected(Box<Type>),
    Struct(Vec<Type>),
    /// A struct of plain numbers, which is spelled with its packing and alignment.
    Plain(Vec<Type>, u8),
}

impl Type {
    pub(crate) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    pub(crate) fn maybe(of: Self) -> Self {
        Self::Maybe(Box::new(of))
    }

    pub(crate) fn expected(of: Self) -> Self {
        Self::Expected(Box::new(of))
    }

    fn spell(&self, out: &mut Vec<u8>) {
        const STRUCT: u8 = 253;
        const END: u8 = 255;
        match self {
            Self::I32 => out.push(1),
            Self::I64 => out.push(3),
            Self::U64 => out.push(4),
            Self::U8 => out.push(6),
            Self::Bool => out.push(11),
            Self::Nothing => out.push(250),
            Self::Text => out.extend([128, 12]),
            Self::List(of) => {
                out.push(132);
                of.spell(out);
            }
            Self::Maybe(of) => {
                out.push(133);
                of.spell(out);
            }
            Self::Expected(of) => {
                out.push(135);
                of.spell(out);
                Self::I32.spell(out);
            }
            Self::Struct(fields) => {
                out.push(STRUCT);
                fields.iter().for_each(|f| f.spell(out));
                out.push(END);
            }
            Self::Plain(fields, align) => {
                out.push(STRUCT);
                fields.iter().for_each(|f| f.spell(out));
                out.extend([align + 129, align + 129, END]);
            }
        }
    }

    /// The hash that begins a message of this type, its lowest bit clear.
    pub(crate) fn hash(&self) -> u32 {
        let mut text = Vec::new();
        self.spell(&mut text);
        md5::first32(&text) & !1
    }
}

/// A message being written. Lengths get their width when all of them are known.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    parts: Vec<Part>,
    longest: u64,
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Length(u64),
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        match self.parts.last_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.parts.push(Part::Bytes(bytes.to_vec())),
        }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn length(&mut self, value: usize) {
        self.longest = self.longest.max(value as u64);
        self.parts.push(Part::Length(value as u64));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes(text.as_bytes());
    }

    pub(crate) fn texts(&mut self, texts: &[String]) {
        self.length(texts.len());
        texts.iter().for_each(|t| self.text(t));
    }

    pub(crate) fn u64s(&mut self, values: impl ExactSizeIterator<Item = u64>) {
        self.length(values.len());
        values.for_each(|v| self.u64(v));
    }

    /// The message, as one of type `ty`.
    pub(crate) fn finish(self, ty: &Type) -> Vec<u8> {
        let (width, code) = match self.longest {
            0..=0xff => (1, 0u8),
            0x100..=0xffff => (2, 1),
            0x1_0000..=0xffff_ffff => (4, 2),
            _ => (8, 3),
        };
        let mut out = (ty.hash() | u32::from(code != 0)).to_le_bytes().to_vec();
        if code != 0 {
            out.push(code << 3);
        }
        for part in self.parts {
            match part {
                Part::Bytes(bytes) => out.extend(bytes),
                Part::Length(n) => out.extend(&n.to_le_bytes()[..width]),
            }
        }
        out
    }
}

/// What is wrong with a message.
#[derive(Debug)]
pub(crate) struct Garbled(pub(crate) String);

type Read<T> = Result<T, Garbled>;

/// A message being read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    width: usize,
}

impl<'a> Reader<'a> {
    /// A message that must be of type `ty`.
    pub(crate) fn new(message: &'a [u8], ty: &Type) -> Read<Self> {
        let mut reader = Self { rest: message, width: 1 };
        let hash = u32::from_le_bytes(*reader.array()?);
        let mut spelled = "";
        if hash & 1 != 0 {
            let meta = reader.u8()?;
            reader.take([0, 2, 4, 8][usize::from(meta & 3)])?;
            if meta & 4 != 0 {
                let end = reader.rest.iter().position(|b| *b == 0);
                let text = reader.take(end.ok_or_else(|| Garbled("its type does not end".into()))? + 1)?;
                spelled = std::str::from_utf8(&text[..text.len() - 1]).unwrap_or("");
            }
            reader.width = [1, 2, 4, 8][usize::from(meta >> 3 & 3)];
        }
        if hash & !1 != ty.hash() {
            let want = ty.hash();
            return Err(Garbled(format!(
                "its type is {:#010x} {spelled:?}, and {want:#010x} was expected",
                hash & !1
            )));
        }
        Ok(reader)
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let cut = self.rest.split_at_checked(n);
        let (head, rest) = cut.ok_or_else(|| Garbled(format!("{n} bytes more were expected")))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Read<&'a [u8; N]> {
        self.take(N)?.first_chunk().ok_or_else(|| Garbled("it is too short".into()))
    }

    pub(crate) fn u8(&mut self) -> Read<u8> {
        self.array().map(|[b]| *b)
    }

    pub(crate) fn i32(&mut self) -> Read<i32> {
        self.array().copied().map(i32::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Read<i64> {
        self.array().copied().map(i64::from_le_bytes)
    }

    fn length(&mut self) -> Read<usize> {
        let mut bytes = [0; 8];
        bytes[..self.width].copy_from_slice(self.take(self.width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|e| Garbled(e.to_string()))
    }

    /// A value, or the peer's error code.
    pub(crate) fn expected<T>(&mut self, value: impl FnOnce(&mut Self) -> Read<T>) -> Read<Result<T, i32>> {
        match self.u8()? {
            0 => self.i32().map(Err),
            _ => value(self).map(Ok),
        }
    }

    /// A list of `n` entries, of which each takes at least one byte.
    pub(crate) fn list<T>(&mut self, n: usize, mut entry: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let got = self.length()?;
        if got != n {
            return Err(Garbled(format!("it has {got} entries for {n} keys")));
        }
        (0..n).map(|_| entry(self)).collect()
    }

    /// The end.
    pub(crate) fn end(&self) -> Read<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(Garbled(format!("{n} bytes are left over"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answers() -> Type {
        Type::list(Type::expected(Type::I64))
    }

    fn read(message: &[u8], n: usize) -> Read<Vec<Result<i64, i32>>> {
        let mut reader = Reader::new(message, &answers())?;
        let list = reader.list(n, |r| r.expected(Reader::i64))?;
        reader.end()?;
        Ok(list)
    }

    fn written(codes: &[Result<i64, i32>]) -> Vec<u8> {
        let mut w = Writer::default();
        w.length(codes.len());
        for code in codes {
            w.u8(code.is_ok().into());
            match code {
                Ok(v) => w.u64(*v as u64),
                Err(e) => w.i32(*e),
            }
        }
        w.finish(&answers())
    }

    #[test]
    fn lengths_get_the_width_that_the_longest_needs() {
        for n in [0, 1, 255, 256, 65_535, 65_536] {
            let codes: Vec<_> = (0..n).map(|i| if i % 3 == 0 { Err(-704) } else { Ok(i) }).collect();
            let message = written(&codes);
            assert_eq!(read(&message, codes.len()).unwrap(), codes, "{n} entries");
            assert!(
                read(&message, codes.len() + 1).is_err(),
                "an answer has as many entries as was asked for"
            );
        }
    }

    #[test]
    fn another_type_is_told_with_what_the_peer_calls_it() {
        let mut message = (Type::Text.hash() | 1).to_le_bytes().to_vec();
        message.extend(b"\x04some type\0");
        let Garbled(why) = read(&message, 1).unwrap_err();
        assert!(why.contains("some type"), "{why}");
    }

    proptest! {
        /// Neither what is cut off nor what is bent is read past its end, and nothing is as large as a length claims.
        #[test]
        fn garbage_is_an_error_or_a_list(mut message in prop::collection::vec(any::<u8>(), 0..64), typed: bool, n in 0usize..9) {
            if typed && message.len() >= 4 {
                let low = message[0] & 1;
                message[..4].copy_from_slice(&answers().hash().to_le_bytes());
                message[0] |= low;
            }
            if let Ok(list) = read(&message, n) {
                prop_assert_eq!(list.len(), n);
            }
        }
    }
}
