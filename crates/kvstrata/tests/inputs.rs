//! What the command refuses: the field or the name is in the message, and nothing is changed. Read-only and full file
//! systems are mounts in a namespace of the command's own, because permission bits mean nothing to root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use kvstrata_testkit::trace::{self, Synthetic};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A directory with a short trace, and what lies in it beside that.
struct Place {
    dir: tempfile::TempDir,
    trace: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let trace = dir.path().join("trace.jsonl");
        let settings = Synthetic { requests: 3, ..Synthetic::default() };
        let requests = settings.generate().expect("a trace");
        trace::write(fs::File::create(&trace).expect("a file"), requests).expect("the trace");
        Self { dir, trace }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.dir.path().join(name), text).expect("a file");
        self.at(name)
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .expect("a directory")
            .map(|e| e.expect("an entry").path())
            .collect();
        names.sort();
        names
    }

    fn replay(&self, args: &[&str]) -> Vec<String> {
        let base = ["replay", "--block-bytes", "4KiB", "--trace", self.trace.to_str().expect("UTF-8")];
        base.iter().chain(args).map(|s| (*s).to_owned()).collect()
    }

    /// The command ends with `code`, the words are in what it says, and no file came or went.
    fn refused(&self, code: i32, args: &[String], words: &[&str]) {
        let before = self.names();
        let out = command(args).output().expect("the command starts");
        judge(&out, code, args, words);
        assert_eq!(self.names(), before, "nothing is changed: {args:?}");
    }
}

