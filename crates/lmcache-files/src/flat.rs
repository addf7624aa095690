//! The names of LMCache's `fs` and `fs_native` adapters: one flat directory of files that are payload and nothing else.
//!
//! | version | name |
//! |---|---|
//! | 0.5 | `<model>@0x<rank, 8 hex digits>@<group, hex>@<hash, hex>[@<salt>].data` |
//! | 0.4 | `<model>@0x<rank, 8 hex digits>@<hash, hex>[@<salt>].data`: group 0 |
//!
//! In the model each `/` is written `-SEP-`, and a `-SEP-` stays as it is, so two models can have one name. Without a list
//! of models each `-SEP-` is read as a `/`, as LMCache does; a model that this does not give back is not looked for. With
//! a list only its models are known, and two of them that share a name are refused.
//!
//! The two versions are told apart by the third field: a group has at most 8 hex digits, a hash is taken for one from 16
//! on. What lies between is refused, and so is every other spelling of a key (upper case, leading zeros).

use kvstrata_core::{ChunkHash, Error, KeyScope, KvRank, ObjectKey, Result, text};

use crate::Refusal;
use crate::hex::parse_hex;

const SEP: &str = "-SEP-";
const SUFFIX: &str = ".data";
/// Hex digits of the shortest hash that LMCache makes, 8 bytes.
const HASH_DIGITS: usize = 16;
/// The longest name that file systems take.
const NAME_MAX: usize = 255;

/// The models whose names are known, if any are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Models(Vec<(String, String)>);

impl Models {
    /// Exactly these models; none: any, with each `-SEP-` read as a `/`.
    ///
    /// # Errors
    /// `Invalid` if one breaks the rules of a model's name, or two of them have the same file names.
    pub fn new(names: &[String]) -> Result<Self> {
        let mut models: Vec<(String, String)> = Vec::new();
        for name in names {
            KeyScope::new(name, KvRank::single(), 0, "")?;
            let written = name.replace('/', SEP);
            match models.iter().find(|(w, _)| *w == written) {
                Some((_, other)) if other == name => {}
                Some((_, other)) => {
                    return Err(Error::invalid(
                        "read model names",
                        "LMCache writes the objects of both models under the same names; they cannot be told apart",
                    )
                    .with("model", name)
                    .with("other", other));
                }
                None => models.push((written, name.clone())),
            }
        }
        Ok(Self(models))
    }

    fn read(&self, written: &str) -> Result<String, Refusal> {
        if self.0.is_empty() {
            let model = written.replace(SEP, "/");
            return if self.gives_back(&model) { Ok(model) } else { Err(Refusal::Ambiguous) };
        }
        self.0.iter().find(|(w, _)| w == written).map(|(_, m)| m.clone()).ok_or(Refusal::Foreign)
    }

    /// Whether objects of this model can be told from all others by their names.
    pub fn gives_back(&self, model: &str) -> bool {
        if self.0.is_empty() {
            // A name that is made of overlapping separators is read otherwise than it was written.
            let written = model.replace('/', SEP);
            return written.replace(SEP, "/") == model && !written.contains("-SEP-SEP-");
        }
        self.0.iter().any(|(_, m)| m == model)
    }
}

/// Reads a file's name.
///
/// # Errors
/// `Temporary` for a file being written, `Foreign` for a name of another form or a model that is not known, `Ambiguous` if
/// it may be another key's too, `Malformed` if it breaks a rule of the key.
pub fn parse(name: &str, models: &Models) -> Result<ObjectKey, Refusal> {
    let Some(stem) = name.strip_suffix(SUFFIX) else {
        let writing = name.strip_suffix(".tmp").is_some_and(|n| n.ends_with(SUFFIX));
        return Err(if writing { Refusal::Temporary } else { Refusal::Foreign });
    };
    let fields: Vec<&str> = stem.split('@').collect();
    let [written, rank, rest @ ..] = fields.as_slice() else { return Err(Refusal::Foreign) };
    let rank = rank.strip_prefix("0x").ok_or(Refusal::Foreign)?;
    let (group, hash, salt) = match *rest {
        [hash] => ("0", hash, ""),
        [group, hash] if group.len() <= 8 => (group, hash, ""),
        [hash, salt] if hash.len() >= HASH_DIGITS => ("0", hash, salt),
        [_, _] => return Err(Refusal::Ambiguous),
        [group, hash, salt] => (group, hash, salt),
        _ => return Err(Refusal::Foreign),
    };
    let number = |hex: &str| u32::from_str_radix(hex, 16).map_err(|_| Refusal::Malformed);
    let rank = KvRank::from_packed(number(rank)?).map_err(|_| Refusal::Malformed)?;
    let hash = parse_hex(hash).and_then(|h| ChunkHash::new(&h).ok()).ok_or(Refusal::Malformed)?;
    let model = models.read(written)?;
    let scope = KeyScope::new(&model, rank, number(group)?, salt).map_err(|_| Refusal::Malformed)?;
    let key = ObjectKey::new(&scope, hash);
    if all_names(&key).iter().flatten().any(|n| n == name) { Ok(key) } else { Err(Refusal::Malformed) }
}

/// The names under which a key's object may lie, the newest first; none for a model that names do not give back.
pub fn names(key: &ObjectKey, models: &Models) -> Vec<String> {
    if !models.gives_back(key.scope().model()) {
        return Vec::new();
    }
    all_names(key).into_iter().flatten().filter(|name| name.len() <= NAME_MAX).collect()
}

