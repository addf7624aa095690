//! The adapter against its obligations: attached to a live client, also after that or the master was killed and restarted,
//! and through a stand-in for the library.

#[path = "common/again.rs"]
mod again;
mod common;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Cluster;
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{Adapter, Context, MemoryKinds};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};
use kvstrata_l2_mooncake::{Attach, MooncakeConfig, MooncakeStore, PerKey, Route};
use kvstrata_mem::Region;
use kvstrata_mooncake_sys::{Source, Target};
use kvstrata_testkit::conformance::{Damage, Device, Factory, Ignored, Subject, Suite};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A way that several adapters use one after the other, each of which closes it at its end.
#[derive(Debug)]
struct Lent(Arc<dyn Route>);

impl Route for Lent {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn kinds(&self) -> MemoryKinds {
        self.0.kinds()
    }
    fn max_keys(&self) -> usize {
        self.0.max_keys()
    }
    fn register(&self, region: &Arc<dyn Region>) -> Result<()> {
        self.0.register(region)
    }
    fn unregister(&self, region: &Arc<dyn Region>) {
        self.0.unregister(region);
    }
    fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>> {
        self.0.put_from(keys, from)
    }
    fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        self.0.get_into(keys, to)
    }
    fn exists(&self, keys: &[String]) -> Result<PerKey<bool>> {
        self.0.exists(keys)
    }
    fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>> {
        self.0.sizes(keys)
    }
    fn remove(&self, keys: &[String]) -> Result<PerKey<()>> {
        self.0.remove(keys)
    }
    fn close(&self) {}
}

/// Hangs what all cases share, so only one of them at a time has it hung.
struct Hang<F: Fn(bool) + Send + Sync + 'static> {
    hang: F,
    mine: AtomicBool,
}

static HUNG: AtomicBool = AtomicBool::new(false);

impl<F: Fn(bool) + Send + Sync + 'static> Hang<F> {
    fn device(hang: F) -> Arc<dyn Device> {
        Arc::new(Self { hang, mine: AtomicBool::new(false) })
    }
}

impl<F: Fn(bool) + Send + Sync + 'static> Device for Hang<F> {
    fn hang(&self) {
        while HUNG.swap(true, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.mine.store(true, Ordering::SeqCst);
        (self.hang)(true);
    }
    fn resume(&self) {
        if self.mine.swap(false, Ordering::SeqCst) {
            (self.hang)(false);
            HUNG.store(false, Ordering::SeqCst);
        }
    }
}

impl<F: Fn(bool) + Send + Sync + 'static> Drop for Hang<F> {
    fn drop(&mut self) {
        self.resume();
    }
}

/// Opens adapters over one way, each with names of its own.
struct Shared {
    route: Arc<dyn Route>,
    hang: Arc<dyn Fn(bool) + Send + Sync>,
}

fn over(route: &Arc<dyn Route>, config: &MooncakeConfig, cx: Context) -> Result<Adapter> {
    let lent = Arc::new(Lent(Arc::clone(route)));
    Ok(MooncakeStore::over(lent, config, &common::context(cx))?.adapter())
}

#[async_trait::async_trait]
impl Factory for Shared {
    async fn open(&self, cx: Context, _: Option<u64>) -> Result<Subject> {
        let prefix = format!("case-{}/", common::run());
        let config = MooncakeConfig { key_prefix: prefix.clone(), ..MooncakeConfig::default() };
        let adapter = over(&self.route, &config, cx)?;
        let (route, hang) = (Arc::clone(&self.route), Arc::clone(&self.hang));
        let again = Arc::clone(&self.route);
        let reopen = move |cx| {
            let opened = over(&again, &config, cx);
            Box::pin(async move { opened }) as _
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(move |damage| common::damage(&*route, &prefix, damage))),
            device: Some(Hang::device(move |hung| hang(hung))),
            ..Subject::new(adapter)
        })
    }
}

