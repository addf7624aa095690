//! Whether cuFile works on a path, found out in a process of its own: its driver may never come back from being opened.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_cufile_sys::{FileHandle, RegisteredBuffer, Search};
use kvstrata_mem::{Allocate, Slab};

use crate::cufile::{O_DIRECT, driver, failed, library, within};
use crate::device::{Direction, Gpus};

/// The name of the program that tries cuFile. [`child`] is all of it.
pub const PROBE_PROGRAM: &str = "kvstrata-gds-probe";

/// So many bytes go there and back.
const BYTES: usize = 1 << 20;
const TRANSFERS: usize = 4;
const BLOCK: usize = 4096;

/// How cuFile is tried.
#[derive(Clone, Debug)]
pub struct Prober {
    /// The program that calls [`child`]; `None`: cuFile is not tried, and so not used.
    pub program: Option<PathBuf>,
    /// What the program wants to be told before what [`child`] reads.
    pub args: Vec<OsString>,
    /// Where the library is looked for.
    pub search: Search,
    /// How long a try may take.
    pub limit: Duration,
}

impl Prober {
    /// Tries cuFile between a GPU and a file that is made and removed at `file`. Through the host if `compat`; else without
    /// being allowed to, so that what works is direct. `Ok` and `Err` are sentences.
    pub fn ask(&self, file: &Path, ordinal: u32, compat: bool) -> Result<String, String> {
        let Some(program) = &self.program else {
            return Err(format!("there is no {PROBE_PROGRAM} beside the program to try it with"));
        };
        let mut command = Command::new(program);
        command.args(&self.args).arg(file).arg(ordinal.to_string()).arg(if compat {
            "compat"
        } else {
            "direct"
        });
        if let Some(explicit) = &self.search.explicit {
            command.arg("--library").arg(explicit);
        }
        for site in &self.search.site_packages {
            command.arg("--site").arg(site);
        }
        let answer = run(&mut command, self.limit);
        // The child may have been killed.
        let _ = std::fs::remove_file(file);
        answer
    }
}

/// Runs a child that says `stage WHAT` as it goes on, and `ok WHY` or `no WHY` at its end; killed after `limit`.
fn run(command: &mut Command, limit: Duration) -> Result<String, String> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|e| format!("the probe cannot be started: {e}"))?;
    let Some(out) = child.stdout.take() else { return Err("the probe has no output".into()) };
    let (says, said) = channel();
    let reader = std::thread::Builder::new().name("kvs-gds-probe".into()).spawn(move || {
        for line in BufReader::new(out).lines().map_while(|line| line.ok()) {
            if says.send(line).is_err() {
                return;
            }
        }
    });
    let answer = match reader {
        Ok(_) => listen(&said, limit),
        Err(e) => Err(format!("the probe cannot be listened to: {e}")),
    };
    end(&mut child);
    answer
}

