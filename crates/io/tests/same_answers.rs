//! The simulated disk answers as the real one does, errors included.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use kvstrata_io::*;
use proptest::prelude::*;

/// A call. Paths and files are numbers: paths of [`PATHS`], files of four places for open ones.
#[derive(Clone, Debug)]
enum Call {
    Open { path: usize, file: usize, write: bool, create_new: bool },
    Close { file: usize },
    CreateDirAll { path: usize },
    Rename { from: usize, to: usize, new: bool },
    Unlink { path: usize },
    RemoveDir { path: usize },
    List { path: usize },
    Metadata { path: usize },
    SyncDir { path: usize },
    Read { file: usize, offset: u64, len: usize },
    Write { file: usize, offset: u64, len: usize, byte: u8 },
    SetLen { file: usize, len: u64 },
    Allocate { file: usize, len: u64 },
    SyncFile { file: usize },
    FileMetadata { file: usize },
    Lock { file: usize },
}

/// Some are each other's parents, so that files and directories get in each other's way.
const PATHS: [&str; 8] = ["a", "b", "a/a", "a/b", "a/a/a", "b/a", "b/a/b", "c/c/c"];

fn call() -> impl Strategy<Value = Call> {
    let path = || 0..PATHS.len();
    let file = || 0..4usize;
    let offset = || prop_oneof![0..10_000u64, 0..20u64];
    let len = || prop_oneof![0..9_000usize, 0..9usize];
    let open = |create_new| {
        (path(), file(), any::<bool>()).prop_map(move |(path, file, write)| Call::Open {
            path,
            file,
            write,
            create_new,
        })
    };
    prop_oneof![
        3 => open(true),
        2 => open(false),
        1 => file().prop_map(|file| Call::Close { file }),
        3 => path().prop_map(|path| Call::CreateDirAll { path }),
        4 => (path(), path(), any::<bool>()).prop_map(|(from, to, new)| Call::Rename { from, to, new }),
        2 => path().prop_map(|path| Call::Unlink { path }),
        2 => path().prop_map(|path| Call::RemoveDir { path }),
        2 => path().prop_map(|path| Call::List { path }),
        1 => path().prop_map(|path| Call::Metadata { path }),
        1 => path().prop_map(|path| Call::SyncDir { path }),
        3 => (file(), offset(), len()).prop_map(|(file, offset, len)| Call::Read { file, offset, len }),
        4 => (file(), offset(), len(), any::<u8>())
            .prop_map(|(file, offset, len, byte)| Call::Write { file, offset, len, byte }),
        2 => (file(), offset()).prop_map(|(file, len)| Call::SetLen { file, len }),
        1 => (file(), offset()).prop_map(|(file, len)| Call::Allocate { file, len }),
        1 => file().prop_map(|file| Call::SyncFile { file }),
        1 => file().prop_map(|file| Call::FileMetadata { file }),
        1 => file().prop_map(|file| Call::Lock { file }),
    ]
}

/// What a caller learns from a call. Times, and the sizes of directories, are each disk's own.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    Nothing,
    Names(Vec<DirEntry>),
    Meta(FileKind, Option<u64>),
    Bytes(Vec<u8>),
    Errno(i32),
    Error(ErrorKind),
}

fn answer<T>(result: std::io::Result<T>, good: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(it) => good(it),
        Err(e) => error(&e),
    }
}

fn error(e: &Error) -> Answer {
    e.raw_os_error().map_or(Answer::Error(e.kind()), Answer::Errno)
}

fn meta(m: Meta) -> Answer {
    Answer::Meta(m.kind, (m.kind == FileKind::File).then_some(m.len))
}

fn entries(mut entries: Vec<DirEntry>) -> Answer {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Answer::Names(entries)
}

struct Run<D: Disk> {
    disk: D,
    root: PathBuf,
    files: [Option<D::File>; 4],
}

impl<D: Disk> Run<D> {
    fn new(disk: D, root: &Path) -> Self {
        Self { disk, root: root.to_owned(), files: [const { None }; 4] }
    }

