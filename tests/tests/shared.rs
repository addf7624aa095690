//! Two processes on one directory: each finds what the other stores, neither is harmed by what the other evicts, and one may
//! be killed at any moment.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvstrata_core::ErrorKind;
use kvstrata_disk::{FsckOptions, Writer, fsck};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::Stored;
use kvstrata_l2_fs::{LayoutChoice, Sync};
use kvstrata_tests::shelf::{BATCH, Got, How, LONGEST, Shelf, du, layout, names, scope};
use libtest_mimic::{Arguments, Failed, Trial};

type Done = Result<(), Failed>;

/// A process ends by itself after that, whatever becomes of its parent.
const LIFE: Duration = Duration::from_secs(60);
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

fn how(dir: &Path, writer: u64, capacity: u64) -> How {
    How {
        dir: dir.into(),
        paths: 1,
        layout: LayoutChoice::Files,
        capacity,
        sync: Sync::None,
        writer,
        shared: true,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime")
}

fn letters(got: &[Got]) -> String {
    let letter = |got: &Got| match got {
        Got::Right => "right".to_owned(),
        Got::Miss(_) => "miss".to_owned(),
        Got::Wrong(how) => format!("wrong:{}", how.replace(' ', "_")),
        Got::Failed(e) => format!("failed:{}", e.to_string().replace(' ', "_")),
    };
    got.iter().map(letter).collect::<Vec<_>>().join(" ")
}

fn stored(answers: &[kvstrata_core::Result<Stored>]) -> String {
    let word = |answer: &kvstrata_core::Result<Stored>| match answer {
        Ok(Stored::Written) => "written".to_owned(),
        Ok(_) => "present".to_owned(),
        Err(e) => format!("failed:{}", e.to_string().replace(' ', "_")),
    };
    answers.iter().map(word).collect::<Vec<_>>().join(" ")
}

// --- the other process -------------------------------------------------------------------------------------------

/// Does what it is told, line by line; `flood FIRST` stores key after key until the process is killed.
fn other(args: &[String]) -> ExitCode {
    let [dir, writer, capacity] = args else { return ExitCode::FAILURE };
    let how = how(Path::new(dir), writer.parse().expect("a number"), capacity.parse().expect("a number"));
    // Nobody is left behind if the parent is killed.
    std::thread::spawn(|| {
        std::thread::sleep(LIFE);
        std::process::exit(1);
    });
    runtime().block_on(async {
        let shelf = match Shelf::open(&how) {
            Ok(shelf) => shelf,
            Err(e) => {
                println!("refused {e}");
                return ExitCode::FAILURE;
            }
        };
        println!("open");
        let scope = scope();
        for line in std::io::stdin().lines() {
            let line = line.expect("a line");
            let mut words = line.split(' ');
            let command = words.next().expect("a command");
            let ids: Vec<u64> = words.map(|id| id.parse().expect("a number")).collect();
            match command {
                "put" => println!("{}", stored(&shelf.put(&scope, &ids).await)),
                "get" => println!("{}", letters(&shelf.get(&scope, &ids).await)),
                "flood" => {
                    for first in (ids[0]..).step_by(4) {
                        let batch: Vec<u64> = (first..first + 4).collect();
                        let answers = shelf.put(&scope, &batch).await;
                        if answers.iter().any(Result::is_err) {
                            println!("{}", stored(&answers));
                        }
                        println!("stored {first}");
                    }
                }
                _ => break,
            }
        }
        shelf.close().await.expect("an end");
        ExitCode::SUCCESS
    })
}

struct Other {
    child: Child,
    stdin: Option<ChildStdin>,
    says: Receiver<String>,
}

impl Other {
    fn start(dir: &Path, writer: u64, capacity: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["other", dir.to_str().expect("a path"), &writer.to_string(), &capacity.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let (tell, says) = channel();
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, says }
    }

    fn open(dir: &Path, writer: u64, capacity: u64) -> Self {
        let other = Self::start(dir, writer, capacity);
        assert_eq!(other.line(), "open");
        other
    }

    fn line(&self) -> String {
        self.says.recv_timeout(PATIENCE).expect("the other process answers")
    }

    fn tell(&mut self, command: &str, ids: impl IntoIterator<Item = u64>) {
        let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
        let line = format!("{command} {}\n", ids.join(" "));
        self.stdin.as_mut().expect("a pipe").write_all(line.as_bytes()).expect("the other process listens");
    }

    fn ask(&mut self, command: &str, ids: impl IntoIterator<Item = u64>) -> String {
        self.tell(command, ids);
        self.line()
    }

    /// Closes its store.
    fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().expect("a child").success());
    }

    fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        self.says.try_iter().collect()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Nothing is wrong with what is left when all have ended.
