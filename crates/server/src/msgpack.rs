//! MessagePack as LMCache's clients write and read it: every number in its shortest form, maps with text keys.
//!
//! The reader never recurses and never makes room for what a length only announces, so no input can exhaust the stack or
//! memory. Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

/// What cannot be read: which field, and what was expected there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// The field or argument.
    pub field: &'static str,
    /// What would have been accepted.
    pub expected: &'static str,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} has to be {}", self.field, self.expected)
    }
}

impl std::error::Error for Unreadable {}

/// The result of reading something.
pub(crate) type Read<T> = Result<T, Unreadable>;

/// Reads one document from the front.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    field: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], field: &'static str) -> Self {
        Self { rest: bytes, field }
    }

    /// Names what is read next, for errors.
    pub(crate) fn at(&mut self, field: &'static str) -> &mut Self {
        self.field = field;
        self
    }

    fn no<T>(&self, expected: &'static str) -> Read<T> {
        Err(Unreadable { field: self.field, expected })
    }

    fn byte(&mut self) -> Read<u8> {
        let Some((&b, rest)) = self.rest.split_first() else { return self.no("a whole value") };
        self.rest = rest;
        Ok(b)
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else { return self.no("a whole value") };
        self.rest = rest;
        Ok(taken)
    }

    /// A big-endian number of so many bytes.
    fn number(&mut self, bytes: usize) -> Read<u64> {
        Ok(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn len(&mut self, bytes: usize) -> Read<usize> {
        let n = self.number(bytes)?;
        usize::try_from(n).or_else(|_| self.no("a shorter value"))
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Read<()> {
        if self.rest.is_empty() { Ok(()) } else { self.no("one value") }
    }

    /// Whether nil comes next; then it is taken.
    pub(crate) fn nil(&mut self) -> bool {
        let nil = self.rest.first() == Some(&0xc0);
        self.rest = &self.rest[usize::from(nil)..];
        nil
    }

    pub(crate) fn int(&mut self) -> Read<i128> {
        let marker = self.byte()?;
        Ok(match marker {
            0x00..=0x7f => marker.into(),
            0xe0..=0xff => (marker as i8).into(),
            0xcc..=0xcf => self.number(1 << (marker - 0xcc))?.into(),
            0xd0 => (self.number(1)? as u8 as i8).into(),
            0xd1 => (self.number(2)? as u16 as i16).into(),
            0xd2 => (self.number(4)? as u32 as i32).into(),
            0xd3 => (self.number(8)? as i64).into(),
            // Declared numbers are coerced by the other side, and truth is one.
            0xc2 | 0xc3 => (marker - 0xc2).into(),
            _ => return self.no("an integer"),
        })
    }

    pub(crate) fn i64(&mut self) -> Read<i64> {
        let n = self.int()?;
        i64::try_from(n).or_else(|_| self.no("an integer of 64 bits"))
    }

    pub(crate) fn u32(&mut self) -> Read<u32> {
        let n = self.int()?;
        u32::try_from(n).or_else(|_| self.no("an integer from 0 to 4294967295"))
    }

    pub(crate) fn bool(&mut self) -> Read<bool> {
        Ok(self.int()? != 0)
    }

    pub(crate) fn f64(&mut self) -> Read<f64> {
        match self.rest.first() {
            Some(0xcb) => {
                self.byte()?;
                Ok(f64::from_bits(self.number(8)?))
            }
            Some(0xca) => {
                self.byte()?;
                Ok(f32::from_bits(self.number(4)? as u32).into())
            }
            _ => Ok(self.int()? as f64),
        }
    }

    pub(crate) fn str(&mut self) -> Read<&'a str> {
        let marker = self.byte()?;
        let len = match marker {
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9..=0xdb => self.len(1 << (marker - 0xd9))?,
            _ => return self.no("text"),
        };
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).or_else(|_| self.no("UTF-8"))
    }

    pub(crate) fn bin(&mut self) -> Read<&'a [u8]> {
        let marker = self.byte()?;
        match marker {
            0xc4..=0xc6 => {
                let len = self.len(1 << (marker - 0xc4))?;
                self.take(len)
            }
            _ => self.no("bytes"),
        }
    }

    /// An extension value of this type.
    pub(crate) fn ext(&mut self, kind: u8) -> Read<&'a [u8]> {
        let marker = self.byte()?;
        let len = match marker {
            0xd4..=0xd8 => 1 << (marker - 0xd4),
            0xc7..=0xc9 => self.len(1 << (marker - 0xc7))?,
            _ => return self.no("an extension value"),
        };
        if self.byte()? != kind {
            return self.no("an extension value of type 1");
        }
        self.take(len)
    }

    /// How many values of an array follow.
    pub(crate) fn array(&mut self) -> Read<usize> {
        let marker = self.byte()?;
        match marker {
            0x90..=0x9f => Ok(usize::from(marker & 0xf)),
            0xdc | 0xdd => self.len(2 << (marker - 0xdc)),
            _ => self.no("an array"),
        }
    }

    /// How many pairs of a map follow.
    pub(crate) fn map(&mut self) -> Read<usize> {
        let marker = self.byte()?;
        match marker {
            0x80..=0x8f => Ok(usize::from(marker & 0xf)),
            0xde | 0xdf => self.len(2 << (marker - 0xde)),
            _ => self.no("a map"),
        }
    }

    /// An array of values that are read alike.
    pub(crate) fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let n = self.array()?;
        // Each value has a byte at least.
        let mut out = Vec::with_capacity(n.min(self.rest.len()).min(1 << 12));
        for _ in 0..n {
            out.push(each(self)?);
        }
        Ok(out)
    }

    /// The numbers of an array as big-endian `u32`s one after the other: what a chunk's hash is made of.
    pub(crate) fn tokens(&mut self) -> Read<Vec<u8>> {
        let n = self.array()?;
        if n > self.rest.len() {
            return self.no("a whole value");
        }
        let mut out = vec![0; n * 4];
        for to in out.chunks_exact_mut(4) {
            // The usual forms, without the detour of the general one.
            let token = match *self.rest {
                [b @ 0..=0x7f, ref rest @ ..] => {
                    self.rest = rest;
                    b.into()
                }
                [0xcd, a, b, ref rest @ ..] => {
                    self.rest = rest;
                    u32::from_be_bytes([0, 0, a, b])
                }
                [0xce, a, b, c, d, ref rest @ ..] => {
                    self.rest = rest;
                    u32::from_be_bytes([a, b, c, d])
                }
                _ => self.u32()?,
            };
            to.copy_from_slice(&token.to_be_bytes());
        }
        Ok(out)
    }

    /// The bytes of one value.
    pub(crate) fn document(&mut self) -> Read<&'a [u8]> {
        let before = self.rest;
        self.skip()?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    /// Passes over one value, however deep it is.
    pub(crate) fn skip(&mut self) -> Read<()> {
        let mut left = 1u64;
        while left > 0 {
            left -= 1;
            let marker = self.byte()?;
            let bytes = match marker {
                0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
                0x80..=0x8f => {
                    left += 2 * u64::from(marker & 0xf);
                    0
                }
                0x90..=0x9f => {
                    left += u64::from(marker & 0xf);
                    0
                }
                0xa0..=0xbf => usize::from(marker & 0x1f),
                0xc4..=0xc6 => self.len(1 << (marker - 0xc4))?,
                0xc7..=0xc9 => self.len(1 << (marker - 0xc7))? + 1,
                0xca => 4,
                0xcb => 8,
                0xcc..=0xcf => 1 << (marker - 0xcc),
                0xd0..=0xd3 => 1 << (marker - 0xd0),
                0xd4..=0xd8 => (1 << (marker - 0xd4)) + 1,
                0xd9..=0xdb => self.len(1 << (marker - 0xd9))?,
                0xdc | 0xdd => {
                    left += self.number(2 << (marker - 0xdc))?;
                    0
                }
                0xde | 0xdf => {
                    left += 2 * self.number(2 << (marker - 0xde))?;
                    0
                }
                0xc1 => return self.no("a value"),
            };
            self.take(bytes)?;
        }
        Ok(())
    }
}

