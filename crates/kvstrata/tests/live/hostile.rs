//! Bad input on the wire, while a good client is served: its connection ends, or it is answered; nothing else happens.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstrata_server::api::{Reply, Request};
use kvstrata_server::wire::{Operation, request_parts};
use kvstrata_testkit::rng::Rng;
use kvstrata_tests::live::{Engine, Prompt, Server, WITHIN, Worker, engine_driven};
use libtest_mimic::Trial;

use crate::{Done, Test, engine, server, with};

pub(crate) const TESTS: &[Test] = &[
    ("bad_frames_harm_nobody_and_leave_nothing", bad_frames_harm_nobody_and_leave_nothing),
    ("bad_messages_harm_nobody_and_leave_nothing", bad_messages_harm_nobody_and_leave_nothing),
    (
        "more_sessions_than_there_may_be_end_with_their_connection",
        more_sessions_than_there_may_be_end_with_their_connection,
    ),
];

/// The most memory of its own that a server under attack may have: an idle one has a tenth, and what messages that are not
/// whole may take is the larger part.
const MOST_KIB: u64 = 260 << 10;

/// A client that stores, looks up, loads and compares, again and again, until it is told to stop.
struct Good {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Good {
    fn start(server: &Server) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted, endpoint) = (Arc::clone(&stop), Arc::clone(&rounds), server.endpoint.clone());
        let thread = std::thread::spawn(move || {
            with(async {
                let engine = Engine::connect(&endpoint).await.expect("it listens");
                let mut worker = Worker::register(engine, 1).await.expect("it registers");
                while !ended.load(Ordering::Relaxed) {
                    let n = counted.fetch_add(1, Ordering::Relaxed);
                    let (prompt, request) = (Prompt { number: n as u32 % 50, chunks: 3 }, n.to_string());
                    assert!(worker.store(prompt, &request).await.expect("it stores"), "round {n}");
                    let found = worker.engine.look_up(prompt.key(&request, None)).await;
                    assert_eq!(found, 3, "round {n}");
                    assert_eq!(worker.load(prompt, &request).await.expect("it loads"), Some(3), "round {n}");
                    worker.end(&request).await.expect("it answers");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// It is served, now as before.
    fn is_served(&self, what: &str) {
        let (before, until) = (self.rounds.load(Ordering::Relaxed), Instant::now() + WITHIN);
        while self.rounds.load(Ordering::Relaxed) < before + 3 {
            let alive = self.thread.as_ref().is_some_and(|t| !t.is_finished());
            assert!(alive && Instant::now() < until, "{what}: the good client is not served any more");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was started").join().expect("the good client saw nothing wrong");
    }
}

fn connect(server: &Server) -> TcpStream {
    let address = server.endpoint.strip_prefix("tcp://").expect("an address");
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_write_timeout(Some(Duration::from_millis(500))).expect("a limit");
    socket.set_read_timeout(Some(WITHIN)).expect("a limit");
    socket
}

fn handshake() -> Vec<u8> {
    let mut bytes = kvstrata_zmtp::greeting().to_vec();
    bytes.extend_from_slice(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
    bytes
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![flags | 2];
    out.extend_from_slice(&(body.len() as u64).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// A message as its frames.
fn frames<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    let last = parts.len().saturating_sub(1);
    parts.iter().enumerate().flat_map(|(i, part)| frame(u8::from(i < last), part.as_ref())).collect()
}

/// Sends bytes and nothing more, and reads until the server closes or has said all that it says to them.
fn say(server: &Server, bytes: &[u8]) {
    let mut socket = connect(server);
    // It may close before it has read all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let mut sink = Vec::new();
    let _ = socket.take(1 << 22).read_to_end(&mut sink);
}

fn end(mut server: Server, good: Good, what: &str) {
    good.is_served(what);
    good.end();
    assert!(server.runs(), "{what}: the server is gone");
    assert_eq!(server.settle(WITHIN), Vec::<String>::new(), "{what}");
    assert!(server.stop(), "{what}: it ends well");
}

fn bad_frames_harm_nobody_and_leave_nothing() -> Done {
    let server = server();
    let good = Good::start(&server);
    let mut rng = Rng::new(7);
    let mut noise = |n: usize| -> Vec<u8> { (0..n).map(|_| rng.bits() as u8).collect() };
    for round in 0..60 {
        say(&server, &noise(round * 40));
        say(&server, &[&kvstrata_zmtp::greeting()[..], &noise(300)].concat());
        say(&server, &[&handshake()[..], &noise(300)].concat());
    }
    good.is_served("noise");
    let cases: [(&str, Vec<u8>); 9] = [
        ("an old greeting", [&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 1][..], &[0; 53]].concat()),
        ("a handshake of a PUB", {
            let mut bytes = kvstrata_zmtp::greeting().to_vec();
            bytes.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
            bytes
        }),
        ("a message before the handshake", [&kvstrata_zmtp::greeting()[..], &frame(0, b"x")].concat()),
        (
            "a frame beyond all",
            [&handshake()[..], &[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(),
        ),
        ("a command beyond all", [&handshake()[..], &[6, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]].concat()),
        ("undefined flags", [&handshake()[..], &[0xf8, 1, 1]].concat()),
        ("parts without end", [handshake(), frames(&vec![b"x"; 5000])].concat()),
        ("commands without end", [handshake(), frame(4, b"\x04PING\0\0context").repeat(5000)].concat()),
        ("empty messages", [handshake(), frame(0, b"").repeat(5000)].concat()),
    ];
    for (what, bytes) in &cases {
        say(&server, bytes);
        for cut in [1, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            say(&server, &bytes[..cut]);
        }
        good.is_served(what);
    }
    // Connections that begin and say nothing more: nothing, half of a greeting, and almost all of a large message.
    let large = {
        let mut bytes = handshake();
        bytes.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
        bytes.resize(bytes.len() + (15 << 20), 0x91);
        bytes
    };
    let greeting = kvstrata_zmtp::greeting();
    let mut silent = Vec::new();
    for n in 0..60 {
        let mut socket = connect(&server);
        let bytes = [&b""[..], &greeting[..30], &large][n % 3];
        // What the server has no room for is not taken; that ends by this side's time limit.
        socket.set_write_timeout(Some(Duration::from_millis(60)))?;
        let _ = socket.write_all(bytes);
        silent.push(socket);
        if n % 12 == 0 {
            good.is_served("silence");
        }
        let kib = server.anonymous_kib();
        assert!(kib < MOST_KIB, "{kib} KiB with {n} silent connections");
    }
    good.is_served("silence");
    drop(silent);
    end(server, good, "bad frames");
    Ok(())
}

fn bad_messages_harm_nobody_and_leave_nothing() -> Done {
    let server = server();
    let good = Good::start(&server);
    let mut rng = Rng::new(8);
    let prompt = Prompt { number: 900_000, chunks: 2 };
    let real = [
        Request::Lookup(prompt.key("bad", None)),
        Request::PrepareStore(prompt.key("bad", Some(0)), 99),
        Request::CommitStore { key: prompt.key("bad", Some(0)), instance: 99, payload: vec![1, 2] },
        Request::PrepareRetrieve(prompt.key("bad", Some(0)), 99),
        Request::WaitPrefetchStatus("bad".into(), Duration::from_millis(1)),
        engine_driven(99),
    ];
    let deep = |marker: u8| vec![marker; 4 << 20];
    let claims: [&[u8]; 6] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
        b"\x81\xa9token_ids\xdd\xff\xff\xff\xff",
    ];
    with(async {
        let mut engine = engine(&server).await;
        assert!(matches!(engine.ask(&engine_driven(99)).await, Reply::Pool { .. }));
        // Every operation with arguments that are too deep, claim too much, or are of every type in turn.
        for op in Operation::ALL {
            let mut arguments: Vec<Vec<u8>> = claims.iter().map(|c| c.to_vec()).collect();
            arguments.extend((0..=0xffu8).step_by(5).map(|marker| vec![marker; 12]));
            for argument in &arguments {
                for count in [1, 2, 5] {
                    let mut parts = vec![vec![1], op.part().to_vec()];
                    parts.extend(vec![argument.clone(); count]);
                    engine.send_parts(&parts).await.expect("it reads");
                    assert_eq!(engine.receive().await.expect("it answers")[0][..], [1], "{}", op.name());
                }
            }
        }
        for marker in [0x91, 0x81, 0xdd, 0xd9] {
            for op in [Operation::Lookup, Operation::ReportBlockAllocation, Operation::RegisterKvCache] {
                let parts = [vec![1], op.part().to_vec(), deep(marker), vec![1], vec![2]];
                engine.send_parts(&parts).await.expect("it reads");
                assert_eq!(engine.receive().await.expect("it answers")[0][..], [1]);
            }
        }
    });
    good.is_served("claims");
    // Real requests with bytes changed, cut, or parts exchanged; nobody waits for the answers.
    for round in 0..1500 {
        let mut parts: Vec<Vec<u8>> =
            request_parts(3, &real[round % real.len()]).iter().map(|part| part.to_vec()).collect();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(parts.len() as u64) as usize;
            let part = &mut parts[at];
            match rng.below(4) {
                0 => part.truncate(rng.below(part.len() as u64 + 1) as usize),
                1 if !part.is_empty() => {
                    let byte = rng.below(part.len() as u64) as usize;
                    part[byte] = rng.bits() as u8;
                }
                2 => parts.swap(at, 0),
                _ => parts.push(vec![rng.bits() as u8; 3]),
            }
        }
        let bytes = [handshake(), frames(&parts)].concat();
        let mut socket = connect(&server);
        let _ = socket.write_all(&bytes);
        if round % 100 == 0 {
            good.is_served("changed requests");
            let kib = server.anonymous_kib();
            assert!(kib < MOST_KIB, "{kib} KiB");
        }
    }
    // One that asks and never reads is not asked to: what is queued for it is bounded.
    let mut deaf = connect(&server);
    let ping = frames(&request_parts(1, &Request::Noop));
    let flood = [handshake(), ping.repeat(200_000)].concat();
    let _ = deaf.write_all(&flood);
    good.is_served("a client that does not read");
    let kib = server.anonymous_kib();
    assert!(kib < MOST_KIB, "{kib} KiB");
    drop(deaf);
    end(server, good, "bad messages");
    Ok(())
}

fn more_sessions_than_there_may_be_end_with_their_connection() -> Done {
    let server = server();
    let lookup = |n: usize| Request::Lookup(Prompt { number: 1, chunks: 1 }.key(&format!("many-{n}"), None));
    with(async {
        let mut engine = engine(&server).await;
        let mut refused = None;
        for n in 0..9000 {
            match engine.ask(&lookup(n)).await {
                Reply::None => {}
                Reply::Refused => {
                    refused = Some(n);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, Some(8192));
    });
    assert_eq!(server.settle(WITHIN), Vec::<String>::new());
    with(async { assert_eq!(engine(&server).await.ask(&lookup(0)).await, Reply::None) });
    Ok(())
}

/// The pool is for this user alone. Another one is to be had only by root.
pub(crate) fn another_user() -> Trial {
    const NAME: &str = "another_user_cannot_open_the_pool";
    const NOBODY: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let can = Command::new("setpriv").args(NOBODY).arg("true").output().is_ok_and(|out| out.status.success());
    if !can {
        let name = format!("{NAME} (not here: this user cannot become another with setpriv)");
        return Trial::test(name, || Ok(())).with_ignored_flag(true);
    }
    Trial::test(NAME, || {
        let server = server();
        assert_eq!(std::fs::metadata(server.pool())?.permissions().mode() & 0o777, 0o600);
        let read = |path: &std::path::Path| {
            Command::new("setpriv").args(NOBODY).args(["head", "-c", "1"]).arg(path).output()
        };
        let out = read(&server.pool())?;
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains("ermission denied"), "{text}");
        // It is not that this user can read nothing there.
        let open = std::path::PathBuf::from(format!("/dev/shm/open-{}", std::process::id()));
        std::fs::write(&open, b"x")?;
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644))?;
        let out = read(&open);
        std::fs::remove_file(&open)?;
        assert!(out?.status.success());
        Ok(())
    })
}
