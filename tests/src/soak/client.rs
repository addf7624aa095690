//! Lives of clients, and the process that holds many of them.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use kvstrata_server::api::Request;
use kvstrata_testkit::rng::{Rng, mix};
use serde::{Deserialize, Serialize};

use crate::live::{Engine, Paged, Prompt, SLOT_BYTES, Worker};

/// What a process of clients is told.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// Where the server is
    #[arg(long)]
    pub endpoint: String,
    /// Clients at a time
    #[arg(long)]
    pub clients: u64,
    /// The mean of a client's pauses, in milliseconds
    #[arg(long)]
    pub pause_ms: u64,
    /// What all choices are made from
    #[arg(long)]
    pub seed: u64,
}

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What clients did and saw.
        #[derive(Clone, Debug, Default, Serialize, Deserialize)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
            /// What went wrong.
            pub failures: Vec<String>,
        }

        impl Tally {
            /// With what others did and saw.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                self.failures.extend(other.failures.iter().cloned());
            }
        }
    };
}

tally! {
    /// Clients that connected and registered.
    lives,
    /// Of those, clients whose bytes the server moves.
    paged,
    /// Deaths without a word: connections that were dropped.
    deaths,
    /// Of those, with slots that were filled in part.
    deaths_writing,
    /// Of those, with slots that were being read, or chunks locked.
    deaths_reading,
    /// Of those, with a request that was not answered.
    deaths_asking,
    /// Clients that unregistered, some with slots prepared.
    farewells,
    /// Lookups.
    lookups,
    /// Of those, lookups that found something.
    hits,
    /// Prompts stored.
    stores,
    /// Stores that were refused, for want of room most likely.
    refused,
    /// Prompts read and compared.
    loads,
    /// Chunks of those.
    chunks,
    /// Prompts that were found, and were gone before they could be read.
    missed,
    /// Batches of events.
    batches,
    /// Prompts of other bytes.
    wrong,
}

/// Prompts that there are: more than L1 has room for.
const PROMPTS: u64 = 600;

/// Where all clients of a process leave what they saw.
type Shared = Arc<Mutex<Tally>>;

struct Life<'a> {
    rng: &'a mut Rng,
    seen: &'a Shared,
    name: String,
    step: u64,
    pause: u64,
}

/// Whether a client goes on, or is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    Alive,
    Dead,
}