/// Writes documents one after the other.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    fn sized(&mut self, n: usize, short: Option<(u8, usize)>, markers: [Option<u8>; 3]) {
        if let Some((marker, below)) = short
            && n < below
        {
            return self.0.push(marker | n as u8);
        }
        match (markers, u8::try_from(n), u16::try_from(n)) {
            ([Some(m), ..], Ok(n), _) => self.0.extend_from_slice(&[m, n]),
            ([_, Some(m), _], _, Ok(n)) => {
                self.0.push(m);
                self.0.extend_from_slice(&n.to_be_bytes());
            }
            ([.., m], ..) => {
                self.0.extend(m);
                self.0.extend_from_slice(&(n as u32).to_be_bytes());
            }
        }
    }

    pub(crate) fn nil(&mut self) {
        self.0.push(0xc0);
    }

    pub(crate) fn bool(&mut self, b: bool) {
        self.0.push(0xc2 + u8::from(b));
    }

    pub(crate) fn uint(&mut self, n: u64) {
        let bytes = n.to_be_bytes();
        match n {
            0..=0x7f => self.0.push(n as u8),
            0x80..=0xff => self.0.extend_from_slice(&[0xcc, n as u8]),
            0x100..=0xffff => {
                self.0.push(0xcd);
                self.0.extend_from_slice(&bytes[6..]);
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(0xce);
                self.0.extend_from_slice(&bytes[4..]);
            }
            _ => {
                self.0.push(0xcf);
                self.0.extend_from_slice(&bytes);
            }
        }
    }

    pub(crate) fn int(&mut self, n: i64) {
        if let Ok(n) = u64::try_from(n) {
            return self.uint(n);
        }
        let bytes = n.to_be_bytes();
        match n {
            -32.. => self.0.push(n as u8),
            -128.. => self.0.extend_from_slice(&[0xd0, n as u8]),
            -32_768.. => {
                self.0.push(0xd1);
                self.0.extend_from_slice(&bytes[6..]);
            }
            -2_147_483_648.. => {
                self.0.push(0xd2);
                self.0.extend_from_slice(&bytes[4..]);
            }
            _ => {
                self.0.push(0xd3);
                self.0.extend_from_slice(&bytes);
            }
        }
    }

    pub(crate) fn ints(&mut self, numbers: &[i64]) {
        self.array(numbers.len());
        numbers.iter().for_each(|n| self.int(*n));
    }

    pub(crate) fn f64(&mut self, x: f64) {
        self.0.push(0xcb);
        self.0.extend_from_slice(&x.to_be_bytes());
    }

    /// An extension value.
    pub(crate) fn ext(&mut self, kind: u8, body: &[u8]) {
        if matches!(body.len(), 1 | 2 | 4 | 8 | 16) {
            self.0.push(0xd4 + body.len().trailing_zeros() as u8);
        } else {
            self.sized(body.len(), None, [Some(0xc7), Some(0xc8), Some(0xc9)]);
        }
        self.0.push(kind);
        self.0.extend_from_slice(body);
    }

    pub(crate) fn str(&mut self, text: &str) {
        self.sized(text.len(), Some((0xa0, 32)), [Some(0xd9), Some(0xda), Some(0xdb)]);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn bin(&mut self, bytes: &[u8]) {
        self.sized(bytes.len(), None, [Some(0xc4), Some(0xc5), Some(0xc6)]);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn array(&mut self, n: usize) {
        self.sized(n, Some((0x90, 16)), [None, Some(0xdc), Some(0xdd)]);
    }

    pub(crate) fn map(&mut self, n: usize) {
        self.sized(n, Some((0x80, 16)), [None, Some(0xde), Some(0xdf)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(f: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::default();
        f(&mut w);
        w.0
    }

    #[test]
    fn every_number_has_its_shortest_form_and_comes_back() {
        for (n, len) in
            [(0, 1), (127, 1), (128, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 5), (1 << 32, 9)]
        {
            let bytes = written(|w| w.uint(n));
            assert_eq!(bytes.len(), len, "{n}");
            assert_eq!(Reader::new(&bytes, "n").int(), Ok(i128::from(n)));
        }
        for (bytes, n) in [
            (&[0xffu8][..], -1),
            (&[0xd0, 0x80], -128),
            (&[0xd1, 0x80, 0], -32_768),
            (&[0xd2, 0x80, 0, 0, 0], -(1 << 31)),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], i128::from(i64::MIN)),
            (&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i128::from(u64::MAX)),
        ] {
            assert_eq!(Reader::new(bytes, "n").int(), Ok(n));
        }
        assert_eq!(Reader::new(&[0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], "x").f64(), Ok(1.5));
        assert_eq!(Reader::new(&[2], "x").f64(), Ok(2.0));
    }

    #[test]
    fn texts_bytes_and_containers_change_their_form_with_their_length() {
        for n in [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(n);
            assert_eq!(Reader::new(&written(|w| w.str(&text)), "t").str(), Ok(&*text));
            assert_eq!(Reader::new(&written(|w| w.bin(text.as_bytes())), "b").bin(), Ok(text.as_bytes()));
            assert_eq!(Reader::new(&written(|w| w.array(n)), "a").array(), Ok(n));
            assert_eq!(Reader::new(&written(|w| w.map(n)), "m").map(), Ok(n));
        }
        assert_eq!(written(|w| w.str("ab")), b"\xa2ab");
        assert_eq!(written(|w| w.bin(b"")), [0xc4, 0]);
    }

    #[test]
    fn tokens_are_read_in_every_form_and_refused_beyond_32_bits() {
        let bytes = [0x95, 1, 0xcc, 200, 0xcd, 1, 0, 0xce, 0, 1, 0, 0, 0xd2, 0, 0, 0, 7];
        let mut want = Vec::new();
        [1u32, 200, 256, 65_536, 7].iter().for_each(|t| want.extend_from_slice(&t.to_be_bytes()));
        assert_eq!(Reader::new(&bytes, "t").tokens(), Ok(want));
        assert!(Reader::new(&[0x91, 0xff], "t").tokens().is_err());
        assert!(Reader::new(&[0x91, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0], "t").tokens().is_err());
        assert!(
            Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1], "t").tokens().is_err(),
            "nothing is set aside for it"
        );
    }

    #[test]
    fn anything_is_passed_over_without_recursion_and_nothing_beyond_the_end() {
        let mut deep = vec![0x91; 1 << 20];
        assert!(Reader::new(&deep, "d").skip().is_err());
        deep.push(1);
        assert!(Reader::new(&deep, "d").skip().is_ok());
        let all = [
            0x9c, 0xc0, 0xc3, 7, 0xff, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xa1, b'x', 0xc4, 1, 9, 0xd4, 1, 5,
            0xc7, 2, 1, 8, 9, 0x81, 1, 2, 0xd9, 1, b'y', 0xd1, 1, 1,
        ];
        for cut in 0..all.len() {
            assert!(Reader::new(&all[..cut], "a").skip().is_err(), "cut at {cut}");
        }
        let mut reader = Reader::new(&all, "a");
        reader.skip().unwrap();
        assert_eq!(reader.end(), Ok(()));
        assert!(Reader::new(&[0xdf, 0xff, 0xff, 0xff, 0xff], "m").skip().is_err());
        assert!(Reader::new(&[0xc1], "m").skip().is_err());
    }
}
