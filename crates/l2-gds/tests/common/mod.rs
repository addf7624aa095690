//! What the tests of the adapter share.

pub(crate) mod device;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::Result;
use kvstrata_disk::Writer;
use kvstrata_io::OsDisk;
use kvstrata_l2::Context;
use kvstrata_l2_gds::{GdsConfig, GdsContext, Gpus, Orders, Prober, Search};

/// A writer that no other store of this process has.
pub(crate) fn writer() -> Writer {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Writer { pid: std::process::id(), id: NEXT.fetch_add(1 << 32, Ordering::Relaxed) }
}

/// cuFile is tried with the program that was built beside the tests, or with the test itself.
pub(crate) fn prober(library: Option<PathBuf>) -> Prober {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_kvstrata-gds-probe"));
    let (program, args) = if built.exists() {
        (Some(built), vec![])
    } else {
        // In a pack there is only the test, which is the probe too.
        (std::env::current_exe().ok(), vec!["gds-probe".into()])
    };
    let search = Search { explicit: library, ..Search::default() };
    Prober { program, args, search, limit: Duration::from_secs(20) }
}

pub(crate) fn context(disk: Arc<OsDisk>, l2: Context, gpus: Result<Arc<dyn Gpus>>) -> GdsContext {
    GdsContext {
        disk,
        l2,
        writer: writer(),
        namespaces: vec![],
        gpus,
        prober: prober(None),
        memory: None,
        orders: Arc::new(Orders::default()),
    }
}

pub(crate) fn config(dir: &Path) -> GdsConfig {
    GdsConfig { gds_buffer_size: 64, ..GdsConfig::new(dir.join("kv")) }
}
