//! LMCache's vLLM adapters, driven by a script of ours: each step once, and through kills of the server.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Server, quiet};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/adapters.py");

fn script(venv: &Path, server: &Server, mode: &str, what: &str) -> Command {
    let mut command = Command::new(venv.join("bin/python"));
    quiet(&mut command).args([SCRIPT, &server.endpoint, mode, what]);
    command
}

/// The last line of the script, which is JSON.
fn last_line(output: &str) -> Result<Value> {
    let line = output.lines().rfind(|l| l.starts_with('{')).context("the adapters said nothing")?;
    Ok(serde_json::from_str(line)?)
}

/// Store, look up, retrieve, hit in part, free locks, skip, follow events, reset, unregister; how many of them failed.
pub(super) fn steps(venv: &Path, server: &Server, mode: &str) -> Result<u32> {
    let output = script(venv, server, mode, "all").stdin(Stdio::null()).output()?;
    let done = last_line(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let steps = done.as_object().context("steps")?;
    for (step, ok) in steps {
        println!("adapters, {mode}, {step}: {}", if *ok == true { "ok" } else { "FAILED" });
    }
    let held = &status(&server.http)?["held"];
    let none = ["leases", "locked_chunks", "quarantined"].iter().all(|what| held[*what] == 0);
    println!("adapters, {mode}, nothing left held: {}", if none { "ok" } else { "FAILED" });
    Ok(steps.values().filter(|ok| **ok != true).count() as u32 + u32::from(!none))
}

/// What `GET` of a path says.
fn get(http: &str, path: &str) -> Result<Value> {
    let address = http.strip_prefix("http://").context("an address")?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("a body")?;
    serde_json::from_str(body).with_context(|| format!("GET {path}: {text}"))
}

fn status(http: &str) -> Result<Value> {
    get(http, "/status")
}

/// The hashes of what the tier below says it has.
fn below(http: &str) -> Result<BTreeSet<String>> {
    let (mut all, mut page) = (BTreeSet::new(), String::new());
    loop {
        let listed = get(http, &format!("/cache/objects?tier=l2&page_size=5000{page}"))?;
        let entries = listed["entries"].as_array().context("entries")?;
        all.extend(entries.iter().filter_map(|e| e["key"]["chunk_hash_hex"].as_str()).map(str::to_owned));
        match listed["next_page_token"].as_str() {
            Some(token) => page = format!("&page_token={token}"),
            None => return Ok(all),
        }
    }
}

/// A client that is told to end by the end of its input; killed if it is not.
struct Live {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills the server under a client that goes on, and starts it again over the same store; how many checks failed.
pub(super) fn kills(venv: &Path, mode: &str, rounds: u32, start: impl Fn() -> Result<Server>) -> Result<u32> {
    let mut server = start()?;
    let mut child =
        script(venv, &server, mode, "live").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().context("its output")?);
    let mut live = Live { input: child.stdin.take(), output, child };
    let mut line = String::new();
    live.output.read_line(&mut line)?;
    ensure!(line.trim() == "live", "the client did not start");
    let (mut from_disk, mut silent, mut lost, mut slowest) = (0, 0, 0, Duration::ZERO);
    let mut acknowledged = BTreeSet::new();
    for round in 0..=rounds {
        lost += acknowledged.difference(&below(&server.http)?).count();
        // Until it has served something. What comes back was stored long before the kill, so it comes from the tier below.
        let begun = Instant::now();
        let served = loop {
            let status = status(&server.http)?;
            let number = |what: &str| status["served"][what].as_u64().unwrap_or(0);
            if number("hit_tokens") > 0 && number("retrieves_committed") > 0 {
                break Some(number("hit_l1_tokens") == 0);
            }
            if begun.elapsed() > Duration::from_secs(30) {
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if round > 0 {
            from_disk += u32::from(served == Some(true));
            silent += u32::from(served.is_none());
            slowest = slowest.max(begun.elapsed());
            if served != Some(true) {
                println!("{mode}, kill {round}: {}", status(&server.http)?["served"]);
            }
        }
        // Somewhere in the middle of what it does.
        std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 97)));
        if round < rounds {
            acknowledged = below(&server.http)?;
            drop(server);
            server = start()?;
        }
    }
    let restarted = live.child.try_wait()?.is_some();
    drop(live.input.take());
    let mut rest = String::new();
    live.output.read_to_string(&mut rest)?;
    let ended = live.child.wait()?;
    let counts = last_line(&rest)?;
    println!("{mode}, {rounds} kills: {counts}");
    println!(
        "{mode}, {rounds} kills: {from_disk} first hits from disk, slowest after {} ms; {lost} objects of those on disk before \
         a kill not there after it, {} before the last",
        slowest.as_millis(),
        acknowledged.len(),
    );
    let good = !restarted && ended.success() && counts["wrong_blocks"] == 0 && silent == 0;
    let good = good && from_disk == rounds && lost == 0;
    println!("{mode}, {rounds} kills: {}", if good { "ok" } else { "FAILED" });
    Ok(u32::from(!good))
}
