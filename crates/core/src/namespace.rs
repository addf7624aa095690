//! What all objects of one model in a store have in common.

use crate::{Layout, LayoutId};

/// The description of a namespace: a store writes it once and refuses to mix in anything that differs.
///
/// Two runs of the same model with another parallelism, dtype or chunk size produce chunks under other hashes or of
/// other shapes; loading one as the other is silently wrong, so a store that was written by one of them is not opened
/// as the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// The model's name, as in the keys.
    pub model: String,
    /// Shards of the KV cache.
    pub world_size: u8,
    /// Tokens per chunk.
    pub chunk_tokens: u32,
    /// The schema of the chunk hashes (see [`crate::chunk`]).
    pub hash_schema: u16,
    /// The layout of one full chunk on one shard.
    pub layout: Layout,
}

/// A field in which two namespaces differ, with both values as text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceField {
    /// The field's name.
    pub field: &'static str,
    /// The value that was there.
    pub stored: String,
    /// The value that was asked for.
    pub wanted: String,
}

impl Namespace {
    /// The first field in which `wanted` differs from what is stored here.
    pub fn differs(&self, wanted: &Self) -> Option<NamespaceField> {
        let field = |field, stored: String, wanted: String| {
            (stored != wanted).then_some(NamespaceField { field, stored, wanted })
        };
        field("model", self.model.clone(), wanted.model.clone())
            .or_else(|| field("world_size", self.world_size.to_string(), wanted.world_size.to_string()))
            .or_else(|| field("chunk_tokens", self.chunk_tokens.to_string(), wanted.chunk_tokens.to_string()))
            .or_else(|| field("hash_schema", self.hash_schema.to_string(), wanted.hash_schema.to_string()))
            .or_else(|| field("layout", format!("{:?}", self.layout), format!("{:?}", wanted.layout)))
    }

    /// What stands for the layout in object headers.
    pub fn layout_id(&self) -> LayoutId {
        self.layout.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_differs_is_named_with_both_values() {
        let a = Namespace {
            model: "m".into(),
            world_size: 1,
            chunk_tokens: 256,
            hash_schema: 1,
            layout: Layout::opaque(4096).unwrap(),
        };
        assert_eq!(a.differs(&a.clone()), None);
        let field = |b: Namespace| a.differs(&b).map(|d| (d.field, d.stored, d.wanted)).unwrap();
        assert_eq!(field(Namespace { model: "n".into(), ..a.clone() }), ("model", "m".into(), "n".into()));
        assert_eq!(field(Namespace { world_size: 2, ..a.clone() }).0, "world_size");
        assert_eq!(
            field(Namespace { chunk_tokens: 16, ..a.clone() }),
            ("chunk_tokens", "256".into(), "16".into())
        );
        assert_eq!(field(Namespace { hash_schema: 2, ..a.clone() }).0, "hash_schema");
        let other = Namespace { layout: Layout::opaque(8192).unwrap(), ..a.clone() };
        assert_eq!(field(other), ("layout", "U8[4096]".into(), "U8[8192]".into()));
    }
}