fn assert_clean(dir: &Path) {
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("a thread");
    let writer = Writer { pid: 1, id: 1 };
    let options = FsckOptions { payloads: true, repair: false, tmp: None, writer };
    let report = fsck(&disk, dir, &options, |_, _| {}).expect("a store");
    assert!(report.is_clean(), "{report:?}");
}

fn live_files(dir: &Path) -> Vec<String> {
    names(&dir.join("tmp")).into_iter().filter(|name| name.ends_with(".kvlive")).collect()
}

// --- what holds --------------------------------------------------------------------------------------------------

fn each_finds_what_the_other_stores() -> Done {
    let dir = directory();
    let dir = dir.path().join("kv");
    let mut other = Other::open(&dir, 1 << 32, 0);
    runtime().block_on(async {
        let shelf = Shelf::open(&how(&dir, 2 << 32, 0)).expect("a shared store");
        assert_eq!(live_files(&dir).len(), 2, "one for each writer");
        let scope = scope();
        assert_eq!(letters(&shelf.get(&scope, &[1]).await), "miss");
        assert_eq!(other.ask("put", 1..4), "written written written");
        assert_eq!(letters(&shelf.get(&scope, &[1, 2, 3, 4]).await), "right right right miss");
        assert_eq!(shelf.sum(|stats| stats.loaded_elsewhere), 3);
        // It is there: written once.
        assert_eq!(stored(&shelf.put(&scope, &[3, 4]).await), "present written");
        assert_eq!(other.ask("get", [3, 4]), "right right");
        assert_eq!(other.ask("put", [4, 5]), "present written");
        // Removed by one, and gone for the other, who knew it; and stored again.
        let remove = shelf.checked.adapter.remove.as_ref().expect("files can be removed");
        let keys = [kvstrata_tests::shelf::key(&scope, 5), kvstrata_tests::shelf::key(&scope, 9)];
        let removed = remove.remove(keys.into(), shelf.deadline()).await;
        assert!(matches!(removed[..], [Ok(true), Ok(false)]), "{removed:?}");
        assert_eq!(other.ask("get", [5]), "miss");
        assert_eq!(other.ask("put", [5]), "written");
        assert_eq!(letters(&shelf.get(&scope, &[5]).await), "right");
        other.end();
        assert_eq!(live_files(&dir).len(), 1, "the other said that it ended");
        shelf.close().await.expect("an end");
    });
    assert_clean(&dir);
    Ok(())
}

fn one_is_killed_and_the_other_goes_on() -> Done {
    let dir = directory();
    let dir = dir.path().join("kv");
    runtime().block_on(async {
        let scope = scope();
        let shelf = Shelf::open(&how(&dir, 1, 0)).expect("a shared store");
        let (mut mine, mut theirs) = (0..0, BTreeSet::new());
        for round in 0..4 {
            let first = 10_000 * (round + 1);
            let mut other = Other::open(&dir, (round + 2) << 32, 0);
            other.tell("flood", [first]);
            for _ in 0..8 {
                let line = other.line();
                let id = line.strip_prefix("stored ").unwrap_or_else(|| panic!("{line}"));
                let id: u64 = id.parse().expect("a number");
                theirs.extend(id..id + 4);
                let batch: Vec<u64> = (mine.end..mine.end + 4).collect();
                mine.end += 4;
                assert_eq!(stored(&shelf.put(&scope, &batch).await), "written written written written");
                assert_eq!(letters(&shelf.get(&scope, &[id, id + 3]).await), "right right", "after {line}");
            }
            // Who opens meanwhile removes what dead writers left, and nothing of those that live.
            let third = Shelf::open(&how(&dir, (round + 50) << 32, 0)).expect("a shared store");
            third.close().await.expect("an end");
            for line in other.kill() {
                let id = line.strip_prefix("stored ").unwrap_or_else(|| panic!("{line}"));
                let id: u64 = id.parse().expect("a number");
                theirs.extend(id..id + 4);
            }
        }
        let fresh = Shelf::open(&how(&dir, 99 << 32, 0)).expect("a shared store");
        assert_eq!(names(&dir.join("tmp")).len(), 2, "two live and nothing is unfinished");
        for shelf in [&shelf, &fresh] {
            let all: Vec<u64> = mine.clone().chain(theirs.iter().copied()).collect();
            for batch in all.chunks(BATCH) {
                let got = shelf.get(&scope, batch).await;
                assert!(got.iter().all(|got| matches!(got, Got::Right)), "{batch:?}: {}", letters(&got));
            }
        }
        fresh.close().await.expect("an end");
        shelf.close().await.expect("an end");
    });
    assert_clean(&dir);
    Ok(())
}

