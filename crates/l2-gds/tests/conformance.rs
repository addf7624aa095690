//! The adapter against its obligations: over host memory, where there is no CUDA; and over a pretended GPU's memory, by the
//! bounce way. `tests/gpu` runs the same over a real GPU.

mod common;
#[path = "common/pretend.rs"]
mod pretend;
#[path = "common/via.rs"]
mod via;

use std::process::ExitCode;
use std::sync::Arc;

use common::device::Device;
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{Adapter, Context};
use kvstrata_l2_gds::{GdsConfig, GdsStore, Gpus, Way, os_disk};
use kvstrata_testkit::conformance::{Factory, Ignored, Subject, Suite};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pretend::Pretend;
use via::{hang, via};

/// Stores of one kind of memory.
struct Gds {
    gpus: Option<Arc<dyn Gpus>>,
}

impl Gds {
    fn gpus(&self) -> Result<Arc<dyn Gpus>> {
        match &self.gpus {
            Some(gpus) => Ok(Arc::clone(gpus)),
            None => Err(Error::new(ErrorKind::Unavailable, "open the CUDA driver", "this test has none")),
        }
    }
}

#[async_trait::async_trait]
impl Factory for Gds {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| Error::io("make directory", e))?;
        let config = GdsConfig {
            max_capacity_gb: capacity.unwrap_or(0) as f64 / f64::from(1 << 30),
            allow_host: self.gpus.is_none(),
            gds_way: if self.gpus.is_some() { kvstrata_l2_gds::GdsWay::Bounce } else { Default::default() },
            gds_buffer_size: 8,
            disk_io_threads: Some(4),
            ..common::config(dir.path())
        };
        let disk = os_disk(&config)?;
        let gpus = self.gpus();
        // Its own, so that what is still out at the end is this store's.
        let device = self.gpus.clone().map(|gpus| Device::new(gpus, 16 << 20, 8 << 20)).transpose()?;
        let make = move |cx: Context| -> Result<(Adapter, GdsStore)> {
            let gds = GdsStore::open(&config, common::context(Arc::clone(&disk), cx.clone(), gpus.clone()))?;
            let adapter = match &device {
                Some(device) => {
                    assert!(gds.ways().values().all(|c| c.way == Way::Bounce), "{:?}", gds.ways());
                    via(gds.adapter(), device, &cx)
                }
                None => gds.adapter(),
            };
            Ok((adapter, gds))
        };
        let (adapter, gds) = make(cx)?;
        Ok(Subject {
            reopen: Some(Box::new(move |cx| {
                let opened = make(cx).map(|(adapter, _)| adapter);
                Box::pin(async move { opened })
            })),
            device: Some(hang(gds)),
            keep: Box::new(dir),
            ..Subject::new(adapter)
        })
    }
}

fn trials(mode: &str, suite: &Suite) -> Vec<Trial> {
    let cases = suite.cases().into_iter().map(|case| {
        Trial::ignorable_test(format!("{mode}/{}", case.name()), move || match case.run() {
            Ok(()) => Ok(Completion::Completed),
            // Bits are rotted in the suites of the store underneath, which knows where they lie.
            Err(Ignored(why)) if why.contains("damage") => Ok(Completion::ignored_with(why)),
            Err(Ignored(why)) => Err(Failed::from(format!("did not run, and has to: {why}"))),
        })
    });
    cases.collect()
}

fn main() -> ExitCode {
    let mut all = trials("host", &Suite::new(Gds { gpus: None }));
    all.extend(trials("pretended", &Suite::new(Gds { gpus: Some(Pretend::new()) })));
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
