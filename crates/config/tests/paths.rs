//! Several paths under LMCache's names: `local_disk` and `gds_path` take the same lists and the same rule.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvstrata_config::{BuildContext, Components, Machine, Registry, Resolved, Sources};
use kvstrata_core::{Affinity, ChunkHash, Instant, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::{
    Adapter, Answer, Get, GetItem, GetSink, Keys, Probe, Put, PutDigest, PutItem, PutSink, Stored,
};
use kvstrata_mem::Allocate;

const LEN: usize = 8192;

/// The two names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    LocalDisk,
    GdsPath,
}

impl Name {
    const BOTH: [Self; 2] = [Self::LocalDisk, Self::GdsPath];

    /// What a user types, with this list and strategy.
    fn flags(self, list: &str, sharding: Option<&str>) -> Vec<(String, Option<String>)> {
        let owned = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        match self {
            Self::LocalDisk => {
                let mut flags = vec![owned("local_disk", list), owned("max_local_disk_size", "0.1")];
                flags.extend(sharding.map(|how| owned("local_disk_path_sharding", how)));
                flags
            }
            Self::GdsPath => {
                let how = sharding.map_or(String::new(), |how| format!(r#","gds_path_sharding":{how:?}"#));
                // Host memory, so that it opens where there is no GPU.
                let more = r#""gds_buffer_size":16,"max_capacity_gb":0.1,"allow_host":true"#;
                vec![owned("l2_adapter", &format!(r#"{{"type":"gds","gds_path":{list:?},{more}{how}}}"#))]
            }
        }
    }

    fn resolve(self, list: &str, sharding: Option<&str>) -> Result<Resolved, String> {
        let mut flags = self.flags(list, sharding);
        flags.push(("max_local_cpu_size".to_owned(), Some("0.01".to_owned())));
        let sources = Sources { flags, ..Sources::default() };
        Resolved::load(&sources, &Machine::here(), &Registry::builtin()).map_err(|e| e.to_string())
    }

    fn open(self, list: &str, sharding: Option<&str>) -> Opened {
        let cx = BuildContext::tokio(tokio::runtime::Handle::current());
        let resolved = self.resolve(list, sharding).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        let components = resolved.build(&cx).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        let (_, _, adapter) = components.adapters[0].clone();
        Opened { adapter, cx, components }
    }
}

struct Opened {
    adapter: Adapter,
    cx: BuildContext,
    components: Components,
}

fn key(n: u64) -> ObjectKey {
    let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
    ObjectKey::new(&scope, ChunkHash::new(&n.to_le_bytes()).unwrap())
}

fn gpu(ordinal: Option<u32>) -> Affinity {
    Affinity { ordinal, uuid: None }
}

impl Opened {
    fn deadline(&self) -> Instant {
        self.cx.l2.timer.now() + Duration::from_secs(20)
    }

    async fn put(&self, n: u64, affinity: Affinity) -> Stored {
        let mut buf = self.components.cache.reserve(LEN, 4096).unwrap();
        buf.write_at(0, &[n as u8; LEN]).unwrap();
        let layout = Layout::opaque(LEN as u64).unwrap();
        let items = vec![PutItem { key: key(n), layout, digest: PutDigest::None, buf: buf.seal(LEN) }];
        let told = Arc::new(Mutex::new(None));
        let to = Arc::clone(&told);
        let sink = PutSink::new(1, Arc::new(move |_: usize, answer| *to.lock().unwrap() = Some(answer)));
        self.adapter.store.put(Put { items, deadline: self.deadline(), affinity }, sink).await;
        let answer = told.lock().unwrap().take().unwrap();
        answer.unwrap()
    }

    async fn is_right(&self, n: u64, affinity: Affinity) -> bool {
        let probe = Probe { keys: Keys::from([key(n)]), deadline: self.deadline(), affinity };
        let found = self.adapter.store.probe(probe).await.remove(0).unwrap().is_some();
        let layout = Layout::opaque(LEN as u64).unwrap();
        let buf = self.components.cache.reserve(LEN, 4096).unwrap();
        let items = vec![GetItem { key: key(n), layout, buf }];
        let told = Arc::new(Mutex::new(None));
        let to = Arc::clone(&told);
        let sink = GetSink::new(1, Arc::new(move |_: usize, answer| *to.lock().unwrap() = Some(answer)));
        self.adapter.store.get(Get { items, deadline: self.deadline(), affinity }, sink).await;
        let answer = told.lock().unwrap().take();
        let Some(Answer::Loaded(loaded)) = answer else { return false };
        found && loaded.buf.seal(LEN).as_slice().unwrap() == [n as u8; LEN]
    }

    /// Objects on each path.
    fn objects(&self) -> Vec<u64> {
        let parts = self.adapter.usage.as_ref().unwrap().parts();
        parts.iter().map(|part| part.usage.objects).collect()
    }

    async fn close(self) {
        self.adapter.store.shutdown(self.deadline()).await.unwrap();
    }
}

fn list(dir: &Path, n: usize) -> (String, Vec<PathBuf>) {
    let paths: Vec<PathBuf> = (0..n).map(|i| dir.join(format!("p{i}"))).collect();
    let text: Vec<String> = paths.iter().map(|path| format!(" {} ", path.display())).collect();
    (text.join(",") + ",", paths)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_writes_to_its_path_and_finds_what_is_on_any() {
    for name in Name::BOTH {
        for n in 2..=4 {
            let dir = tempfile::tempdir().unwrap();
            let (text, paths) = list(dir.path(), n);
            let opened = name.open(&text, Some("by_gpu"));
            assert!(paths.iter().all(|path| path.is_dir()), "{name:?}: all are made at the start");
            let mut expected = vec![0; n];
            for id in 0..8 {
                assert_eq!(opened.put(id, gpu(Some(id as u32))).await, Stored::Written);
                expected[id as usize % n] += 1;
                assert_eq!(opened.objects(), expected, "{name:?}: GPU {id} over {n} paths");
            }
            // Without a GPU: LMCache's 0.
            opened.put(8, gpu(None)).await;
            expected[0] += 1;
            assert_eq!(opened.objects(), expected, "{name:?}");
            for id in 0..9 {
                assert!(opened.is_right(id, gpu(Some(id as u32 + 1))).await, "{name:?}: found on any path");
            }
            opened.close().await;
            // The next start finds what is on all of them, by whatever rule.
            let opened = name.open(&text, Some("by_key"));
            assert_eq!(opened.objects(), expected, "{name:?}");
            assert!(opened.is_right(5, gpu(Some(0))).await);
            opened.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unless_it_is_said_gds_goes_by_gpu_and_local_disk_by_key() {
    for name in Name::BOTH {
        let dir = tempfile::tempdir().unwrap();
        let opened = name.open(&list(dir.path(), 2).0, None);
        for id in 0..64 {
            opened.put(id, gpu(Some(1))).await;
        }
        match name {
            Name::GdsPath => assert_eq!(opened.objects(), [0, 64]),
            Name::LocalDisk => assert!(opened.objects().iter().all(|n| *n > 15), "{:?}", opened.objects()),
        }
        let parts = opened.adapter.usage.as_ref().unwrap().parts();
        assert!(parts.iter().all(|part| part.in_service && part.state == "live" && part.why.is_none()));
        opened.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_path_is_a_store_of_its_own_and_lists_are_checked() {
    for name in Name::BOTH {
        let dir = tempfile::tempdir().unwrap();
        let (text, paths) = list(dir.path(), 1);
        let opened = name.open(&text, Some("by_gpu"));
        opened.put(3, gpu(Some(3))).await;
        assert_eq!(opened.objects(), [0; 0], "it is not one of several");
        opened.close().await;
        assert!(paths[0].join("kvstrata.json").is_file(), "{name:?}: the store lies in the path itself");
        let two = list(dir.path(), 2).0;
        let e = name.resolve(&two, Some("by_moon")).err().unwrap();
        assert!(e.contains("by_gpu") && e.contains("by_key"), "{name:?}: {e}");
        let twice = format!("{0},{0}", paths[0].display());
        let e = name.resolve(&twice, None).err().unwrap();
        assert!(e.contains("twice") || e.contains("one directory"), "{name:?}: {e}");
    }
    assert!(Name::GdsPath.resolve(" , ", None).is_err());
}