fn command(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstrata"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVSTRATA_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}

fn judge(out: &Output, code: i32, args: &[String], words: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in what {args:?} says: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn sizes() {
    let place = Place::new();
    let fs =
        |gb: &str| format!(r#"{{"type": "fs", "base_path": "{}", "max_capacity_gb": {gb}}}"#, place.at("kv"));
    for (flag, value, words) in [
        ("--l1-size-gb", "0", &["l1.size", "--l1-size-gb", "at least one unit"][..]),
        ("--l1-size-gb", "-1", &["--l1-size-gb", "negative"]),
        ("--l1-size-gb", "1000000", &["l1.size", "more than this machine's memory"]),
        ("--l1-size-gb", "much", &["--l1-size-gb"]),
        ("--l1-staging-size-gb", "0", &["l1.staging_size", "at least one unit"]),
        ("--l1-align", "3", &["l1.align", "power of two"]),
        ("--chunk-size", "0", &["chunk_size", "at least one token"]),
        ("--l2-adapter", &fs("-1"), &["max_capacity_gb"]),
        ("--l2-adapter", &fs("1e-9"), &["max_capacity_gb", "65536"]),
        ("--l2-adapter", &fs("1e8"), &["capacity", "file system"]),
        (
            "--l2-adapter",
            r#"{"type": "mock", "max_size_gb": 0, "mock_bandwidth_gb": 1}"#,
            &["max_size_gb", "above 0"],
        ),
    ] {
        let small = if flag == "--l1-size-gb" { &[][..] } else { &["--l1-size-gb", "0.01"] };
        place.refused(2, &place.replay(&[small, &[flag, value]].concat()), words);
    }
    for bytes in ["0", "-4096", "20TiB", "some"] {
        let mut args = place.replay(&["--l1-size-gb", "0.01"]);
        args[2] = bytes.into();
        place.refused(2, &args, &["--block-bytes"]);
        let mock = r#"{"type": "mock", "max_size_gb": 1, "mock_bandwidth_gb": 1}"#;
        let bench = ["bench", "l2", "--l2-adapter", mock, "--keys", "2", "--batch", "2", "--size", bytes];
        place.refused(2, &bench.map(str::to_owned), &["--size"]);
    }
}

fn paths() {
    let place = Place::new();
    let file = place.file("file", "");
    for path in [file.clone(), format!("{file}/below")] {
        let adapter = format!(r#"{{"type": "fs", "base_path": "{path}"}}"#);
        let args = ["--l1-size-gb", "0.01", "--l2-adapter", &adapter];
        place.refused(2, &place.replay(&args), &["is a file", &file, "l2.adapters"]);
        place.refused(
            2,
            &[&["doctor"][..], &args].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
            &[&file],
        );
    }
    let kv = place.at("kv");
    let same = place.at("./x/../kv/");
    let adapter = |path: &str| format!(r#"{{"type": "fs", "base_path": "{path}"}}"#);
    let args = ["--l1-size-gb", "0.01", "--l2-adapter", &adapter(&kv), "--l2-adapter", &adapter(&same)];
    place.refused(2, &place.replay(&args), &["two adapters have one path", &kv, "fs, fs-2"]);
}

fn malformed_text() {
    let place = Place::new();
    let json = |text: &str| place.replay(&["--l1-size-gb", "0.01", "--l2-adapter", text]);
    place.refused(2, &json(r#"{"type": "fs","#), &["--l2-adapter", "line 1 column 14"]);
    place.refused(2, &json(r#"["fs"]"#), &["--l2-adapter", "an adapter is an object"]);
    for (name, text, words) in [
        ("a.toml", "[l1]\nsize = \"1GiB\n", &["a.toml", "2"][..]),
        ("b.toml", "[l1]\nsize = \"1GiB\"\nprefault = 7\n", &["b.toml:3", "l1.prefault", "true or false"]),
        ("c.yaml", "l1:\n  size: [\n", &["c.yaml"]),
        ("d.toml", "[l1]\nsise = \"1GiB\"\n", &["d.toml:2", "sise", "size"]),
    ] {
        let file = place.file(name, text);
        place.refused(2, &place.replay(&["--config", &file]), words);
        place.refused(2, &["config", "show", "--config", &file].map(str::to_owned), words);
    }
    place.refused(1, &place.replay(&["--config", &place.at("missing.toml")]), &["missing.toml"]);
}

fn unknown_names() {
    let place = Place::new();
    let kv = place.at("kv");
    for (flag, value, words) in [
        ("--eviction-policy", "LRUU", &["eviction.policy", "LRUU", "did you mean LRU?"][..]),
        ("--l2-store-policy", "skipl2", &["store.policy", "skipl2", "skip_l1"]),
        ("--l2-prefetch-policy", "retane", &["prefetch.policy", "retane", "the nearest is retain"]),
        ("--l2-adapter", r#"{"type": "fss"}"#, &["fss", "the nearest is fs", "--l2-adapter"]),
        ("--l2-adapter", r#"{"type": "raw_block"}"#, &["raw_block", "not built in this version"]),
        (
            "--l2-adapter",
            &format!(r#"{{"type": "fs", "base_pth": "{kv}"}}"#),
            &["base_pth", "the nearest is base_path"],
        ),
        ("--l2-adapter", r#"{"type": "fs"}"#, &["base_path"]),
    ] {
        // A type of LMCache's that is not built here is no mistake of the caller's.
        let code = if value.contains("raw_block") { 1 } else { 2 };
        place.refused(code, &place.replay(&["--l1-size-gb", "0.01", flag, value]), words);
    }
    place.refused(2, &place.replay(&["--l1-sise-gb", "1"]), &["--l1-sise-gb", "--l1-size-gb"]);
    place.refused(2, &["replya".to_owned()], &["replya", "replay"]);
    let out =
        command(&place.replay(&[])).env("KVSTRATA_L1_SISE", "1GiB").output().expect("the command starts");
    judge(&out, 2, &["KVSTRATA_L1_SISE".to_owned()], &["KVSTRATA_L1_SISE"]);
}

fn trace_lines() {
    let place = Place::new();
    let good = r#"{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}"#;
    for (bad, words) in [
        ("{\"timestamp\": 0,", &["line: 3"][..]),
        (r#"{"timestamp": 0, "input_length": 512, "output_length": 1}"#, &["line: 3", "hash_ids"]),
        (
            r#"{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [-1]}"#,
            &["line: 3", "hash_ids"],
        ),
    ] {
        let file = place.file("bad.jsonl", &format!("{good}\n{good}\n{bad}\n"));
        let kv = format!(r#"{{"type": "fs", "base_path": "{}"}}"#, place.at("kv"));
        let args = ["replay", "--trace", &file, "--l1-size-gb", "0.01", "--l2-adapter", &kv];
        place.refused(2, &args.map(str::to_owned), words);
    }
    let args = ["replay", "--trace", &place.at("missing.jsonl")].map(str::to_owned);
    place.refused(1, &args, &["missing.jsonl"]);
    let late = place.replay(&["--l1-size-gb", "0.01", "--restart-at", "99"]);
    place.refused(2, &late, &["--restart-at", "3"]);
}

/// Runs the command in a mount namespace of its own with a file system at `at`; `Err` says why there is none.
fn mounted(at: &Path, kind: &str, options: &str, then: &str, args: &[String]) -> Result<Output, String> {
    fs::create_dir_all(at).map_err(|e| e.to_string())?;
    let script = format!("mount -t {kind} -o {options} none \"$0\" || exit 99; {then} exec \"$@\"");
    let inner = command(args);
    let mut outer = Command::new("unshare");
    outer.args(["-m", "sh", "-c", &script]).arg(at).arg(inner.get_program()).args(inner.get_args());
    let out = outer.output().map_err(|e| format!("unshare: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.code() == Some(99) || said.starts_with("unshare:") {
        return Err(format!("no mount namespace here: {}", said.trim()));
    }
    Ok(out)
}

fn on_fs(place: &Place, at: &Path) -> [Vec<String>; 2] {
    let adapter = format!(r#"{{"type": "fs", "base_path": "{}"}}"#, at.join("kv").display());
    let bench = ["bench", "l2", "--keys", "2", "--size", "4KiB", "--batch", "2", "--l2-adapter", &adapter];
    [place.replay(&["--l1-size-gb", "0.01", "--l2-adapter", &adapter]), bench.map(str::to_owned).to_vec()]
}

fn a_read_only_path() -> Result<(), String> {
    let place = Place::new();
    let at = place.dir.path().join("ro");
    let path = at.join("kv");
    for args in on_fs(&place, &at) {
        // tmpfs counts read-only mounts as full; the message of the first call that fails is what counts.
        let out = mounted(&at, "tmpfs", "ro,size=16m", "", &args)?;
        judge(&out, 1, &args, &["Read-only file system", path.to_str().expect("UTF-8")]);
    }
    Ok(())
}

fn a_full_path() -> Result<(), String> {
    let place = Place::new();
    let at = place.dir.path().join("full");
    let path = at.join("kv");
    let fill = "head -c 2000000 /dev/zero > \"$0/ballast\" 2>/dev/null;";
    let [replay, bench] = on_fs(&place, &at);
    let out = mounted(&at, "tmpfs", "size=1m", fill, &replay)?;
    judge(&out, 1, &replay, &["the file system is full", path.to_str().expect("UTF-8")]);
    let out = mounted(&at, "tmpfs", "size=1m", fill, &bench)?;
    judge(&out, 2, &bench, &["no room", "--keys", path.to_str().expect("UTF-8")]);
    Ok(())
}

fn doctor_on_file_systems_that_refuse() -> Result<(), String> {
    let place = Place::new();
    let at = place.dir.path().join("doctor");
    let adapter =
        format!(r#"{{"type": "fs", "base_path": "{}", "use_odirect": true}}"#, at.join("kv").display());
    let args = ["doctor", "--l1-size-gb", "0.01", "--l2-adapter", &adapter].map(str::to_owned);
    let states = |out: &Output, word: &str| {
        let table = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = table.lines().find(|l| l.starts_with(word)).unwrap_or_else(|| panic!("{word} in {table}"));
        line.to_owned()
    };
    let out = mounted(&at, "ramfs", "mode=0700", "", &args)?;
    judge(&out, 0, &args, &[]);
    for what in ["fs: O_DIRECT reads", "fs: O_DIRECT writes"] {
        let line = states(&out, what);
        assert!(line.contains("fallback") && line.contains("Invalid argument"), "{line}");
    }
    let out = mounted(&at, "tmpfs", "ro", "", &args)?;
    judge(&out, 1, &args, &[]);
    let line = states(&out, "fs: path");
    assert!(line.contains("problem") && line.contains("Read-only"), "{line}");
    Ok(())
}

/// A case that mounts what it needs; the error is why it cannot.
type OnMount = fn() -> Result<(), String>;

fn main() -> ExitCode {
    let plain: [(&str, fn()); 5] = [
        ("sizes", sizes),
        ("paths", paths),
        ("malformed_text", malformed_text),
        ("unknown_names", unknown_names),
        ("trace_lines", trace_lines),
    ];
    let mounts: [(&str, OnMount); 3] = [
        ("a_read_only_path", a_read_only_path),
        ("a_full_path", a_full_path),
        ("doctor_on_file_systems_that_refuse", doctor_on_file_systems_that_refuse),
    ];
    let plain = plain.into_iter().map(|(name, test)| {
        Trial::test(name, move || -> Result<(), Failed> {
            test();
            Ok(())
        })
    });
    let mounts = mounts.into_iter().map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            Ok(test().map_or_else(Completion::ignored_with, |()| Completion::Completed))
        })
    });
    libtest_mimic::run(&Arguments::from_args(), plain.chain(mounts).collect()).exit_code()
}