    fn call(&mut self, call: &Call) -> Answer {
        let done = |r| answer(r, |()| Answer::Nothing);
        let at = |path: usize| self.root.join(PATHS[path]);
        let disk = &self.disk;
        let with = |file: usize, f: &dyn Fn(&D::File) -> Answer| {
            self.files[file].as_ref().map_or(Answer::Nothing, f)
        };
        match *call {
            Call::Open { path, file, write, create_new } => {
                let how = Open { write, create_new, ..Open::default() };
                match disk.open(&at(path), how) {
                    Err(e) => error(&e),
                    Ok(opened) => {
                        self.files[file] = Some(opened);
                        Answer::Nothing
                    }
                }
            }
            Call::Close { file } => {
                self.files[file] = None;
                Answer::Nothing
            }
            Call::CreateDirAll { path } => done(disk.create_dir_all(&at(path))),
            Call::Rename { from, to, new: true } => done(disk.rename_new(&at(from), &at(to))),
            Call::Rename { from, to, new: false } => done(disk.rename(&at(from), &at(to))),
            Call::Unlink { path } => done(disk.unlink(&at(path))),
            Call::RemoveDir { path } => done(disk.remove_dir(&at(path))),
            Call::List { path } => answer(disk.list(&at(path)), entries),
            Call::Metadata { path } => answer(disk.metadata(&at(path)), meta),
            Call::SyncDir { path } => done(disk.sync_dir(&at(path))),
            Call::Read { file, offset, len } => with(file, &|f| {
                let mut bytes = vec![0; len];
                answer(disk.read_exact_at(f, offset, &mut bytes), |()| Answer::Bytes(bytes.clone()))
            }),
            Call::Write { file, offset, len, byte } => {
                with(file, &|f| done(disk.write_all_at(f, offset, &vec![byte; len])))
            }
            Call::SetLen { file, len } => with(file, &|f| done(disk.set_len(f, len))),
            Call::Allocate { file, len } => with(file, &|f| done(disk.allocate(f, len))),
            Call::SyncFile { file } => with(file, &|f| done(disk.sync_file(f))),
            Call::FileMetadata { file } => with(file, &|f| answer(disk.file_metadata(f), meta)),
            Call::Lock { file } => with(file, &|f| done(disk.try_lock(f))),
        }
    }

    /// Everything that can be found under a directory: path, kind and bytes.
    fn tree(&self, dir: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
        let mut entries = self.disk.list(dir).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let path = dir.join(&entry.name);
            let mut bytes = Vec::new();
            if entry.kind == FileKind::File {
                let file = self.disk.open(&path, Open::default()).unwrap();
                bytes.resize(self.disk.file_metadata(&file).unwrap().len as usize, 0);
                self.disk.read_exact_at(&file, 0, &mut bytes).unwrap();
            }
            out.push((path.strip_prefix(&self.root).unwrap().to_owned(), bytes));
            if entry.kind == FileKind::Dir {
                self.tree(&path, out);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn real_and_simulated_disk_agree(calls in prop::collection::vec(call(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let options = OsOptions { threads: 1, ..OsOptions::default() };
        let mut os = Run::new(OsDisk::new(options).unwrap(), dir.path());
        let mut sim = Run::new(SimDisk::default(), Path::new("/"));
        for (i, call) in calls.iter().enumerate() {
            prop_assert_eq!(os.call(call), sim.call(call), "call {}: {:?}", i, call);
        }
        let (mut real, mut simulated) = (Vec::new(), Vec::new());
        os.tree(dir.path(), &mut real);
        sim.tree(Path::new("/"), &mut simulated);
        prop_assert_eq!(real, simulated);
        // Process death loses nothing, and so does a crash after which everything was kept.
        let mut kept = Vec::new();
        Run::new(sim.disk.crash(Crash::Keep), Path::new("/")).tree(Path::new("/"), &mut kept);
        let mut now = Vec::new();
        sim.tree(Path::new("/"), &mut now);
        prop_assert_eq!(kept, now);
    }
}