/// Opens an adapter of its own for each case.
struct Attached {
    config: MooncakeConfig,
    hang: Arc<dyn Fn(bool) + Send + Sync>,
}

#[async_trait::async_trait]
impl Factory for Attached {
    async fn open(&self, cx: Context, _: Option<u64>) -> Result<Subject> {
        let config = MooncakeConfig { key_prefix: format!("own-{}/", common::run()), ..self.config.clone() };
        let adapter = MooncakeStore::open(&config, &common::context(cx))?.adapter();
        let (prefix, client, hang) =
            (config.key_prefix.clone(), config.client_address.clone(), Arc::clone(&self.hang));
        let reopen = move |cx| {
            let opened = MooncakeStore::open(&config, &common::context(cx)).map(|s| s.adapter());
            Box::pin(async move { opened }) as _
        };
        let damage = move |damage: Damage<'_>| {
            let client = client.parse().expect("an address");
            let route = Attach::connect(client, None, common::run()).expect("the client");
            let done = common::damage(&route, &prefix, damage);
            route.close();
            done
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(damage)),
            device: Some(Hang::device(move |hung| hang(hung))),
            ..Subject::new(adapter)
        })
    }
}

/// What this store cannot do, whichever way: it has no limit of its own and no list.
const NEVER: [&str; 2] = ["l2_6_", "l2_list_"];

fn trials(mode: &str, suite: &Suite, shared_only: bool, why_not: Option<&str>) -> Vec<Trial> {
    let cases = suite.cases().into_iter().map(|case| {
        let may_ignore = NEVER.iter().any(|n| case.name().starts_with(n))
            || shared_only && case.name().ends_with("/private");
        let why_not = why_not.map(str::to_owned);
        Trial::ignorable_test(format!("{mode}/{}", case.name()), move || match why_not {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => match case.run() {
                Ok(()) => Ok(Completion::Completed),
                Err(Ignored(reason)) if may_ignore => Ok(Completion::ignored_with(reason)),
                Err(Ignored(reason)) => Err(Failed::from(format!("did not run, and has to: {reason}"))),
            },
        })
    });
    cases.collect()
}

/// Also with every third key of every call held up by a fault injector around it, and with calls that fail and miss what is there,
/// for which somebody asks again: no promise may be lost by either. Faults that nobody makes good are
/// in `live.rs`.
fn with_faults(suite: Suite) -> Suite {
    let delayed = suite.layer("delays", |adapter, cx| {
        let delay = |op| Rule { every: Some(3), delay_ms: Some(1), ..Rule::new(op, Fault::Delay) };
        let config = FaultConfig::scripted(Op::ALL.into_iter().map(delay).collect());
        Injector::new(adapter, &config, cx.clone()).expect("an injector").adapter()
    });
    delayed.layer("faults", again::faults_and_patience)
}

fn stop(pid: u32) -> Arc<dyn Fn(bool) + Send + Sync> {
    Arc::new(move |hung| common::signal(pid, hung))
}

/// A cluster whose client (or master) is killed under an adapter and started again.
fn restarted(master: bool) -> (Cluster, Arc<dyn Route>) {
    let mut cluster = Cluster::start("256MB");
    let route: Arc<dyn Route> =
        Arc::new(Attach::connect(cluster.client(0), None, common::run()).expect("the client"));
    let pool = common::shared_pool(1 << 20);
    common::replace(&*route, &pool, "before", b"some bytes").expect("a put");
    let within_30_s = |ready: &dyn Fn() -> bool| {
        (0..600).any(|_| {
            let now = ready();
            if !now {
                std::thread::sleep(Duration::from_millis(50));
            }
            now
        })
    };
    if master {
        cluster.kill_master();
        cluster.start_master();
        // The client finds the new master by itself, and mounts its segment there.
        let mounted = || common::replace(&*route, &pool, "after", b"some bytes").is_ok();
        assert!(within_30_s(&mounted), "no segment after 30 s");
    } else {
        cluster.kill_client(0);
        cluster.start_client(0);
        // Until the master misses the dead one it places objects there too.
        let missed = || route.exists(&["before".into()]).is_ok_and(|there| there == [Ok(false)]);
        assert!(within_30_s(&missed), "the dead client's segment is still there after 30 s");
    }
    (cluster, route)
}

