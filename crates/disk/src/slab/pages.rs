//! The bytes of the snapshot. All numbers are little-endian; what is not listed is zero. An object's record is that of
//! [`super::format`].
//!
//! It is pages of 4096 bytes, each with its own checksum: one that is rotten costs the objects in it.
//!
//! | offset | bytes | page |
//! |---|---|---|
//! | 0 | 4 | magic `KVSP` |
//! | 4 | 1 | kind: 0 head, 1 scopes, 2 layouts, 3 objects |
//! | 6 | 2 | entries in it |
//! | 8 | 8 | epoch |
//! | 16 | 4 | number of the page |
//! | 20 | 4 | scopes, layouts: the number of the first of them |
//! | 24 | | head: `KVSTRSNP`, version `u16`, 6 zero, store id 16, first number of the log, pages, objects, next generation |
//! | 24 | | scopes: length `u16`, then the encoding of a key of this scope with the chunk hash `00` |
//! | 24 | | layouts of 16 bytes; objects of 144 |
//! | 4088 | 8 | CRC-64/NVMe of the 4088 bytes before |

use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, KeyScope, LayoutId, Result};

use super::format::{RECORD, Table, VERSION, bad, crc, decode_object, get, scope_of, set};
use super::geometry::UNIT;
use crate::index::Object;

pub(crate) const PAGE: usize = UNIT as usize;
/// Objects of one page.
pub(crate) const PER_PAGE: usize = (CRC_AT - BODY) / RECORD;
/// Layouts of one page.
pub(crate) const LAYOUTS_PER_PAGE: usize = (CRC_AT - BODY) / 16;

const BODY: usize = 24;
const CRC_AT: usize = PAGE - 8;
const SNAPSHOT_MAGIC: &[u8; 8] = b"KVSTRSNP";
const PAGE_MAGIC: &[u8; 4] = b"KVSP";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Head = 0,
    Scopes = 1,
    Layouts = 2,
    Objects = 3,
}

/// What the first page says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SnapshotHead {
    pub(crate) store_id: u128,
    pub(crate) epoch: u64,
    /// The number of the first record of this epoch's log.
    pub(crate) first: u64,
    /// All pages, this one included.
    pub(crate) pages: u64,
    pub(crate) objects: u64,
    /// Above the generation of every object.
    pub(crate) generation: u64,
}

/// A page being filled.
#[derive(Debug)]
pub(crate) struct Page {
    kind: Kind,
    /// The number of the first entry, where entries are numbered.
    first: u32,
    entries: u16,
    used: usize,
    bytes: Vec<u8>,
}

impl Page {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, first: 0, entries: 0, used: BODY, bytes: vec![0; PAGE] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether no object's record fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.used + RECORD > CRC_AT
    }

    /// Room for one more entry of so many bytes, if there is.
    pub(crate) fn entry(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let (from, to) = (self.used, self.used + bytes);
        if to > CRC_AT {
            return None;
        }
        (self.used, self.entries) = (to, self.entries + 1);
        Some(&mut self.bytes[from..to])
    }

    /// Ends the page: appends it to `out` and begins a new one of the same kind.
    pub(crate) fn flush(&mut self, epoch: u64, number: u32, out: &mut Vec<u8>) {
        let b = &mut self.bytes;
        let next = self.first + u32::from(self.entries);
        set(b, 20, self.first.to_le_bytes());
        set(b, 0, *PAGE_MAGIC);
        b[4] = self.kind as u8;
        set(b, 6, self.entries.to_le_bytes());
        set(b, 8, epoch.to_le_bytes());
        set(b, 16, number.to_le_bytes());
        let sum = crc(&b[..CRC_AT]);
        set(b, CRC_AT, sum);
        out.extend_from_slice(b);
        b.fill(0);
        (self.entries, self.used) = (0, BODY);
        if matches!(self.kind, Kind::Scopes | Kind::Layouts) {
            self.first = next;
        }
    }
}

