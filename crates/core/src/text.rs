//! LMCache's text names of a key, for directories and stores that are shared with it. They are not injective there and
//! are never an identity here: `/` and `-SEP-` collide in the file name.
//!
//! Source: LMCache 0.5.6, the `fs` adapter's file names and the native connectors' key strings.

use crate::{Error, KeyScope, KvRank, ObjectKey, Result};

/// The file name LMCache's `fs` and `fs_native` adapters give an object, for example
/// `org-SEP-model@0x08050805@b@abab….data`; the salt follows the hash when there is one.
pub fn fs_name(key: &ObjectKey) -> String {
    let scope = key.scope();
    let model = scope.model().replace('/', "-SEP-");
    let salt = if scope.salt().is_empty() { String::new() } else { format!("@{}", scope.salt()) };
    format!("{model}@0x{:08x}@{:x}@{}{salt}.data", scope.rank().packed(), scope.group(), key.hash())
}

/// Reads a file name of LMCache's `fs` adapters. Each `-SEP-` is taken for a `/`, as LMCache does.
///
/// # Errors
/// `Invalid` if the name has another form or breaks a rule of the key.
pub fn parse_fs_name(name: &str) -> Result<ObjectKey> {
    let bad = || Error::invalid("parse fs name", "not a name of LMCache's fs adapter").with("name", name);
    let stem = name.strip_suffix(".data").ok_or_else(bad)?;
    let mut parts = stem.split('@');
    let mut next = || parts.next().ok_or_else(bad);
    let model = next()?.replace("-SEP-", "/");
    let rank = next()?.strip_prefix("0x").filter(|r| r.len() == 8).ok_or_else(bad)?;
    let rank = KvRank::from_packed(u32::from_str_radix(rank, 16).map_err(|_| bad())?)?;
    let group = u32::from_str_radix(next()?, 16).map_err(|_| bad())?;
    let hash = next()?.parse().map_err(|_| bad())?;
    let salt = parts.next().unwrap_or_default();
    if parts.next().is_some() {
        return Err(bad());
    }
    Ok(ObjectKey::new(&KeyScope::new(&model, rank, group, salt)?, hash))
}

/// The key string of LMCache's native connectors (S3, Mooncake, RESP): the model verbatim, no `0x`.
pub fn connector_name(key: &ObjectKey) -> String {
    let scope = key.scope();
    let salt = if scope.salt().is_empty() { String::new() } else { format!("@{}", scope.salt()) };
    format!("{}@{:08x}@{:x}@{}{salt}", scope.model(), scope.rank().packed(), scope.group(), key.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkHash;

    /// Golden names from LMCache 0.5.6.
    const PLAIN: &str =
        "org-SEP-model@0x08050805@b@abababababababababababababababababababababababababababababababab.data";
    const SALTED: &str = "org-SEP-model@0x08050805@b@abababababababababababababababababababababababababababababababab@salt.data";

    fn key(salt: &str) -> ObjectKey {
        let scope = KeyScope::new("org/model", KvRank::new(8, 5, 8, 5).unwrap(), 11, salt).unwrap();
        ObjectKey::new(&scope, ChunkHash::from([0xab; 32]))
    }

    #[test]
    fn fs_names_are_lmcaches() {
        assert_eq!(fs_name(&key("")), PLAIN);
        assert_eq!(fs_name(&key("salt")), SALTED);
        assert_eq!(parse_fs_name(PLAIN).unwrap(), key(""));
        assert_eq!(parse_fs_name(SALTED).unwrap(), key("salt"));
    }

    #[test]
    fn connector_names_keep_the_model_verbatim() {
        assert_eq!(connector_name(&key("")), format!("org/model@08050805@b@{}", "ab".repeat(32)));
        assert_eq!(connector_name(&key("s")), format!("org/model@08050805@b@{}@s", "ab".repeat(32)));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "x.data",
            "m@0x0805@b@ab.data",
            "m@08050805@b@ab.data",
            "m@0x08050805@b@abc.data",
            "m@0x08050805@b@zz.data",
            "m@0x08050805@b@ab@s@t.data",
            "m@0x08050805@b@ab.tmp",
            "m@0x00000000@b@ab.data",
            "@0x08050805@b@ab.data",
            "m@0x08050805@b@.data",
        ] {
            assert!(parse_fs_name(name).is_err(), "{name}");
        }
    }
}
