//! Writers that are killed between prepare and commit, and readers that must never see what they left.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use kvstrata_server::api::Request;
use kvstrata_testkit::rng::Rng;
use serde::Serialize;

use crate::live::{Engine, Prompt, SLOT_BYTES, Server, WITHIN, Worker};
use crate::report::{Progress, number, table};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that serves: `kvstrata`.
    pub server: PathBuf,
    /// The program that is killed, and what makes it a writer: the arguments before the writer's own.
    pub writer: (PathBuf, Vec<String>),
    /// Writers.
    pub rounds: u64,
    /// What every choice is made from.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Writers that were killed while they held slots which they had filled in part.
    pub killed: u64,
    /// Writers whose connection ended instead.
    pub dropped: u64,
    /// Writers that unregistered instead.
    pub unregistered: u64,
    /// Writers that were killed while they committed. What they stored is there as a whole, or not at all.
    pub committing: u64,
    /// Of those, those whose chunks were there.
    pub published: u64,
    /// Chunks that were compared, byte for byte.
    pub compared: u64,
    /// Chunks of other bytes.
    pub torn: u64,
    /// Stores that the server says were dropped unseen.
    pub aborted: u64,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Report {
    /// As a table.
    pub fn text(&self) -> String {
        let rows = [
            ("killed with slots filled in part", self.killed),
            ("connection dropped", self.dropped),
            ("unregistered", self.unregistered),
            ("killed at the commit", self.committing),
            ("of those, found afterwards", self.published),
            ("chunks compared", self.compared),
            ("chunks torn", self.torn),
            ("stores dropped unseen", self.aborted),
        ];
        let rows: Vec<_> = rows.iter().map(|(what, n)| vec![(*what).to_owned(), number(*n)]).collect();
        format!("seed {}\n{}", self.seed, table(&["writers", "n"], &rows))
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }
}

/// How a writer ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Killed,
    Dropped,
    Unregistered,
    Committing,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A writer ends by itself after that, whatever becomes of its parent.
const LIFE: Duration = Duration::from_secs(60);

/// The writer's own part: `ENDPOINT INSTANCE PROMPT CHUNKS COMMIT`. Prepares, fills in part, says `prepared`, and goes on
/// filling for ever; or, to be killed at the commit, fills all, says `prepared` and commits.
pub fn writer(args: &[String]) -> ExitCode {
    let [endpoint, rest @ ..] = args else { return ExitCode::FAILURE };
    let numbers: Vec<i64> = rest.iter().filter_map(|n| n.parse().ok()).collect();
    let [instance, prompt, chunks, commit] = numbers[..] else { return ExitCode::FAILURE };
    std::thread::spawn(|| {
        std::thread::sleep(LIFE);
        std::process::exit(1);
    });
    let prompt = Prompt { number: prompt as u32, chunks: chunks as usize };
    let wrote = runtime().block_on(async {
        let mut worker = Worker::register(Engine::connect(endpoint).await?, instance).await?;
        let key = prompt.key(&format!("writer-{instance}"), Some(0));
        let slots = worker.prepare(&key).await?.unwrap_or_default();
        if commit != 0 {
            slots.iter().try_for_each(|slot| worker.fill(slot, prompt.number, SLOT_BYTES))?;
            println!("prepared {}", slots.len());
            worker.commit(&key).await?;
            return Ok(());
        }
        // Half of the slots, the last of them by half.
        let half = &slots[..slots.len().div_ceil(2)];
        for (i, slot) in half.iter().enumerate() {
            worker.fill(
                slot,
                prompt.number,
                if i + 1 == half.len() { SLOT_BYTES / 2 } else { SLOT_BYTES },
            )?;
        }
        println!("prepared {}", slots.len());
        loop {
            half.iter().try_for_each(|slot| worker.fill(slot, prompt.number, SLOT_BYTES / 2))?;
            tokio::task::yield_now().await;
        }
    });
    match wrote {
        Ok(()) => {
            std::thread::sleep(LIFE);
            ExitCode::SUCCESS
        }
        Err::<(), std::io::Error>(e) => {
            println!("failed {e}");
            ExitCode::FAILURE
        }
    }
}

/// Ends with its guard.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a writer and waits until it has prepared: its process, and how many slots it has.
fn start(
    options: &Options,
    endpoint: &str,
    prompt: Prompt,
    instance: i64,
    commit: bool,
) -> Result<(Killed, usize), String> {
    let (program, first) = &options.writer;
    let numbers = [instance, prompt.number.into(), prompt.chunks as i64, commit.into()];
    let mut command = Command::new(program);
    command.args(first).arg(endpoint).args(numbers.map(|n| n.to_string()));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let mut child = Killed(child);
    let mut line = String::new();
    let mut out = BufReader::new(child.0.stdout.take().expect("its output"));
    out.read_line(&mut line).map_err(|e| e.to_string())?;
    let slots = line.trim().strip_prefix("prepared ").and_then(|n| n.parse().ok());
    Ok((child, slots.ok_or_else(|| format!("a writer said {line:?}"))?))
}

/// Prompts that are looked at again, when others have had their memory.
const KEPT: usize = 48;

/// The reader's side: a worker that looks everything up and compares whatever it is given.
struct Reader {
    worker: Worker,
    asked: u64,
}