impl SnapshotHead {
    /// The first page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = Page::new(Kind::Head);
        let b = page.entry(72).expect("an empty page");
        set(b, 0, *SNAPSHOT_MAGIC);
        set(b, 8, VERSION.to_le_bytes());
        set(b, 16, self.store_id.to_le_bytes());
        set(b, 32, self.first.to_le_bytes());
        set(b, 40, self.pages.to_le_bytes());
        set(b, 48, self.objects.to_le_bytes());
        set(b, 56, self.generation.to_le_bytes());
        let mut out = Vec::with_capacity(PAGE);
        page.flush(self.epoch, 0, &mut out);
        out
    }

    /// Reads the first page of a snapshot of this store.
    ///
    /// # Errors
    /// `Corrupt`; `Mismatch` for a later version.
    pub(crate) fn decode(bytes: &[u8], store_id: u128) -> Result<Self> {
        const OP: &str = "read index snapshot";
        let page = bytes.get(..PAGE).ok_or_else(|| bad(OP, "cut"))?;
        let epoch = u64::from_le_bytes(get(page, 8));
        let Some(Opened { kind: Kind::Head, body: b, .. }) = open_page(page, epoch, 0) else {
            return Err(bad(OP, "not the head of a snapshot"));
        };
        if get::<8>(b, 0) != *SNAPSHOT_MAGIC {
            return Err(bad(OP, "another magic"));
        }
        let version = u16::from_le_bytes(get(b, 8));
        if version != VERSION {
            return Err(Error::new(ErrorKind::Mismatch, OP, "another version").with("version", version));
        }
        let head = Self {
            store_id: u128::from_le_bytes(get(b, 16)),
            epoch,
            first: u64::from_le_bytes(get(b, 32)),
            pages: u64::from_le_bytes(get(b, 40)),
            objects: u64::from_le_bytes(get(b, 48)),
            generation: u64::from_le_bytes(get(b, 56)),
        };
        if head.store_id != store_id {
            return Err(bad(OP, "of another store"));
        }
        Ok(head)
    }
}

struct Opened<'a> {
    kind: Kind,
    first: u32,
    entries: u16,
    body: &'a [u8],
}

fn open_page(page: &[u8], epoch: u64, number: u32) -> Option<Opened<'_>> {
    let kind = match page[4] {
        0 => Kind::Head,
        1 => Kind::Scopes,
        2 => Kind::Layouts,
        3 => Kind::Objects,
        _ => return None,
    };
    let good = get::<4>(page, 0) == *PAGE_MAGIC
        && u64::from_le_bytes(get(page, 8)) == epoch
        && u32::from_le_bytes(get(page, 16)) == number
        && get::<8>(page, CRC_AT) == crc(&page[..CRC_AT]);
    let first = u32::from_le_bytes(get(page, 20));
    good.then(|| Opened { kind, first, entries: u16::from_le_bytes(get(page, 6)), body: &page[BODY..CRC_AT] })
}

/// The pages behind the first one, in order.
#[derive(Debug)]
pub(crate) struct Pages {
    epoch: u64,
    number: u32,
    scopes: Table<Arc<KeyScope>>,
    layouts: Table<LayoutId>,
    /// Pages that were no good, or said what cannot be.
    pub(crate) rotten: u64,
    pub(crate) objects: u64,
}

impl Pages {
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, number: 1, scopes: Table::new(), layouts: Table::new(), rotten: 0, objects: 0 }
    }

    /// Takes whole pages.
    pub(crate) fn read(&mut self, bytes: &[u8], mut each: impl FnMut(Object)) {
        for page in bytes.chunks(PAGE) {
            let number = self.number;
            self.number = number.saturating_add(1);
            let opened = (page.len() == PAGE).then(|| open_page(page, self.epoch, number)).flatten();
            let good = opened.is_some_and(|page| self.page(&page, &mut each));
            self.rotten += u64::from(!good);
        }
    }

    fn page(&mut self, page: &Opened<'_>, each: &mut impl FnMut(Object)) -> bool {
        let (entries, body) = (usize::from(page.entries), page.body);
        // What the pages up to here could name at most.
        let most = self.number as usize * (CRC_AT - BODY) / 16;
        match page.kind {
            Kind::Head => false,
            Kind::Scopes => {
                let mut rest = body;
                (page.first..).take(entries).all(|number| {
                    let Some((len, tail)) = rest.split_first_chunk() else { return false };
                    let len = usize::from(u16::from_le_bytes(*len));
                    let Some((text, tail)) = tail.split_at_checked(len) else { return false };
                    rest = tail;
                    scope_of(text).is_ok_and(|scope| self.scopes.put(number, scope, most))
                })
            }
            Kind::Layouts => {
                let mut all = (page.first..).zip(body.chunks_exact(16).take(entries));
                all.all(|(number, l)| self.layouts.put(number, LayoutId::from_bytes(get(l, 0)), most))
                    && entries <= LAYOUTS_PER_PAGE
            }
            Kind::Objects => {
                let mut good = entries <= PER_PAGE;
                for record in body.chunks_exact(RECORD).take(entries) {
                    let layout = |n: u32| self.layouts.get(n).copied();
                    match decode_object(record, &self.scopes, layout) {
                        Some(object) => {
                            self.objects += 1;
                            each(object);
                        }
                        None => good = false,
                    }
                }
                good
            }
        }
    }
}
