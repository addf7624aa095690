//! What is killed: it stores as fast as it can, and says what was acknowledged.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use kvstrata_core::{KeyMask, ObjectKey};
use kvstrata_l2_fs::{LayoutChoice, Sync};
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved, StoredHook, Wait};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_testkit::payload;
use kvstrata_testkit::rng::Rng;

use crate::shelf::{Got, How, LONGEST, PATIENCE, Shelf, id_of, key, layout, scope};

/// It ends by itself after this time, whatever becomes of its parent.
const LIFE: Duration = Duration::from_secs(20);

/// How chunks are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Through {
    /// Through the manager.
    Manager,
    /// Through the adapter.
    Adapter,
}

/// How objects lie in files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LayoutName {
    /// Each in its own.
    Files,
    /// In segments.
    Slab,
}

impl From<LayoutName> for LayoutChoice {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Files => Self::Files,
            LayoutName::Slab => Self::Slab,
        }
    }
}

/// What a store waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Syncs {
    /// Nothing.
    None,
    /// The bytes.
    Data,
    /// The bytes and the names.
    Full,
}

impl From<Syncs> for Sync {
    fn from(s: Syncs) -> Self {
        match s {
            Syncs::None => Self::None,
            Syncs::Data => Self::Data,
            Syncs::Full => Self::Full,
        }
    }
}

/// What the process that is killed is told.
#[derive(Args, Clone, Debug)]
pub struct ChildArgs {
    /// The store's directory
    #[arg(long)]
    pub dir: PathBuf,
    /// How objects lie in files
    #[arg(long, value_enum)]
    pub layout: LayoutName,
    /// Directories with a store each
    #[arg(long, default_value_t = 1)]
    pub paths: usize,
    /// The limit in bytes
    #[arg(long)]
    pub capacity: u64,
    /// What a store waits for
    #[arg(long, value_enum)]
    pub sync: Syncs,
    /// How chunks are stored
    #[arg(long, value_enum)]
    pub through: Through,
    /// The number of the first key
    #[arg(long)]
    pub first: u64,
    /// What choices are made from
    #[arg(long)]
    pub seed: u64,
}

/// One line, in one write, so that a kill cuts none in two but the last.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: there is nobody to store for.
    if out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn list(ids: impl IntoIterator<Item = u64>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
}

/// What an object takes of a store's room at most. One of segments has room in its index for objects of 64 KiB; of smaller
/// ones it holds no more.
pub(super) fn charge(lies: LayoutName, id: u64) -> u64 {
    let bytes = 4096 + layout(id).bytes().next_multiple_of(4096) + 2 * 4096;
    match lies {
        LayoutName::Files => bytes,
        LayoutName::Slab => bytes.max(64 << 10),
    }
}

/// Stores until it is killed.
pub fn child(args: &ChildArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let done = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(store(args)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

async fn store(args: &ChildArgs) -> Result<(), String> {
    let how = How {
        dir: args.dir.clone(),
        paths: args.paths,
        layout: args.layout.into(),
        capacity: args.capacity,
        sync: args.sync.into(),
        writer: args.seed,
        shared: false,
    };
    let shelf = Arc::new(Shelf::open(&how).map_err(|e| format!("open: {e}"))?);
    say("open");
    let end = Instant::now() + LIFE;
    let stop = Arc::<AtomicBool>::default();
    let snapshots = {
        let stores: Vec<_> = shelf.stores.iter().map(|one| Arc::clone(one.store())).collect();
        let stop = Arc::clone(&stop);
        let mut rng = Rng::new(args.seed ^ 1);
        tokio::task::spawn_blocking(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(rng.below(60)));
                stores.iter().for_each(|store| store.write_snapshot());
            }
        })
    };
    let done = match args.through {
        Through::Adapter => adapter(args, &shelf, end).await,
        Through::Manager => manager(args, &shelf, end).await,
    };
    stop.store(true, Ordering::Relaxed);
    drop(snapshots.await);
    done
}

