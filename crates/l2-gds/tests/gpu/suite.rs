//! The conformance suite over a real GPU's memory.

use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_l2::{Adapter, Context};
use kvstrata_l2_gds::{GdsConfig, GdsStore, GdsWay, Gpus, os_disk};
use kvstrata_testkit::conformance::{Factory, Ignored, Subject, Suite};
use libtest_mimic::{Completion, Failed, Trial};

use crate::common;
use crate::common::device::Device;
use crate::via::{hang, via};

struct Gds(Option<Arc<dyn Gpus>>);

#[async_trait::async_trait]
impl Factory for Gds {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let Some(gpus) = self.0.clone() else {
            return Err(Error::new(kvstrata_core::ErrorKind::Unavailable, "open", "there is no GPU"));
        };
        // Its own, so that what is still out at the end is this store's.
        let device = Device::new(gpus, 32 << 20, 8 << 20)?;
        let dir = crate::rig::folder();
        let config = GdsConfig {
            max_capacity_gb: capacity.unwrap_or(0) as f64 / f64::from(1 << 30),
            gds_way: GdsWay::Bounce,
            gds_buffer_size: 8,
            disk_io_threads: Some(4),
            ..common::config(dir.path())
        };
        let disk = os_disk(&config)?;
        let make = move |cx: Context| -> Result<(Adapter, GdsStore)> {
            let gpus = Ok(Arc::clone(&device.gpus));
            let gds = GdsStore::open(&config, common::context(Arc::clone(&disk), cx.clone(), gpus))?;
            Ok((via(gds.adapter(), &device, &cx), gds))
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

pub(crate) fn trials(gpus: Option<Arc<dyn Gpus>>, absent: Option<&str>, required: bool) -> Vec<Trial> {
    let there = gpus.is_some();
    let why = absent.unwrap_or("there is no GPU").to_owned();
    let cases = Suite::new(Gds(gpus)).cases().into_iter().map(|case| {
        let (name, why) = (format!("conformance/{}", case.name()), why.clone());
        Trial::ignorable_test(name, move || match there {
            true => match case.run() {
                Ok(()) => Ok(Completion::Completed),
                // Bits are rotted in the suites of the store underneath, which knows where they lie.
                Err(Ignored(why)) if why.contains("damage") => Ok(Completion::ignored_with(why)),
                Err(Ignored(why)) => Err(Failed::from(format!("did not run, and has to: {why}"))),
            },
            false if required => Err(Failed::from(why)),
            false => Ok(Completion::ignored_with(why)),
        })
    });
    cases.collect()
}
