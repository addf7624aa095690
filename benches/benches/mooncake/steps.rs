//! What the requests of a store and of a load take, each for itself.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvstrata_benches::median;
use kvstrata_core::Result;
use kvstrata_l2::MemoryKinds;
use kvstrata_l2_mooncake::{PerKey, Route};
use kvstrata_mem::Region;
use kvstrata_mooncake_sys::{Source, Target};

/// The requests of one operation, in order: what was asked for, when after its start, and for how many seconds.
pub(crate) type Steps = Vec<(&'static str, f64, f64)>;

/// Another way, with a clock.
#[derive(Debug)]
pub(crate) struct Timed {
    pub(crate) inner: Arc<dyn Route>,
    begun: Mutex<(Instant, Steps)>,
}

impl Timed {
    pub(crate) fn new(inner: Arc<dyn Route>) -> Self {
        Self { inner, begun: Mutex::new((Instant::now(), Vec::new())) }
    }

    /// From here on.
    pub(crate) fn begin(&self) {
        *self.begun.lock().expect("the clock") = (Instant::now(), Vec::new());
    }

    /// What was asked for since.
    pub(crate) fn end(&self) -> Steps {
        std::mem::take(&mut self.begun.lock().expect("the clock").1)
    }

    fn time<T>(&self, what: &'static str, call: impl FnOnce(&dyn Route) -> T) -> T {
        let start = Instant::now();
        let answer = call(&*self.inner);
        let took = start.elapsed().as_secs_f64();
        let mut begun = self.begun.lock().expect("the clock");
        let at = start.saturating_duration_since(begun.0).as_secs_f64();
        begun.1.push((what, at, took));
        answer
    }
}

impl Route for Timed {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn kinds(&self) -> MemoryKinds {
        self.inner.kinds()
    }
    fn max_keys(&self) -> usize {
        self.inner.max_keys()
    }
    fn register(&self, region: &Arc<dyn Region>) -> Result<()> {
        self.inner.register(region)
    }
    fn unregister(&self, region: &Arc<dyn Region>) {
        self.inner.unregister(region);
    }
    fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>> {
        self.time("put", |way| way.put_from(keys, from))
    }
    fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        self.time("get", |way| way.get_into(keys, to))
    }
    fn exists(&self, keys: &[String]) -> Result<PerKey<bool>> {
        self.time("look", |way| way.exists(keys))
    }
    fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>> {
        self.time("sizes", |way| way.sizes(keys))
    }
    fn remove(&self, keys: &[String]) -> Result<PerKey<()>> {
        self.time("remove", |way| way.remove(keys))
    }
    fn close(&self) {
        self.inner.close();
    }
}

/// The medians of operations that asked for the same, in microseconds.
#[derive(Default)]
pub(crate) struct Table(Vec<(Steps, f64)>);

impl Table {
    /// An operation's requests, and its seconds in all.
    pub(crate) fn add(&mut self, steps: Steps, seconds: f64) {
        self.0.push((steps, seconds));
    }

    pub(crate) fn print(&self, name: &str) {
        let Some((first, _)) = self.0.first().filter(|(steps, _)| !steps.is_empty()) else { return };
        let same =
            |steps: &Steps| steps.len() == first.len() && steps.iter().zip(first).all(|(a, b)| a.0 == b.0);
        let alike: Vec<_> = self.0.iter().filter(|(steps, _)| same(steps)).collect();
        let micros = |of: &dyn Fn(&(Steps, f64)) -> f64| median(alike.iter().map(|o| of(o)).collect()) * 1e6;
        let all = micros(&|o| o.1);
        let mut line = format!("  {name}: {all:.0} us");
        for (i, (what, ..)) in first.iter().enumerate() {
            let (at, took) = (micros(&|o| o.0[i].1), micros(&|o| o.0[i].2));
            line += &format!(", at {at:.0} {what} {took:.0}");
        }
        eprintln!("{line}  ({} of {} alike)", alike.len(), self.0.len());
    }
}