impl Life<'_> {
    fn count(&self, f: impl FnOnce(&mut Tally)) {
        f(&mut self.seen.lock().expect("nobody panics with it"));
    }

    fn request(&mut self) -> String {
        self.step += 1;
        format!("{}-{}", self.name, self.step)
    }

    fn prompt(&mut self, longest: u64) -> Prompt {
        let number = self.rng.below(PROMPTS) as u32;
        // As many as its number says, so that prompts come back whole.
        Prompt { number, chunks: 1 + (mix(u64::from(number)) % longest) as usize }
    }

    async fn pause(&mut self) {
        let pause = self.rng.exponential(self.pause * 1000);
        tokio::time::sleep(Duration::from_micros(pause)).await;
    }

    /// What a result says of the bytes; other errors go on.
    fn judged<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result
            && e.kind() == io::ErrorKind::InvalidData
        {
            self.count(|t| t.wrong += 1);
        }
        result
    }

    /// A life from its connection to its end.
    async fn live(&mut self, endpoint: &str, instance: i64) -> io::Result<()> {
        let engine = Engine::connect(endpoint).await?;
        if self.rng.percent(12) {
            let mut worker = Paged::register(engine, instance).await?;
            self.count(|t| (t.lives, t.paged) = (t.lives + 1, t.paged + 1));
            while self.paged(&mut worker).await? == After::Alive {
                self.pause().await;
            }
        } else {
            let mut worker = Worker::register(engine, instance).await?;
            self.count(|t| t.lives += 1);
            while self.engine(&mut worker).await? == After::Alive {
                self.pause().await;
            }
        }
        Ok(())
    }

    async fn engine(&mut self, worker: &mut Worker) -> io::Result<After> {
        match self.rng.below(100) {
            0..45 => self.store(worker).await,
            45..80 => self.load(worker).await,
            80..88 => self.look_and_leave(worker).await,
            88..93 => self.follow(worker).await,
            93..96 => {
                worker.engine.try_ask(&Request::Ping(Some(worker.instance))).await?;
                Ok(After::Alive)
            }
            _ => self.farewell(worker).await,
        }
    }

    async fn store(&mut self, worker: &mut Worker) -> io::Result<After> {
        let (prompt, request) = (self.prompt(6), self.request());
        let key = prompt.key(&request, Some(0));
        self.count(|t| t.lookups += 1);
        worker.engine.try_look_up(prompt.key(&request, None)).await?;
        let Some(slots) = worker.prepare(&key).await? else {
            self.count(|t| t.refused += 1);
            worker.end(&request).await?;
            return Ok(After::Alive);
        };
        let dies = self.rng.percent(15).then(|| self.rng.below(slots.len() as u64 + 1) as usize);
        for (i, slot) in slots.iter().enumerate() {
            if dies == Some(i) {
                worker.fill(slot, prompt.number, self.rng.below(SLOT_BYTES as u64) as usize)?;
                self.count(|t| (t.deaths, t.deaths_writing) = (t.deaths + 1, t.deaths_writing + 1));
                return Ok(After::Dead);
            }
            worker.fill(slot, prompt.number, SLOT_BYTES)?;
            if self.rng.percent(5) {
                self.pause().await;
            }
        }
        if dies.is_some() {
            // It may be there, and may not.
            let commit = Request::CommitStore { key, instance: worker.instance, payload: Vec::new() };
            worker.engine.send(&commit).await?;
            self.count(|t| (t.deaths, t.deaths_asking) = (t.deaths + 1, t.deaths_asking + 1));
            return Ok(After::Dead);
        }
        if !slots.is_empty() && !worker.commit(&key).await? {
            return Err(io::Error::other(format!("{prompt:?} was prepared and could not be committed")));
        }
        self.count(|t| t.stores += 1);
        worker.end(&request).await?;
        Ok(After::Alive)
    }

    async fn load(&mut self, worker: &mut Worker) -> io::Result<After> {
        let (prompt, request) = (self.prompt(6), self.request());
        let found = worker.engine.try_look_up(prompt.key(&request, None)).await? as usize;
        self.count(|t| (t.lookups, t.hits) = (t.lookups + 1, t.hits + u64::from(found > 0)));
        if found > prompt.chunks {
            return Err(io::Error::other(format!("{found} chunks of {prompt:?}")));
        }
        let part = Prompt { chunks: found, ..prompt };
        if found > 0 && self.rng.percent(15) {
            // With chunks locked, or slots that it reads.
            if self.rng.percent(50) {
                worker.slots(&part.key(&request, Some(0))).await?;
            }
            self.count(|t| (t.deaths, t.deaths_reading) = (t.deaths + 1, t.deaths_reading + 1));
            return Ok(After::Dead);
        }
        if found > 0 {
            let loaded = worker.load(part, &request).await;
            match self.judged(loaded)? {
                Some(n) => self.count(|t| (t.loads, t.chunks) = (t.loads + 1, t.chunks + n)),
                None => self.count(|t| t.missed += 1),
            }
        }
        worker.end(&request).await?;
        Ok(After::Alive)
    }

    /// Looks up, and gives back what it does not want, ends, or says nothing more.
    async fn look_and_leave(&mut self, worker: &mut Worker) -> io::Result<After> {
        let (prompt, request) = (self.prompt(6), self.request());
        self.count(|t| t.lookups += 1);
        if self.rng.percent(30) {
            worker.engine.send(&Request::Lookup(prompt.key(&request, None))).await?;
            self.count(|t| (t.deaths, t.deaths_asking) = (t.deaths + 1, t.deaths_asking + 1));
            return Ok(After::Dead);
        }
        worker.engine.try_look_up(prompt.key(&request, None)).await?;
        worker.engine.try_ask(&Request::FreeLookupLocks(prompt.key(&request, None))).await?;
        if self.rng.percent(50) {
            worker.end(&request).await?;
        }
        Ok(After::Alive)
    }

    /// Follows the events for one batch, and dies or cancels.
    async fn follow(&mut self, worker: &mut Worker) -> io::Result<After> {
        let follow = Request::SubscribeKvEvents {
            instance: worker.instance,
            model: "org/model".into(),
            cursor: 0,
            max_events: 64,
        };
        let [number, _] = worker.engine.send(&follow).await?;
        // The first batch says where the log stands.
        worker.engine.receive().await?;
        self.count(|t| t.batches += 1);
        if self.rng.percent(50) {
            self.count(|t| t.deaths += 1);
            return Ok(After::Dead);
        }
        // There is one batch for each credit, and none was given for a second.
        worker.engine.send_parts(&[&number[..], b"", b"cancel"]).await?;
        Ok(After::Alive)
    }

    async fn farewell(&mut self, worker: &mut Worker) -> io::Result<After> {
        if self.rng.percent(50) {
            let (prompt, request) = (self.prompt(6), self.request());
            worker.prepare(&prompt.key(&request, Some(0))).await?;
        }
        worker.engine.try_ask(&Request::UnregisterEngineDriven(worker.instance)).await?;
        self.count(|t| t.farewells += 1);
        Ok(After::Dead)
    }

    async fn paged(&mut self, worker: &mut Paged) -> io::Result<After> {
        let (prompt, request) = (self.prompt(4), self.request());
        match self.rng.below(100) {
            0..45 => {
                if worker.store(prompt, &request).await? {
                    self.count(|t| t.stores += 1);
                } else {
                    self.count(|t| t.refused += 1);
                }
            }
            45..85 => {
                let found = worker.engine.try_look_up(Paged::key(prompt, &request, None)).await? as usize;
                self.count(|t| (t.lookups, t.hits) = (t.lookups + 1, t.hits + u64::from(found > 0)));
                if found > 0 {
                    let loaded = worker.load(Prompt { chunks: found, ..prompt }, &request).await;
                    if self.judged(loaded)? {
                        self.count(|t| (t.loads, t.chunks) = (t.loads + 1, t.chunks + found as u64));
                    } else {
                        self.count(|t| t.missed += 1);
                    }
                }
            }
            85..95 => {
                // The server is still reading its memory, which is gone with it.
                worker.fill(prompt)?;
                let store = worker.store_request(prompt, &request);
                worker.engine.send(&store).await?;
                self.count(|t| (t.deaths, t.deaths_asking) = (t.deaths + 1, t.deaths_asking + 1));
                return Ok(After::Dead);
            }
            _ => {
                self.count(|t| t.deaths += 1);
                return Ok(After::Dead);
            }
        }
        worker.engine.try_ask(&Request::EndSession(request)).await?;
        Ok(After::Alive)
    }
}