impl Reader {
    async fn connect(endpoint: &str) -> std::io::Result<Self> {
        Ok(Self { worker: Worker::register(Engine::connect(endpoint).await?, 1).await?, asked: 0 })
    }

    /// Looks a prompt up and compares what there is; how many chunks.
    async fn look(&mut self, prompt: Prompt, report: &mut Report) -> std::io::Result<usize> {
        self.asked += 1;
        let request = format!("reader-{}", self.asked);
        let found = self.worker.engine.try_look_up(prompt.key(&request, None)).await? as usize;
        if found > 0 {
            match self.worker.load(Prompt { chunks: found, ..prompt }, &request).await {
                Ok(loaded) => report.compared += loaded.unwrap_or_default(),
                Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                    report.torn += 1;
                    report.fail(format!("torn: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
        self.worker.end(&request).await?;
        Ok(found)
    }
}

async fn round(
    options: &Options,
    server: &Server,
    reader: &mut Reader,
    (n, rng): (u64, &mut Rng),
    report: &mut Report,
) -> std::io::Result<Prompt> {
    let prompt = Prompt { number: 1000 + n as u32, chunks: 1 + rng.below(6) as usize };
    let instance = 1_000_000 + n as i64;
    let end = match rng.below(10) {
        0 => End::Dropped,
        1 => End::Unregistered,
        2 => End::Committing,
        _ => End::Killed,
    };
    let other = |e: String| std::io::Error::other(e);
    match end {
        End::Killed | End::Committing => {
            let commit = end == End::Committing;
            let (mut child, slots) =
                start(options, &server.endpoint, prompt, instance, commit).map_err(other)?;
            if slots != prompt.chunks {
                report.fail(format!("{prompt:?}: a writer was given {slots} slots"));
            }
            // Until then nobody may see any of it.
            if !commit && reader.look(prompt, report).await? > 0 {
                report.fail(format!("{prompt:?} is found while it is written"));
            }
            // A timer wakes a millisecond late: without it the kill comes while the commit is on its way.
            if rng.percent(50) {
                tokio::time::sleep(Duration::from_micros(rng.below(2000))).await;
            }
            child.0.kill()?;
            child.0.wait()?;
            *if commit { &mut report.committing } else { &mut report.killed } += 1;
        }
        End::Dropped | End::Unregistered => {
            let mut writer = Worker::register(Engine::connect(&server.endpoint).await?, instance).await?;
            let key = prompt.key(&format!("writer-{instance}"), Some(0));
            let slots = writer.prepare(&key).await?.unwrap_or_default();
            for slot in slots.iter().step_by(2) {
                writer.fill(slot, prompt.number, SLOT_BYTES / 3)?;
            }
            if end == End::Unregistered {
                writer.engine.try_ask(&Request::UnregisterEngineDriven(instance)).await?;
                report.unregistered += 1;
            } else {
                report.dropped += 1;
            }
        }
    }
    let found = reader.look(prompt, report).await?;
    match end {
        End::Committing if found == prompt.chunks => report.published += 1,
        _ if found == 0 => {}
        _ => report.fail(format!("{prompt:?}: {found} chunks are found of a writer that was {end:?}")),
    }
    Ok(prompt)
}

async fn all(
    options: &Options,
    server: &Server,
    progress: &mut Progress,
    report: &mut Report,
) -> std::io::Result<()> {
    let mut rng = Rng::new(options.seed);
    let mut reader = Reader::connect(&server.endpoint).await?;
    let mut kept = VecDeque::new();
    for n in 0..options.rounds {
        kept.push_back(round(options, server, &mut reader, (n, &mut rng), report).await?);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        // Whole prompts between the torn ones, which are given the memory that those had.
        let whole = Prompt { number: 1 + rng.below(900) as u32, chunks: 4 };
        if !reader.worker.store(whole, "whole").await? {
            report.fail(format!("{whole:?} was not stored"));
        }
        reader.worker.end("whole").await?;
        let again = kept[rng.below(kept.len() as u64) as usize];
        for prompt in [whole, again] {
            reader.look(prompt, report).await?;
        }
        progress.reached(n + 1, &format!("{} torn", report.torn));
        if report.failures.len() > 20 {
            break;
        }
    }
    for prompt in kept {
        reader.look(prompt, report).await?;
    }
    Ok(())
}

/// Kills writers of a server of its own.
pub fn run(options: &Options, progress: &mut Progress) -> Report {
    let mut report = Report { seed: options.seed, ..Report::default() };
    let flags = [
        "--l1-size-gb",
        "0.125",
        "--l2-adapter",
        r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100}"#,
    ];
    let mut server = Server::start(Path::new(&options.server), &flags);
    let ran = runtime().block_on(all(options, &server, progress, &mut report));
    if let Err(e) = ran {
        report.fail(format!("a client of the server: {e}"));
    }
    if !server.runs() {
        report.fail("the server is gone");
        return report;
    }
    for held in server.settle(WITHIN) {
        report.fail(format!("still held at the end: {held}"));
    }
    report.aborted = server.metric(r#"kvstrata_server_stores_total{result="aborted"}"#) as u64;
    let begun = report.killed + report.dropped + report.unregistered;
    if report.aborted < begun {
        report.fail(format!("{begun} stores were begun and left, and {} were dropped", report.aborted));
    }
    if !server.stop() {
        report.fail("the server did not end well, or left its pool");
    }
    report
}
