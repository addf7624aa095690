//! What the adapter refuses to open, and that nothing is changed then. Read-only and full file systems are mounts of this
//! test's own, because permission bits mean nothing to root.

#[path = "common/namespace.rs"]
mod namespace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, Namespace, ObjectKey, Result};
use kvstrata_disk::{Wanted, Writer};
use kvstrata_io::OsDisk;
use kvstrata_l2::{Answer, Context, Get, GetItem, GetSink, Put, PutItem, PutSink, Stored};
use kvstrata_l2_fs::{FsConfig, FsStore, Switch, open_os};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::trace;
use libtest_mimic::{Arguments, Completion, Trial};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
}

fn open_with(config: &FsConfig, namespaces: Vec<Namespace>, runtime: &Runtime) -> Result<FsStore<OsDisk>> {
    let writer = Writer { pid: std::process::id(), id: 0xfeed };
    open_os(config, Context::tokio(runtime.handle().clone()), writer, namespaces, None)
}

fn open(config: &FsConfig, runtime: &Runtime) -> Result<FsStore<OsDisk>> {
    open_with(config, vec![], runtime)
}

/// Opening fails with this kind of error, the words are in its text, and the directory is as it was.
fn refused(config: &FsConfig, kind: ErrorKind, words: &[&str]) {
    let before = names(&config.base_path);
    let e = open(config, &runtime()).expect_err("it has to be refused");
    assert_eq!(e.kind(), kind, "{e}");
    words.iter().for_each(|word| assert!(e.to_string().contains(word), "{word:?} is not in: {e}"));
    assert_eq!(names(&config.base_path), before, "nothing is changed");
}

