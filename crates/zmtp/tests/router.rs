//! A router over real sockets: large messages, order, slow and hostile peers, and what is left of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvstrata_zmtp::{Dealer, Handler, Limits, Message, Outbox, PeerId, Router, Ticket, greeting};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Sends messages back: at once, or (those that begin with `later`) when `go` is told.
#[derive(Default)]
struct Echo {
    go: Arc<Notify>,
    peers: AtomicI64,
    seen: AtomicUsize,
    waiting: AtomicUsize,
}

impl Handler for Echo {
    fn connected(&self, _: PeerId) {
        self.peers.fetch_add(1, Ordering::SeqCst);
    }

    fn message(&self, _: PeerId, message: Message, out: &mut Outbox, ticket: Ticket) {
        self.seen.fetch_add(1, Ordering::SeqCst);
        if message[0] != "later" {
            return out.push(message);
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let go = Arc::clone(&self.go);
        tokio::spawn(async move {
            tokio::select! {
                () = go.notified() => drop(ticket.send(message)),
                () = ticket.gone() => {}
            }
        });
    }

    fn disconnected(&self, _: PeerId) {
        self.peers.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(limits: Limits) -> (Arc<Echo>, String, tokio::task::JoinHandle<()>) {
    let router = Router::bind("tcp://127.0.0.1:0", limits).await.unwrap();
    let endpoint = router.endpoint().to_owned();
    let echo = Arc::new(Echo::default());
    let task = tokio::spawn(router.serve(echo.clone()));
    (echo, endpoint, task)
}

/// Nothing here may hang.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time")
}

async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn messages_of_megabytes_come_back_whole_and_in_order() {
    let (echo, endpoint, task) = serve(Limits::default()).await;
    let mut dealer = soon(Dealer::connect(&endpoint)).await.unwrap();
    for n in [0usize, 1, 255, 256, 330_000, 4 << 20] {
        let body: Bytes = (0..n).map(|i| (i * 31 % 251) as u8).collect();
        soon(dealer.send(&[&b"x"[..], &body, b""])).await.unwrap();
        let got = soon(dealer.receive()).await.unwrap();
        assert!(got.len() == 3 && got[1] == body, "{n} bytes");
    }
    for i in 0..500u32 {
        soon(dealer.send(&[i.to_be_bytes()])).await.unwrap();
    }
    for i in 0..500u32 {
        assert_eq!(soon(dealer.receive()).await.unwrap()[0][..], i.to_be_bytes());
    }
    drop(dealer);
    until(|| echo.peers.load(Ordering::SeqCst) == 0).await;
    task.abort();
}

#[tokio::test]
async fn what_is_answered_later_holds_nobody_up() {
    let (echo, endpoint, task) = serve(Limits::default()).await;
    let mut dealer = soon(Dealer::connect(&endpoint)).await.unwrap();
    soon(dealer.send(&["later"])).await.unwrap();
    soon(dealer.send(&["now"])).await.unwrap();
    assert_eq!(soon(dealer.receive()).await.unwrap(), ["now"]);
    until(|| echo.waiting.load(Ordering::SeqCst) == 1).await;
    echo.go.notify_waiters();
    assert_eq!(soon(dealer.receive()).await.unwrap(), ["later"]);
    task.abort();
}

#[tokio::test]
async fn at_the_limit_in_flight_nothing_more_is_read_until_something_is_answered() {
    let (echo, endpoint, task) = serve(Limits { in_flight: 3, ..Limits::default() }).await;
    let mut dealer = soon(Dealer::connect(&endpoint)).await.unwrap();
    for _ in 0..5 {
        soon(dealer.send(&["later"])).await.unwrap();
    }
    until(|| echo.seen.load(Ordering::SeqCst) == 3).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(echo.seen.load(Ordering::SeqCst), 3);
    until(|| {
        echo.go.notify_waiters();
        echo.seen.load(Ordering::SeqCst) == 5
    })
    .await;
    task.abort();
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off_and_others_do_not_notice() {
    let limits = Limits { send: Duration::from_millis(200), ..Limits::default() };
    let (echo, endpoint, task) = serve(limits).await;
    let mut deaf = soon(Dealer::connect(&endpoint)).await.unwrap();
    let big = vec![7u8; 4 << 20];
    // More than the sockets take: at some point sending fails, because this side hung up.
    let cut = soon(async {
        for _ in 0..64 {
            if tokio::time::timeout(Duration::from_secs(2), deaf.send(&[&big]))
                .await
                .is_ok_and(|sent| sent.is_err())
            {
                return true;
            }
        }
        false
    });
    let mut other = soon(Dealer::connect(&endpoint)).await.unwrap();
    soon(other.send(&["hello"])).await.unwrap();
    assert_eq!(soon(other.receive()).await.unwrap(), ["hello"]);
    assert!(cut.await);
    until(|| echo.peers.load(Ordering::SeqCst) == 1).await;
    task.abort();
}

#[tokio::test]
async fn hostile_bytes_end_their_own_connection_only() {
    let limits =
        Limits { message_bytes: 1 << 16, handshake: Duration::from_millis(200), ..Limits::default() };
    let (echo, endpoint, task) = serve(limits).await;
    let address = endpoint.strip_prefix("tcp://").unwrap().to_owned();
    let mut good = soon(Dealer::connect(&endpoint)).await.unwrap();
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    };
    for round in 0..40 {
        let mut socket = soon(TcpStream::connect(&address)).await.unwrap();
        let mut bytes: Vec<u8> = (0..2000).map(|_| random()).collect();
        match round % 4 {
            // Nothing but noise; a good greeting and then noise; a frame that announces too much; silence.
            0 => {}
            1 => bytes.splice(..0, greeting()).for_each(drop),
            2 => {
                bytes = greeting().to_vec();
                bytes.extend_from_slice(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
                bytes.extend_from_slice(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            }
            _ => bytes.clear(),
        }
        // It may have hung up before all of it is sent.
        let _ = socket.write_all(&bytes).await;
        let mut sink = Vec::new();
        let ended: io::Result<usize> = soon(socket.read_to_end(&mut sink)).await;
        drop(ended);
    }
    soon(good.send(&["still here"])).await.unwrap();
    assert_eq!(soon(good.receive()).await.unwrap(), ["still here"]);
    assert_eq!(echo.peers.load(Ordering::SeqCst), 1);
    task.abort();
}

#[tokio::test]
async fn messages_that_are_never_whole_take_no_more_than_their_room_and_end_in_time() {
    let limits = Limits {
        message_bytes: 1 << 20,
        unfinished_bytes: 4 << 20,
        receive: Duration::from_millis(1500),
        ..Limits::default()
    };
    let (echo, endpoint, task) = serve(limits).await;
    let address = endpoint.strip_prefix("tcp://").unwrap().to_owned();
    // Each sends all of a large message but its last byte, as far as this side takes it.
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move {
                let mut socket = TcpStream::connect(&address).await.unwrap();
                let mut bytes = greeting().to_vec();
                bytes.extend_from_slice(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
                bytes.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xff]);
                bytes.resize(bytes.len() + 0xf_fffe, 7);
                // Some of it waits in the sockets.
                let _ = socket.write_all(&bytes).await;
                let mut sink = Vec::new();
                let _ = socket.read_to_end(&mut sink).await;
            })
        })
        .collect();
    until(|| echo.peers.load(Ordering::SeqCst) == 40).await;
    // Small messages need no room, and a large one is served when there is room again.
    let mut good = soon(Dealer::connect(&endpoint)).await.unwrap();
    soon(good.send(&["hello"])).await.unwrap();
    assert_eq!(soon(good.receive()).await.unwrap(), ["hello"]);
    let big = vec![7u8; (1 << 20) - 1];
    for end in slow {
        soon(end).await.unwrap();
    }
    soon(good.send(&[&big])).await.unwrap();
    assert_eq!(soon(good.receive()).await.unwrap()[0], big);
    assert_eq!((echo.seen.load(Ordering::SeqCst), echo.peers.load(Ordering::SeqCst)), (2, 1));
    task.abort();
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_and_all_end_with_the_router() {
    let (echo, endpoint, task) = serve(Limits { connections: 2, ..Limits::default() }).await;
    let _a = soon(Dealer::connect(&endpoint)).await.unwrap();
    let mut b = soon(Dealer::connect(&endpoint)).await.unwrap();
    assert!(soon(Dealer::connect(&endpoint)).await.is_err());
    task.abort();
    assert!(soon(b.receive()).await.is_err());
    until(|| echo.peers.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_unix_socket_is_this_users_alone_replaced_when_stale_and_removed_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let endpoint = format!("ipc://{}", path.display());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let router = Router::bind(&endpoint, Limits::default()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = Router::bind(&endpoint, Limits::default()).await;
    assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let task = tokio::spawn(router.serve(Arc::new(Echo::default())));
    let mut socket = soon(tokio::net::UnixStream::connect(&path)).await.unwrap();
    let mut hello = [0; 64];
    soon(socket.read_exact(&mut hello)).await.unwrap();
    assert_eq!(hello, greeting());
    task.abort();
    let _ = task.await;
    assert!(!path.exists());
    for bad in ["5555", "tcp://", "udp://x:1", "ipc://"] {
        assert!(Router::bind(bad, Limits::default()).await.is_err(), "{bad}");
    }
}