/// A way through the stand-in, which hangs by a file.
fn capi(dir: &Path) -> Result<Shared, String> {
    let (route, hung) = common::stub(dir)?;
    let hang = move |on: bool| {
        let done = if on { std::fs::write(&hung, "") } else { std::fs::remove_file(&hung) };
        done.expect("the stand-in's switch");
        if on {
            // Calls look at it before they touch anything; those that had looked end meanwhile.
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    Ok(Shared { route: Arc::new(route), hang: Arc::new(hang) })
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let dir = tempfile::tempdir().expect("a directory");
    let mut all = Vec::new();
    let absent = || Shared { route: Arc::new(Nowhere), hang: Arc::new(|_| ()) };
    let through = capi(dir.path());
    let why = through.as_ref().err().cloned();
    all.extend(trials(
        "capi",
        &with_faults(Suite::new(through.unwrap_or_else(|_| absent()))),
        false,
        why.as_deref(),
    ));

    let mut keep: Vec<Cluster> = Vec::new();
    let wheel = common::wheel().err();
    if args.list || wheel.is_some() {
        let why = wheel.as_deref();
        for mode in ["attach", "client-restarted", "master-restarted"] {
            all.extend(trials(mode, &with_faults(Suite::new(absent())), true, why));
        }
    } else {
        // Their starts take seconds of waiting.
        let (live, client, master) = std::thread::scope(|s| {
            let client = s.spawn(|| restarted(false));
            let master = s.spawn(|| restarted(true));
            (Cluster::start("512MB"), client.join().expect("a cluster"), master.join().expect("a cluster"))
        });
        let attached = Attached { config: live.config(), hang: stop(live.client_pid(0)) };
        all.extend(trials("attach", &with_faults(Suite::new(attached)), true, None));
        for (mode, (cluster, route)) in [("client-restarted", client), ("master-restarted", master)] {
            let shared = Shared { route, hang: stop(cluster.client_pid(0)) };
            all.extend(trials(mode, &with_faults(Suite::new(shared)), true, None));
            keep.push(cluster);
        }
        keep.push(live);
    }
    let conclusion = libtest_mimic::run(&args, all);
    drop(keep);
    conclusion.exit_code()
}

/// Stands where there is no way; its cases are listed and do not run.
#[derive(Debug)]
struct Nowhere;

impl Route for Nowhere {
    fn describe(&self) -> String {
        "nowhere".into()
    }
    fn kinds(&self) -> MemoryKinds {
        MemoryKinds::HOST
    }
    fn max_keys(&self) -> usize {
        1
    }
    fn register(&self, _: &Arc<dyn Region>) -> Result<()> {
        Ok(())
    }
    fn unregister(&self, _: &Arc<dyn Region>) {}
    fn put_from(&self, _: &[String], _: &[Source<'_>]) -> Result<PerKey<()>> {
        Err(Error::new(ErrorKind::Unavailable, "put", "nowhere"))
    }
    fn get_into(&self, _: &[String], _: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        Err(Error::new(ErrorKind::Unavailable, "get", "nowhere"))
    }
    fn exists(&self, _: &[String]) -> Result<PerKey<bool>> {
        Err(Error::new(ErrorKind::Unavailable, "look up", "nowhere"))
    }
    fn sizes(&self, _: &[String]) -> Result<PerKey<u64>> {
        Err(Error::new(ErrorKind::Unavailable, "look up", "nowhere"))
    }
    fn remove(&self, _: &[String]) -> Result<PerKey<()>> {
        Err(Error::new(ErrorKind::Unavailable, "remove", "nowhere"))
    }
    fn close(&self) {}
}