fn names(path: &Path) -> Option<Vec<PathBuf>> {
    let mut names: Vec<_> = fs::read_dir(path).ok()?.map(|e| e.expect("an entry").path()).collect();
    names.sort();
    Some(names)
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Stores and loads through an adapter.
struct User {
    fs: FsStore<OsDisk>,
    arena: Arena,
    runtime: Runtime,
    scope: Arc<KeyScope>,
}

const LEN: usize = 64 << 10;

impl User {
    fn of(config: &FsConfig) -> Self {
        let runtime = runtime();
        let fs = open(config, &runtime).expect("the store");
        let arena = Arena::new(Memory::Private, 16 << 20).expect("memory");
        Self { fs, arena, runtime, scope: KeyScope::new("m", KvRank::single(), 0, "").expect("a scope") }
    }

    fn key(&self, id: u64) -> ObjectKey {
        trace::key(&self.scope, id)
    }

    fn put(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(LEN as u64).expect("a layout");
        let item = |id| self.arena.item(&self.key(id), &self.key(id), &layout).expect("an item");
        let items: Vec<PutItem> = ids.into_iter().map(item).collect();
        let (answers, sink) = collect(items.len());
        let request = Put { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.fs.adapter().store.put(request, sink));
        take(&answers)
    }

    fn get(&self, id: u64) -> Answer {
        let layout = Layout::opaque(LEN as u64).expect("a layout");
        let item = GetItem { key: self.key(id), layout, buf: self.arena.empty(LEN).expect("a buffer") };
        let answers = Arc::new(Mutex::new(vec![None]));
        let to = Arc::clone(&answers);
        let sink = GetSink::new(1, Arc::new(move |at: usize, answer| to.lock()[at] = Some(answer)));
        let request = Get { items: vec![item], deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.fs.adapter().store.get(request, sink));
        answers.lock().pop().flatten().expect("an answer")
    }
}

type Answers = Arc<Mutex<Vec<Option<Result<Stored>>>>>;

fn collect(n: usize) -> (Answers, PutSink) {
    let answers: Answers = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
    let to = Arc::clone(&answers);
    (answers, PutSink::new(n, Arc::new(move |at: usize, answer| to.lock()[at] = Some(answer))))
}

fn take(answers: &Answers) -> Vec<Result<Stored>> {
    answers.lock().iter_mut().map(|a| a.take().expect("an answer")).collect()
}

// --- cases that need no mounts ---------------------------------------------------------------------------------------

fn a_file_is_no_directory() {
    let dir = scratch();
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("a file");
    refused(&FsConfig::new(&file), ErrorKind::Invalid, &["base_path", "file"]);
    refused(&FsConfig::new(file.join("below")), ErrorKind::Invalid, &["base_path"]);
}

fn a_temporary_directory_is_inside() {
    let dir = scratch();
    for bad in ["/tmp", "../t", "a/../../t", "", "ab", "quarantine"] {
        let config = FsConfig { relative_tmp_dir: Some(bad.into()), ..FsConfig::new(dir.path().join("kv")) };
        refused(&config, ErrorKind::Invalid, &["relative_tmp_dir", bad]);
    }
    let config = FsConfig { relative_tmp_dir: Some("work/t".into()), ..FsConfig::new(dir.path().join("kv")) };
    let user = User::of(&config);
    assert!(user.put([1]).remove(0).is_ok());
    assert!(dir.path().join("kv/work/t").is_dir());
}

fn a_capacity_fits_the_file_system() {
    let dir = scratch();
    let config = FsConfig { max_capacity_gb: 1e9, ..FsConfig::new(dir.path().join("kv")) };
    refused(&config, ErrorKind::Invalid, &["capacity", "file system"]);
}

fn lmcaches_directory_is_not_ours() {
    let dir = scratch();
    fs::write(dir.path().join("org-SEP-m@0x01000100@0@abab.data"), "kv").expect("a file");
    refused(&FsConfig::new(dir.path()), ErrorKind::Mismatch, &["kvstrata import", "lmcache-fs"]);
    for fan in ["b'", "-5", "b\""] {
        let dir = scratch();
        fs::create_dir_all(dir.path().join(fan).join("12")).expect("a directory");
        refused(&FsConfig::new(dir.path()), ErrorKind::Mismatch, &["kvstrata import", "lmcache-gds", fan]);
    }
}

fn a_manifest_of_another_namespace() {
    let dir = scratch();
    let config = FsConfig::new(dir.path().join("kv"));
    let layout = Layout::opaque(4096).expect("a layout");
    let one = Namespace { model: "m".into(), world_size: 1, chunk_tokens: 256, hash_schema: 1, layout };
    drop(open_with(&config, vec![one.clone()], &runtime()).expect("a new store"));
    let manifest = fs::read(config.base_path.join("kvstrata.json")).expect("the manifest");
    for (field, other) in [
        ("world_size", Namespace { world_size: 2, ..one.clone() }),
        ("chunk_tokens", Namespace { chunk_tokens: 16, ..one.clone() }),
        ("hash_schema", Namespace { hash_schema: 2, ..one.clone() }),
        ("layout", Namespace { layout: Layout::opaque(8192).expect("a layout"), ..one.clone() }),
    ] {
        let e = open_with(&config, vec![other], &runtime()).expect_err("another namespace");
        assert_eq!(e.kind(), ErrorKind::Mismatch);
        assert!(e.to_string().contains(&format!("field: {field}")), "{e}");
        assert_eq!(fs::read(config.base_path.join("kvstrata.json")).expect("the manifest"), manifest);
    }
    // What is stored has to fit too.
    let sharded = Namespace { world_size: 2, ..one };
    let other = FsConfig::new(dir.path().join("sharded"));
    let runtime = runtime();
    drop(open_with(&other, vec![sharded], &runtime).expect("a new store"));
    let e = User::of(&other).put([1]).remove(0).expect_err("a key of another parallelism");
    assert!(e.kind() == ErrorKind::Mismatch && e.to_string().contains("world_size"), "{e}");
}

fn two_adapters_on_one_path() {
    let dir = scratch();
    let config = FsConfig::new(dir.path().join("kv"));
    let runtime = runtime();
    let first = open(&config, &runtime).expect("the store");
    refused(&config, ErrorKind::Busy, &["open in another adapter or process", "kv"]);
    runtime.block_on(first.adapter().store.shutdown(Instant::FAR_FUTURE)).expect("a shutdown");
    open(&config, &runtime).expect("it was closed");
}

fn one_of_several_equal_puts_writes() {
    let dir = scratch();
    let user = User::of(&FsConfig::new(dir.path().join("kv")));
    let layout = Layout::opaque(LEN as u64).expect("a layout");
    let store = user.fs.adapter().store;
    let puts: Vec<_> = (0..8)
        .map(|_| {
            let items = vec![user.arena.item(&user.key(1), &user.key(1), &layout).expect("an item")];
            let (answers, sink) = collect(1);
            let store = Arc::clone(&store);
            let request = Put { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
            (answers, user.runtime.spawn(async move { store.put(request, sink).await }))
        })
        .collect();
    let answers: Vec<_> = puts
        .into_iter()
        .map(|(answers, task)| {
            user.runtime.block_on(task).expect("a put");
            take(&answers).remove(0).expect("a put")
        })
        .collect();
    assert_eq!(answers.iter().filter(|a| **a == Stored::Written).count(), 1, "{answers:?}");
    let stats = user.fs.stats();
    assert_eq!((stats.written, stats.present), (1, 7));
}

// --- cases on mounts -------------------------------------------------------------------------------------------------

/// Changes how a directory is mounted.
fn remount(dir: &Path, how: &str) -> Result<(), String> {
    let out = std::process::Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(dir).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("cannot be mounted {how}: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("mount cannot be run: {e}")),
    }
}

fn a_read_only_file_system(at: &Path) -> Result<(), String> {
    let source = namespace::mount(at, "ro", "tmpfs", "size=4m")?;
    let existing = FsConfig::new(source.join("kv"));
    assert!(User::of(&existing).put([1]).remove(0).is_ok());
    remount(&source, "ro")?;
    refused(&existing, ErrorKind::Io, &["ead-only", "base_path"]);
    refused(&FsConfig::new(source.join("new")), ErrorKind::Io, &["ead-only", "base_path"]);
    Ok(())
}

fn a_full_file_system(at: &Path) -> Result<(), String> {
    let full = namespace::mount(at, "full", "tmpfs", "size=1m")?;
    let existing = FsConfig::new(full.join("kv"));
    let user = User::of(&existing);
    assert!(user.put([1]).remove(0).is_ok());
    fs::write(full.join("ballast"), vec![1; 2 << 20]).expect_err("a full file system");

    refused(&FsConfig::new(full.join("new")), ErrorKind::NoSpace, &["full", "base_path"]);
    // A store that is there goes on: a store is declined, a load is not.
    let e = user.put([2]).remove(0).expect_err("no room");
    assert_eq!((e.kind(), user.fs.stats().declined), (ErrorKind::NoSpace, 1));
    assert!(matches!(user.get(1), Answer::Loaded(_)));
    // A thread that has answered may have the store open for a moment yet; a shutdown waits for it.
    user.runtime.block_on(user.fs.adapter().store.shutdown(Instant::FAR_FUTURE)).expect("a shutdown");
    drop(user);
    let user = User::of(&existing);
    assert!(matches!(user.get(1), Answer::Loaded(_)), "it can be opened when full");
    fs::remove_file(full.join("ballast")).expect("a file");
    assert!(user.put([2]).remove(0).is_ok(), "room came back");
    Ok(())
}

fn a_limit_on_a_small_file_system(at: &Path) -> Result<(), String> {
    let small = namespace::mount(at, "small", "tmpfs", "size=2m")?;
    let config = FsConfig { max_capacity_gb: 1.5 / 1024.0, ..FsConfig::new(small.join("kv")) };
    let user = User::of(&config);
    for batch in 0..8 {
        let answers = user.put(batch * 8..batch * 8 + 8);
        assert!(answers.iter().all(Result::is_ok), "older objects give way: {answers:?}");
    }
    assert!(user.fs.store().usage().evicted > 30);
    assert!(matches!(user.get(63), Answer::Loaded(_)));
    refused(
        &FsConfig { max_capacity_gb: 1.0, ..FsConfig::new(small.join("other")) },
        ErrorKind::Invalid,
        &["capacity", "file_system: 2097152"],
    );
    Ok(())
}

fn a_temporary_directory_elsewhere(at: &Path) -> Result<(), String> {
    let here = namespace::mount(at, "here", "tmpfs", "size=4m")?;
    namespace::mount(&here, "kv/t", "tmpfs", "size=4m")?;
    let config = FsConfig { relative_tmp_dir: Some("t".into()), ..FsConfig::new(here.join("kv")) };
    refused(&config, ErrorKind::Invalid, &["relative_tmp_dir", "another file system"]);
    Ok(())
}

fn direct_transfers_that_are_required(at: &Path) -> Result<(), String> {
    let ramfs = namespace::mount(at, "required", "ramfs", "mode=0700")?;
    let config = FsConfig { use_odirect: Some(Switch(Wanted::Require)), ..FsConfig::new(ramfs.join("kv")) };
    refused(&config, ErrorKind::Unsupported, &["direct"]);
    Ok(())
}

/// A case that mounts what it needs; the error is why it cannot.
type OnMount = fn(&Path) -> Result<(), String>;

fn main() -> ExitCode {
    let mounts = namespace::enter();
    let plain: [(&str, fn()); 7] = [
        ("a_file_is_no_directory", a_file_is_no_directory),
        ("a_temporary_directory_is_inside", a_temporary_directory_is_inside),
        ("a_capacity_fits_the_file_system", a_capacity_fits_the_file_system),
        ("lmcaches_directory_is_not_ours", lmcaches_directory_is_not_ours),
        ("a_manifest_of_another_namespace", a_manifest_of_another_namespace),
        ("two_adapters_on_one_path", two_adapters_on_one_path),
        ("one_of_several_equal_puts_writes", one_of_several_equal_puts_writes),
    ];
    let mut trials: Vec<Trial> = plain
        .into_iter()
        .map(|(name, run)| {
            Trial::test(name, move || {
                run();
                Ok(())
            })
        })
        .collect();
    let mounted: [(&str, OnMount); 5] = [
        ("a_read_only_file_system", a_read_only_file_system),
        ("a_full_file_system", a_full_file_system),
        ("a_limit_on_a_small_file_system", a_limit_on_a_small_file_system),
        ("a_temporary_directory_elsewhere", a_temporary_directory_elsewhere),
        ("direct_transfers_that_are_required", direct_transfers_that_are_required),
    ];
    trials.extend(mounted.into_iter().map(|(name, run)| {
        let mounts = mounts.clone();
        Trial::ignorable_test(name, move || {
            Ok(match mounts.and_then(|at| run(&at)) {
                Ok(()) => Completion::Completed,
                Err(why) => Completion::ignored_with(why),
            })
        })
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