fn listen(said: &std::sync::mpsc::Receiver<String>, limit: Duration) -> Result<String, String> {
    let mut stage = "starting".to_owned();
    loop {
        match said.recv_timeout(limit) {
            Ok(line) => match line.split_once(' ') {
                Some(("ok", proof)) => return Ok(proof.to_owned()),
                Some(("no", why)) => return Err(why.to_owned()),
                Some(("stage", what)) => stage = what.to_owned(),
                _ => {}
            },
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("it did not come back from {stage} within {} s", limit.as_secs_f64()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(format!("its process died while {stage}")),
        }
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// The probe's own program: what it is told in its arguments, what it finds out as text.
pub fn child(
    args: impl Iterator<Item = OsString>,
    gpus: Result<Arc<dyn Gpus>>,
    out: &mut dyn Write,
) -> ExitCode {
    let mut say = |word: &str, what: &dyn std::fmt::Display| {
        // Whoever asked may be gone.
        let _ = writeln!(out, "{word} {what}").and_then(|()| out.flush());
    };
    let found = Try::read(args).and_then(|t| t.run(gpus, &mut |stage| say("stage", &stage)));
    match found {
        Ok(proof) => {
            say("ok", &proof);
            ExitCode::SUCCESS
        }
        Err(why) => {
            say("no", &why);
            ExitCode::FAILURE
        }
    }
}

/// What the child is to try.
struct Try {
    file: PathBuf,
    ordinal: u32,
    compat: bool,
    search: Search,
}

impl Try {
    fn read(mut args: impl Iterator<Item = OsString>) -> Result<Self> {
        let usage = || {
            Error::invalid(
                "read arguments",
                "FILE GPU direct|compat [--library FILE] [--site FOLDER]... are expected",
            )
        };
        let file = args.next().ok_or_else(usage)?.into();
        let ordinal = args.next().and_then(|o| o.to_str()?.parse().ok()).ok_or_else(usage)?;
        let compat = match args.next().as_deref().and_then(|m| m.to_str()) {
            Some("compat") => true,
            Some("direct") => false,
            _ => return Err(usage()),
        };
        let mut search = Search::default();
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(usage)?.into();
            match flag.to_str() {
                Some("--library") => search.explicit = Some(value),
                Some("--site") => search.site_packages.push(value),
                _ => return Err(usage()),
            }
        }
        Ok(Self { file, ordinal, compat, search })
    }

    fn run(&self, gpus: Result<Arc<dyn Gpus>>, stage: &mut dyn FnMut(&str)) -> Result<String> {
        stage("starting CUDA");
        let gpus = gpus?;
        within(&*gpus, self.ordinal, || self.move_bytes(&*gpus, stage))
    }

    fn move_bytes(&self, gpus: &dyn Gpus, stage: &mut dyn FnMut(&str)) -> Result<String> {
        stage("opening libcufile");
        let library = library(&self.search)?;
        stage("opening cuFile's driver");
        let driver = driver(&library, self.compat)?;
        let counted = driver.start_stats();
        stage("registering a file");
        let about = |e| Error::io(OP, e).with("file", self.file.display());
        let mut how = OpenOptions::new();
        let mut made =
            how.read(true).write(true).create_new(true).mode(0o600).open(&self.file).map_err(about)?;
        // A device that is full is to cuFile a transfer that failed; here it is what it is.
        made.write_all(&vec![0; BYTES]).map_err(about)?;
        let file = how.create_new(false).custom_flags(O_DIRECT).open(&self.file).map_err(about)?;
        drop(made);
        let handle = FileHandle::register(&driver, file).map_err(|f| failed(OP, f))?;
        stage("registering GPU memory");
        let memory = gpus.memory(self.ordinal, 2 * BYTES)?;
        // SAFETY: the memory outlives the value, which is declared after it, and the thread has the GPU's context.
        let buffer = unsafe { RegisteredBuffer::register(&driver, memory.base(), memory.len()) }
            .map_err(|f| failed(OP, f))?;
        stage("moving bytes");
        let slab = Slab::new(vec![gpus.pinned(BYTES)?])?;
        let mut pinned = slab.pool("probe", BYTES as u64).reserve(BYTES, BLOCK)?;
        let mut copies = gpus.copies(self.ordinal)?;
        for (block, bytes) in
            pinned.as_mut_slice().into_iter().flat_map(|all| all.chunks_mut(BLOCK)).enumerate()
        {
            bytes.fill(pattern(block));
        }
        // SAFETY: both ends have so many bytes, and the queue is drained before they are used.
        unsafe { copies.copy(Direction::ToDevice, memory.base(), pinned.as_ptr(), BYTES) }?;
        copies.drain();
        let piece = BYTES / TRANSFERS;
        for (written, at) in (0..BYTES).step_by(piece).map(|at| {
            // SAFETY: the bytes are in the GPU's memory, and nobody else uses them.
            (unsafe { handle.write(memory.base(), at, piece, at as u64) }, at)
        }) {
            whole("write", written.map_err(|f| failed(OP, f))?, piece, at)?;
        }
        for (read, at) in (0..BYTES).step_by(piece).map(|at| {
            // SAFETY: as above, in the second half.
            (unsafe { handle.read(memory.base(), BYTES + at, piece, at as u64) }, at)
        }) {
            whole("read", read.map_err(|f| failed(OP, f))?, piece, at)?;
        }
        let back = memory.base().map_addr(|base| base.saturating_add(BYTES));
        // SAFETY: as the first copy, from the second half.
        unsafe { copies.copy(Direction::ToHost, pinned.as_ptr(), back, BYTES) }?;
        copies.drain();
        let mut right = true;
        pinned.visit(|all| {
            let mut blocks = all.chunks(BLOCK).enumerate();
            right &= blocks.all(|(block, bytes)| bytes.iter().all(|b| *b == pattern(block)));
        })?;
        if !right {
            return Err(Error::new(
                ErrorKind::Corrupt,
                OP,
                "the bytes that came back are not those that went",
            ));
        }
        let stats = driver.gpu_stats().ok().flatten();
        drop((buffer, handle));
        // It goes unnoticed by the store, whose names these are not.
        let _ = std::fs::remove_file(&self.file);
        let version = library.version();
        if self.compat {
            return Ok(format!("cuFile {version} moves bytes through the host"));
        }
        // That bytes moved with compat mode off says that they went past the host; the counters have to say so too.
        let unproved = |why: String| Err(Error::new(ErrorKind::Unavailable, OP, why));
        if let Err(f) = counted {
            return unproved(format!("cuFile {version} does not count its transfers: {f}"));
        }
        let Some(gpus) = stats else {
            return unproved(format!("where cuFile {version} keeps its counters is not known"));
        };
        let sum =
            |of: fn(&kvstrata_cufile_sys::stats::GpuStats) -> [u64; 2]| gpus.iter().flat_map(of).sum::<u64>();
        let (nvfs, p2p, posix) = (sum(|g| g.nvfs), sum(|g| g.p2p), sum(|g| g.posix));
        if posix > 0 || nvfs + p2p == 0 {
            return unproved(format!(
                "cuFile {version} counts {nvfs} transfers by nvidia-fs, {p2p} by peer-to-peer DMA and {posix} through the host"
            ));
        }
        let by = if nvfs > 0 { "nvidia-fs" } else { "peer-to-peer DMA" };
        Ok(format!("cuFile {version} is proved direct by its counters ({} transfers by {by})", nvfs + p2p))
    }
}

const OP: &str = "try cuFile";

fn pattern(block: usize) -> u8 {
    (block as u8).wrapping_mul(37).wrapping_add(11)
}

fn whole(what: &str, got: usize, want: usize, at: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, OP, format!("a {what} moved {got} of {want} bytes at {at}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: f64) -> Result<String, String> {
        run(Command::new("sh").arg("-c").arg(script), Duration::from_secs_f64(limit))
    }

    #[test]
    fn what_the_child_says_is_the_answer() {
        assert_eq!(shell("echo stage a; echo ok it works", 20.0), Ok("it works".into()));
        assert_eq!(
            shell("echo no nvidia-fs is not loaded; exit 1", 20.0),
            Err("nvidia-fs is not loaded".into())
        );
        let died = shell("echo stage opening the driver; kill -9 $$", 20.0).unwrap_err();
        assert!(died.contains("died while opening the driver"), "{died}");
        let missing = run(&mut Command::new("/nonexistent/probe"), Duration::from_secs(1)).unwrap_err();
        assert!(missing.contains("cannot be started"), "{missing}");
    }

    #[test]
    fn a_child_that_does_not_come_back_is_killed_and_the_stage_is_named() {
        let said = shell("echo stage opening the driver; while :; do :; done", 0.3).unwrap_err();
        assert!(said.contains("opening the driver within 0.3 s"), "{said}");
    }

    #[test]
    fn without_a_program_nothing_is_tried() {
        let prober =
            Prober { program: None, args: vec![], search: Search::default(), limit: Duration::from_secs(1) };
        assert!(prober.ask(Path::new("/nonexistent/x"), 0, false).unwrap_err().contains(PROBE_PROGRAM));
    }

    #[test]
    fn the_child_says_why_not() {
        let mut out = Vec::new();
        let none = Err(Error::new(ErrorKind::Unavailable, "open CUDA", "there is no libcuda"));
        child(["/tmp/x", "0", "direct"].map(OsString::from).into_iter(), none, &mut out);
        let said = String::from_utf8(out).unwrap();
        assert!(said.ends_with("no open CUDA: there is no libcuda\n"), "{said}");
        let mut out = Vec::new();
        let none = Err(Error::new(ErrorKind::Unavailable, "open CUDA", "there is no libcuda"));
        child(["/tmp/x", "zero"].map(OsString::from).into_iter(), none, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("direct|compat"));
    }
}