async fn client(args: ClientArgs, n: u64, seen: Shared) {
    let mut rng = Rng::new(args.seed ^ mix(n + 1));
    let mut lives = 0;
    loop {
        lives += 1;
        let instance = (rng.bits() >> 2) as i64;
        let name = format!("{instance:x}");
        let mut life = Life { rng: &mut rng, seen: &seen, name, step: 0, pause: args.pause_ms };
        life.pause().await;
        if let Err(e) = life.live(&args.endpoint, instance).await {
            let mut seen = seen.lock().expect("nobody panics with it");
            if seen.failures.len() < 20 {
                seen.failures.push(format!("client {n} in its life {lives}: {e}"));
            }
        }
    }
}

/// A process of clients: a line of JSON with what they saw so far ten times a second, until its input ends.
pub fn clients(args: &ClientArgs) -> ExitCode {
    let seen = Shared::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let reporter = Arc::clone(&seen);
    let endpoint = args.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            for n in 0..endpoint.clients {
                tokio::spawn(client(endpoint.clone(), n, Arc::clone(&seen)));
            }
            std::future::pending::<()>().await;
        });
    });
    let (ended, end) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read_line(&mut String::new());
        drop(ended);
    });
    loop {
        let over = end.recv_timeout(Duration::from_millis(100))
            == Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
        let tally = reporter.lock().expect("nobody panics with it").clone();
        let line = serde_json::to_string(&tally).expect("plain data") + "\n";
        let told = io::stdout().lock().write_all(line.as_bytes());
        if over || told.is_err() {
            // All of its clients die at once, whatever they are at.
            return ExitCode::SUCCESS;
        }
    }
}
