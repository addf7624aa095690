//! Through the user's own `libmooncake_store.so`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::MemoryKinds;
use kvstrata_mem::{Region, RegionId};
use kvstrata_mooncake_sys::{Library, Setup, Source, Store, Target};
use parking_lot::Mutex;

use crate::route::{Code, PerKey, Route};

/// The way through a library: its client, with its transport, is part of this process.
#[derive(Debug)]
pub struct Capi {
    store: Store,
    name: String,
    preferred: Option<String>,
    /// The library has their addresses, so they stay until it has let go of them.
    registered: Mutex<HashMap<RegionId, Arc<dyn Region>>>,
}

impl Capi {
    /// Sets a client up. With `prefer_local`, new objects are to lie in this client's own segment, if it has room.
    ///
    /// # Errors
    /// `Unavailable` if the library cannot reach what it is set up with.
    pub fn connect(
        library: &Arc<Library>,
        path: &Path,
        setup: &Setup<'_>,
        prefer_local: bool,
    ) -> Result<Self> {
        let store = Store::connect(library, setup).map_err(|e| {
            e.with("library", path.display()).with("master_server_address", setup.master_server_address)
        })?;
        let preferred = if prefer_local { Some(store.hostname()?) } else { None };
        Ok(Self { store, name: path.display().to_string(), preferred, registered: Mutex::default() })
    }

    /// Registers each region before its first use, once. A failure only warns, as in LMCache: over TCP it works without.
    fn known<'a>(&self, regions: impl Iterator<Item = &'a Arc<dyn Region>>) {
        for region in regions {
            if self.registered.lock().insert(region.id(), Arc::clone(region)).is_none() {
                let code = self.store.register(&**region);
                if code != 0 {
                    tracing::warn!(code, ?region, "the Mooncake library did not register a region");
                }
            }
        }
    }
}

fn unit(code: i32) -> Result<(), Code> {
    if code < 0 { Err(Code(code)) } else { Ok(()) }
}

fn size(answer: i64) -> Result<u64, Code> {
    u64::try_from(answer).map_err(|_| Code(i32::try_from(answer).unwrap_or(i32::MIN)))
}

impl Route for Capi {
    fn describe(&self) -> String {
        format!("through {}", self.name)
    }

    fn kinds(&self) -> MemoryKinds {
        MemoryKinds::HOST
    }

    fn max_keys(&self) -> usize {
        // The transport admits 64 transfers at once, and lets more wait for a second.
        64
    }

    fn register(&self, region: &Arc<dyn Region>) -> Result<()> {
        if self.registered.lock().insert(region.id(), Arc::clone(region)).is_some() {
            return Ok(());
        }
        match self.store.register(&**region) {
            0 => Ok(()),
            code => Err(Error::new(
                ErrorKind::Unavailable,
                "register memory",
                "the library did not register the region",
            )
            .with("code", code)),
        }
    }

    fn unregister(&self, region: &Arc<dyn Region>) {
        if self.registered.lock().remove(&region.id()).is_some() {
            self.store.unregister(&**region);
        }
    }

    fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>> {
        self.known(from.iter().map(Source::region));
        let codes = self.store.put_from(keys, from, self.preferred.as_deref())?;
        Ok(codes.into_iter().map(unit).collect())
    }

    fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        self.known(to.iter().map(Target::region));
        Ok(self.store.get_into(keys, to)?.into_iter().map(size).collect())
    }

    fn exists(&self, keys: &[String]) -> Result<PerKey<bool>> {
        Ok(self.store.exists(keys)?.into_iter().map(|code| unit(code).map(|()| code == 1)).collect())
    }

    fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>> {
        keys.iter().map(|key| self.store.size(key).map(size)).collect()
    }

    fn remove(&self, keys: &[String]) -> Result<PerKey<()>> {
        keys.iter().map(|key| self.store.remove(key).map(unit)).collect()
    }

    fn close(&self) {
        for (_, region) in self.registered.lock().drain() {
            self.store.unregister(&*region);
        }
    }
}