fn each_evicts_under_the_others_loads() -> Done {
    const LIMIT: u64 = 2 * MIB;
    let dir = directory();
    let dir = dir.path().join("kv");
    runtime().block_on(async {
        let scope = scope();
        let shelf = Shelf::open(&how(&dir, 1, LIMIT)).expect("a shared store");
        let first: Vec<u64> = (0..BATCH as u64).collect();
        shelf.put(&scope, &first).await;
        let mut other = Other::open(&dir, 2 << 32, LIMIT);
        other.tell("flood", [1000]);
        // What it found of this one's goes as it fills its own limit.
        let (mut right, mut missed, mut theirs) = (0, 0, 0);
        for round in 0..40 {
            let line = other.line();
            let at: u64 =
                line.strip_prefix("stored ").unwrap_or_else(|| panic!("{line}")).parse().expect("a number");
            let batch = [at, at + 1, at.saturating_sub(40), 2000 + 4 * round];
            for (id, got) in batch
                .iter()
                .zip(shelf.get(&scope, &batch).await)
                .chain(first.iter().zip(shelf.get(&scope, &first).await))
            {
                match got {
                    Got::Right if *id >= 1000 => theirs += 1,
                    Got::Right => right += 1,
                    Got::Miss(_) => missed += 1,
                    Got::Wrong(_) | Got::Failed(_) => panic!("key {id}: {}", letters(&[got])),
                }
            }
            let mine: Vec<u64> = (5_000_000 + 4 * round..).take(4).collect();
            let answers = shelf.put(&scope, &mine).await;
            assert!(answers.iter().all(Result::is_ok), "{}", stored(&answers));
        }
        assert!(right > 0 && missed > 0 && theirs > 0, "{right} {missed} {theirs}");
        let counted = shelf.taken();
        assert!(counted <= LIMIT, "{counted}");
        other.kill();
        let taken = du(&dir).expect("a directory");
        // A file that was being written when its writer was killed was set aside by that one.
        assert!(taken <= 2 * LIMIT, "together they take {taken}");
        // What is not there any more is stored again, not taken for present.
        for batch in first.chunks(4) {
            shelf.put(&scope, batch).await;
            assert_eq!(letters(&shelf.get(&scope, batch).await), "right right right right");
        }
        shelf.close().await.expect("an end");
        assert!(layout(0).bytes() <= LONGEST);
    });
    Ok(())
}

fn who_does_not_share_is_refused() -> Done {
    let dir = directory();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    runtime().block_on(async {
        let alone = |path: &Path| How { shared: false, ..how(path, 7, 64 * MIB) };
        let refused = |how: &How, words: &[&str]| {
            let e = Shelf::open(how).expect_err("refused");
            let text = e.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            e.kind()
        };
        let shelf = Shelf::open(&alone(&path("a"))).expect("a store");
        let other = Other::start(&path("a"), 1, 0);
        let line = other.line();
        assert!(line.starts_with("refused ") && line.contains("shared: true"), "{line}");
        drop(other);
        shelf.close().await.expect("an end");
        let mut other = Other::open(&path("a"), 1, 0);
        assert_eq!(refused(&alone(&path("a")), &["shared: true", "base_path"]), ErrorKind::Busy);
        // With the same number they would write under the same names.
        assert_eq!(other.ask("put", [1]), "written");
        other.end();
        let again = Shelf::open(&alone(&path("a"))).expect("nobody has it any more");
        assert_eq!(letters(&again.get(&scope(), &[1]).await), "right");
        again.close().await.expect("an end");

        let slab = How { layout: LayoutChoice::Slab, ..alone(&path("s")) };
        Shelf::open(&slab).expect("a store").close().await.expect("an end");
        let shared = How { shared: true, ..slab.clone() };
        assert_eq!(refused(&shared, &["shared", "files"]), ErrorKind::Invalid);
        let found = How { layout: LayoutChoice::Auto, ..shared };
        assert_eq!(refused(&found, &["shared", "files", "slab"]), ErrorKind::Invalid);
        let held = Shelf::open(&slab).expect("a store");
        assert_eq!(refused(&slab, &["one writer"]), ErrorKind::Busy);
        held.close().await.expect("an end");
    });
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "other") {
        return other(&args[1..]);
    }
    let trials = vec![
        Trial::test("each_finds_what_the_other_stores", each_finds_what_the_other_stores),
        Trial::test("one_is_killed_and_the_other_goes_on", one_is_killed_and_the_other_goes_on),
        Trial::test("each_evicts_under_the_others_loads", each_evicts_under_the_others_loads),
        Trial::test("who_does_not_share_is_refused", who_does_not_share_is_refused),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