fn all_names(key: &ObjectKey) -> [Option<String>; 2] {
    let scope = key.scope();
    let old = (scope.group() == 0).then(|| {
        let model = scope.model().replace('/', SEP);
        let salt = if scope.salt().is_empty() { String::new() } else { format!("@{}", scope.salt()) };
        format!("{model}@0x{:08x}@{}{salt}{SUFFIX}", scope.rank().packed(), key.hash())
    });
    // The older version with a salt and a short hash has the form of the newer one without.
    let old = old.filter(|_| scope.salt().is_empty() || key.hash().as_bytes().len() * 2 >= HASH_DIGITS);
    [Some(text::fs_name(key)), old]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "abababababababababababababababababababababababababababababababab";

    fn each() -> Models {
        Models::default()
    }

    fn refused(name: &str) -> Refusal {
        parse(name, &each()).map(|k| k.to_string()).expect_err(name)
    }

    /// Golden names: LMCache 0.5.6 and 0.4.4.
    #[test]
    fn names_of_both_versions_are_read() {
        let key = |group, salt| {
            let scope = KeyScope::new("org/model", KvRank::new(8, 5, 8, 5).unwrap(), group, salt).unwrap();
            ObjectKey::new(&scope, ChunkHash::from([0xab; 32]))
        };
        for (name, wanted) in [
            (format!("org-SEP-model@0x08050805@b@{HASH}.data"), key(11, "")),
            (format!("org-SEP-model@0x08050805@b@{HASH}@salt.data"), key(11, "salt")),
            (format!("org-SEP-model@0x08050805@0@{HASH}.data"), key(0, "")),
            (format!("org-SEP-model@0x08050805@{HASH}.data"), key(0, "")),
            (format!("org-SEP-model@0x08050805@{HASH}@salt.data"), key(0, "salt")),
            (format!("org-SEP-model@0x08050805@{HASH}@abcd.data"), key(0, "abcd")),
        ] {
            assert_eq!(parse(&name, &each()), Ok(wanted.clone()), "{name}");
            assert!(names(&wanted, &each()).contains(&name), "{name}");
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        use Refusal::{Ambiguous, Foreign, Malformed, Temporary};
        for (name, why) in [
            ("", Foreign),
            ("x.data", Foreign),
            ("m@0x01000100@0@abab.data.tmp", Temporary),
            ("readme.tmp", Foreign),
            ("m@01000100@0@abab.data", Foreign),
            ("m@0x01000100@0@abab@s@t.data", Foreign),
            // Ten digits: too long for a group, too short for a hash of LMCache's.
            ("m@0x01000100@0123456789@abab.data", Ambiguous),
            ("a-SEP-SEP-b@0x01000100@0@abab.data", Ambiguous),
            ("m@0x01000100@0@aba.data", Malformed),
            ("m@0x01000100@0@ABAB.data", Malformed),
            ("m@0x01000100@00@abab.data", Malformed),
            ("m@0x1000100@0@abab.data", Malformed),
            ("m@0x00000000@0@abab.data", Malformed),
            ("@0x01000100@0@abab.data", Malformed),
            ("m@0x01000100@0@.data", Malformed),
            ("m@0x01000100@0@abab@.data", Malformed),
            ("m@0x01000100@+0@abab.data", Malformed),
        ] {
            assert_eq!(refused(name), why, "{name}");
        }
    }

    #[test]
    fn a_model_with_the_separator_in_its_name_is_named_or_not_looked_for() {
        let key = |model: &str| {
            let scope = KeyScope::new(model, KvRank::single(), 0, "").unwrap();
            ObjectKey::new(&scope, ChunkHash::from([1; 32]))
        };
        assert!(names(&key("a-SEP-b"), &each()).is_empty());
        assert_eq!(names(&key("a/b"), &each()).len(), 2);
        let known = Models::new(&["a-SEP-b".into()]).unwrap();
        let name = &names(&key("a-SEP-b"), &known)[0];
        assert_eq!(parse(name, &known), Ok(key("a-SEP-b")));
        assert_eq!(parse(name, &Models::new(&["c".into()]).unwrap()), Err(Refusal::Foreign));
        assert!(names(&key("a/b"), &known).is_empty(), "its file would be the other's");
        let e = Models::new(&["a/b".into(), "a-SEP-b".into()]).unwrap_err();
        assert!(e.to_string().contains("told apart"), "{e}");
        assert!(Models::new(&["a@b".into()]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_two_keys_share_a_name(
            (model, other) in ("(-SEP-|/|a|SEP|-){1,6}", "(-SEP-|/|a|SEP|-){1,6}"),
            group in 0u32..300, salt in "(a|b){0,2}", hash in prop::collection::vec(any::<u8>(), 1..=32),
        ) {
            let key = |model: &str| {
                let scope = KeyScope::new(model, KvRank::single(), group, &salt).unwrap();
                ObjectKey::new(&scope, ChunkHash::new(&hash).unwrap())
            };
            let (a, b) = (key(&model), key(&other));
            for name in names(&a, &Models::default()) {
                prop_assert_eq!(parse(&name, &Models::default()), Ok(a.clone()), "{}", name);
                prop_assert!(a == b || !names(&b, &Models::default()).contains(&name));
            }
        }
    }
}
