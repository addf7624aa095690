//! What differs between releases, as far as an attached client is concerned.

use super::pack::{Type, Writer};

/// The types of a release and of those after it, up to the next entry of [`ALL`].
#[derive(Debug)]
pub(crate) struct Profile {
    /// The first release that has them.
    pub(crate) since: &'static str,
    /// The fields of the replication settings that come with a put, in order, each with the value that is sent.
    config: &'static [Field],
    /// Where data calls and registrations name a device.
    device: Device,
}

/// A device is named by its number, of which −1 is host memory.
#[derive(Clone, Copy, Debug)]
enum Device {
    /// Nowhere.
    None,
    /// In data calls, and in the last four bytes of a registration, behind the mark of a local buffer.
    Last,
    /// In data calls, and in a registration before the mark of a local buffer.
    First,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    U64(u64),
    U8(u8),
    Bool(bool),
    Text,
    Texts,
    /// The segments that are preferred: the one place where a put's own settings go.
    Preferred,
    NoU64,
    NoTexts,
}

use Field::{Bool, NoTexts, NoU64, Preferred, Text, Texts, U8, U64};

/// The newest first. Fields in words: replicas (always one; a second number counts those over NVMe-oF, a third those in a file system),
/// pins (soft, hard), preferred segments, a preferred segment of old, segments over NVMe-oF, allocation on the same node, the
/// kind of the data, the host, and groups.
pub(crate) const ALL: [Profile; 5] = [
    Profile {
        since: "0.3.13",
        config: &[
            U64(1),
            U64(0),
            U64(0),
            U8(0),
            NoU64,
            Bool(false),
            Preferred,
            Text,
            Texts,
            Bool(false),
            U8(0),
            Text,
            NoTexts,
        ],
        device: Device::First,
    },
    Profile {
        since: "0.3.12",
        config: &[
            U64(1),
            U64(0),
            Bool(false),
            Bool(false),
            Preferred,
            Text,
            Texts,
            Bool(false),
            U8(0),
            Text,
            NoTexts,
        ],
        device: Device::First,
    },
    Profile {
        since: "0.3.11",
        config: &[U64(1), U64(0), Bool(false), Bool(false), Preferred, Text, Texts, Bool(false), U8(0)],
        device: Device::First,
    },
    Profile {
        since: "0.3.10.post1",
        config: &[U64(1), Bool(false), Bool(false), Preferred, Text, Bool(false)],
        device: Device::Last,
    },
    Profile {
        since: "0.3.10",
        config: &[U64(1), Bool(false), Preferred, Text, Bool(false)],
        device: Device::None,
    },
];

/// The device that is host memory.
const HOST: i32 = -1;

/// A client's id on the wire.
pub(crate) type ClientId = (u64, u64);

pub(crate) fn client_id() -> Type {
    Type::Plain(vec![Type::U64, Type::U64], 8)
}

pub(crate) fn write_client_id(to: &mut Writer, id: ClientId) {
    to.u64(id.0);
    to.u64(id.1);
}

impl Profile {
    fn config_type(&self) -> Type {
        let field = |f: &Field| match f {
            U64(_) => Type::U64,
            U8(_) => Type::U8,
            Bool(_) => Type::Bool,
            Text => Type::Text,
            Texts | Preferred => Type::list(Type::Text),
            NoU64 => Type::maybe(Type::U64),
            NoTexts => Type::maybe(Type::list(Type::Text)),
        };
        Type::Struct(self.config.iter().map(field).collect())
    }

    fn write_config(&self, to: &mut Writer, preferred: Option<&str>) {
        for field in self.config {
            match field {
                U64(v) => to.u64(*v),
                U8(v) => to.u8(*v),
                Bool(v) => to.u8((*v).into()),
                Text => to.text(""),
                Texts => to.length(0),
                Preferred => {
                    to.length(preferred.iter().len());
                    preferred.iter().for_each(|p| to.text(p));
                }
                NoU64 | NoTexts => to.u8(0),
            }
        }
    }

    /// A batch of keys, addresses and sizes; of a put with its settings.
    pub(crate) fn batch(
        &self,
        keys: &[String],
        at: impl ExactSizeIterator<Item = (u64, u64)> + Clone,
        put: Option<Option<&str>>,
        client: ClientId,
    ) -> Vec<u8> {
        let mut fields = vec![Type::list(Type::Text), Type::list(Type::U64), Type::list(Type::U64)];
        let mut w = Writer::default();
        w.texts(keys);
        w.u64s(at.clone().map(|(addr, _)| addr));
        w.u64s(at.map(|(_, size)| size));
        if let Some(preferred) = put {
            fields.push(self.config_type());
            self.write_config(&mut w, preferred);
        }
        if !matches!(self.device, Device::None) {
            fields.push(Type::I32);
            w.i32(HOST);
        }
        fields.push(client_id());
        write_client_id(&mut w, client);
        w.finish(&Type::Struct(fields))
    }

    /// The message that hands an arena over, apart from its descriptor: the client, the arena's first address and its bytes, and
    /// what is in it.
    pub(crate) fn registration(&self, client: ClientId, base: u64, len: u64) -> [u8; 40] {
        let mut message = [0; 40];
        for (at, word) in [client.0, client.1, base, len].into_iter().enumerate() {
            message[at * 8..][..8].copy_from_slice(&word.to_ne_bytes());
        }
        let at = match self.device {
            Device::None => return message,
            Device::Last => 36,
            Device::First => 32,
        };
        message[at..][..4].copy_from_slice(&HOST.to_ne_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of the put call's arguments, as the wheels of each release take them.
    #[test]
    fn each_release_has_a_type_of_its_own() {
        let hash = |p: &Profile| {
            let message = p.batch(&[], [].into_iter(), Some(None), (0, 0));
            u32::from_le_bytes(*message.first_chunk().unwrap()) & !1
        };
        let mut hashes: Vec<u32> = ALL.iter().map(hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), ALL.len());
        let mut releases = ALL.map(|p| p.since).to_vec();
        releases.reverse();
        assert!(releases.is_sorted(), "the newest comes first: {releases:?}");
    }

    #[test]
    fn a_registration_names_its_client_and_its_arena() {
        let new = ALL[0].registration((1, 2), 3, 4);
        assert_eq!((new[0], new[8], new[16], new[24], &new[32..36]), (1, 2, 3, 4, &[0xff; 4][..]));
        assert_eq!(new[36], 0, "and says that it is no local buffer");
        let between = ALL[3].registration((1, 2), 3, 4);
        assert_eq!((&between[32..36], &between[36..]), (&[0; 4][..], &[0xff; 4][..]));
        assert_eq!(ALL[4].registration((1, 2), 3, 4)[32..], [0; 8], "an old one names no device");
    }
}