async fn adapter(args: &ChildArgs, shelf: &Shelf, end: Instant) -> Result<(), String> {
    let scope = scope();
    let mut rng = Rng::new(args.seed);
    let mut next = args.first;
    while Instant::now() < end {
        let ids: Vec<u64> = (next..next + 1 + rng.below(8)).collect();
        next += ids.len() as u64;
        let answers = shelf.put(&scope, &ids).await;
        let stored = ids.iter().zip(answers).filter(|(_, a)| a.is_ok()).map(|(id, _)| *id);
        say(&format!("stored {}", list(stored)));
        let id = args.first.max(next.saturating_sub(32)) + rng.below(16);
        if id < next && rng.percent(30) {
            if let Got::Wrong(how) = &shelf.get(&scope, &[id]).await[0] {
                return Err(format!("key {id}: {how}"));
            }
        } else if id < next && rng.percent(10) {
            say(&format!("removing {id}"));
            let remove = shelf.checked.adapter.remove.as_ref().expect("files can be removed");
            let answer = remove.remove([key(&scope, id)].into(), shelf.deadline()).await;
            if answer[0].is_ok() {
                say(&format!("removed {id}"));
            }
        }
    }
    Ok(())
}

async fn manager(args: &ChildArgs, shelf: &Shelf, end: Instant) -> Result<(), String> {
    const L1: u64 = 64 * LONGEST;
    let failed = |e: kvstrata_core::Error| e.to_string();
    let slab = Slab::new(vec![HeapRegion::new(2 * L1 as usize).map_err(failed)?]).map_err(failed)?;
    let parts = Parts {
        cache: slab.pool("cache", L1),
        staging: slab.pool("staging", L1),
        eviction: kvstrata_evict::by_name("lru").expect("a known name"),
        admission: kvstrata_evict::admission_by_name("always").expect("a known name"),
        store: kvstrata_policy::store_by_name("default").expect("a known name"),
        prefetch: kvstrata_policy::prefetch_by_name("default").expect("a known name"),
        cx: shelf.cx.clone(),
    };
    let manager = Manager::new(parts, Options::default()).map_err(failed)?;
    manager.add_adapter(shelf.adapter.clone(), 1).map_err(failed)?;
    // The hook says when a key can be read from disk.
    let hook: Arc<dyn StoredHook> = Arc::new(|key: &ObjectKey| {
        say(&format!("stored {}", list(id_of(key))));
    });
    let scope = scope();
    let mut rng = Rng::new(args.seed);
    let mut next = args.first;
    let mut under_way = 0;
    while Instant::now() < end {
        let ids: Vec<u64> = (next..next + 1 + rng.below(8)).collect();
        next += ids.len() as u64;
        // What is being written takes room and cannot go: with much of it, even the newest of the others would have to.
        under_way += ids.iter().map(|id| charge(args.layout, *id)).sum::<u64>();
        if under_way > args.capacity / 8 {
            manager.flush(PATIENCE).await.map_err(failed)?;
            under_way = 0;
        }
        let keys: Vec<ObjectKey> = ids.iter().map(|id| key(&scope, *id)).collect();
        let layouts = Layouts::Each(ids.iter().map(|id| layout(*id)).collect());
        let rq = manager.request(PATIENCE);
        let all = KeyMask::all(keys.len());
        let reserved = manager.reserve(&rq, &keys, &all, &layouts, Grant::Part, Wait::UntilDeadline).await;
        let mut filled = Vec::new();
        for reserved in reserved {
            if let Reserved::Granted(mut chunk) = reserved {
                let key = chunk.key().clone();
                payload::write(&key, chunk.buf()).map_err(failed)?;
                filled.push(chunk);
            }
        }
        manager.commit_with(filled, Some(Arc::clone(&hook)));
    }
    manager.shutdown(PATIENCE).await.map_err(failed)
}
