//! `kvstrata serve`: the cache server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use kvstrata_admin::Admin;
use kvstrata_config::{BuildContext, Resolved};
use kvstrata_core::{Error, ErrorKind};
use kvstrata_manager::Manager;
use kvstrata_mem::{Region, ShmRegion};
use kvstrata_otlp::Endpoint;
use kvstrata_server::zmq::Zmq;
use kvstrata_server::{Options, Pool, Service};
use kvstrata_zmtp::{Limits, Router};

use super::flags::ConfigFlags;
use super::lmcache_flags::OtherFlags;
use super::{serve_http, serve_spans};

/// Serve one cache to the engines of this machine
///
/// Clients of LMCache's multiprocess server (0.5.5 and later) talk to it unchanged, over ZeroMQ at tcp://HOST:PORT. The
/// flags are those of `lmcache server`, and every setting of `kvstrata config show` is a flag, too. Without any it chooses:
/// host memory that it shares with its clients, and a directory in the user's cache directory; it says so.
///
/// Example: kvstrata serve --l1-size-gb 8 --l2-adapter '{"type":"fs","base_path":"/var/cache/kv","max_capacity_gb":100}'
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The address to listen at. There is no authentication: whoever can connect can read the cache
    #[arg(long, default_value = "localhost")]
    host: String,
    /// The port of the clients' protocol; 0 takes a free one
    #[arg(long, default_value_t = 5555)]
    port: u16,
    /// Listen at this Unix socket, too
    #[arg(long, value_name = "PATH")]
    ipc: Option<String>,
    /// What carries the clients' protocol
    #[arg(long, value_enum, default_value_t = Transport::Zmq)]
    transport: Transport,
    /// After how many seconds without a word a worker that has pinged is forgotten; 0 never, else at least 30
    #[arg(long, default_value_t = 120.0, value_name = "SECONDS")]
    worker_reap_timeout_seconds: f64,
    /// The same for a worker that has never pinged
    #[arg(long, default_value_t = 3600.0, value_name = "SECONDS")]
    worker_registration_grace_seconds: f64,
    /// How long a session lives without a request; 0 for ever
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
    session_ttl_seconds: f64,
    /// How many changes of L1 are kept for those who follow them; 0 keeps none, and nobody can
    #[arg(long, default_value_t = 32768, value_name = "EVENTS")]
    kv_event_log_size: usize,
    /// The block that stands for none in the engines' block tables
    #[arg(long, default_value_t = 0, value_name = "BLOCK", allow_negative_numbers = true)]
    null_block_id: i64,
    /// The address of the HTTP interface. There is no authentication
    #[arg(long, default_value = "127.0.0.1")]
    http_host: String,
    /// Its port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Send a span of every request to this OpenTelemetry collector, http://HOST[:PORT][/PATH], over OTLP/HTTP (usually port
    /// 4318, where gRPC has 4317). Metrics stay at /metrics
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<Endpoint>,
    #[command(flatten)]
    other: OtherFlags,
    #[command(flatten)]
    config: ConfigFlags,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Transport {
    Zmq,
    Grpc,
}

/// A refusal of a flag.
fn refused(flag: &'static str, why: impl Into<String>) -> anyhow::Error {
    Error::invalid("serve", why).with("flag", flag).into()
}

pub(crate) fn seconds(flag: &'static str, n: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(n).map_err(|_| refused(flag, format!("{n} is no number of seconds")))
}

impl ServeArgs {
    /// What becomes of the flags that are the server's own. Takes those out of the settings that mean more here.
    fn options(&mut self) -> Result<Options> {
        if let Transport::Grpc = self.transport {
            return Err(refused(
                "transport",
                "gRPC is not built in this version: clients dial tcp://HOST:PORT by default",
            ));
        }
        self.other.check()?;
        let defaults = Options::default();
        let mut lease = |flag: &'static str, default: Duration| match self.config.take(flag) {
            None => Ok(default),
            Some(text) => {
                let n = text
                    .trim()
                    .parse()
                    .map_err(|_| refused(flag, format!("'{text}' is no number of seconds")))?;
                seconds(flag, n).and_then(|d| {
                    if d.is_zero() { Err(refused(flag, "that has to be more than 0")) } else { Ok(d) }
                })
            }
        };
        let (write_lease, read_lease) = (
            lease("l1-write-ttl-seconds", defaults.write_lease)?,
            lease("l1-read-ttl-seconds", defaults.read_lease)?,
        );
        let reap = self.worker_reap_timeout_seconds;
        if reap != 0.0 && !(30.0..).contains(&reap) {
            return Err(refused(
                "worker-reap-timeout-seconds",
                "that is 0, which turns it off, or at least 30",
            ));
        }
        Ok(Options {
            write_lease,
            read_lease,
            reap_timeout: seconds("worker-reap-timeout-seconds", reap)?,
            registration_grace: seconds(
                "worker-registration-grace-seconds",
                self.worker_registration_grace_seconds,
            )?,
            null_block: self.null_block_id,
            event_log: self.kv_event_log_size,
            incarnation: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64),
            session_ttl: seconds("session-ttl-seconds", self.session_ttl_seconds)?,
            ..defaults
        })
    }

    /// The settings, with what nobody gave: a name for the shared memory, and, if nothing at all was said about tiers, a
    /// small cache in memory and on disk.
    fn settings(&mut self) -> Result<Resolved> {
        let given = self.config.resolve_silently()?;
        let unset = |path: &str| given.origin(path) == "default";
        let name = given.settings.l1.shm_name.clone().unwrap_or_else(|| format!("kvstrata_{}", self.port));
        ["shm-name", "l1-shm-name"].into_iter().for_each(|flag| drop(self.config.take(flag)));
        self.config.set("l1-shm-name", Pool::name_for(&name));
        // The pool is faulted in behind the start, whatever is said: nobody waits for gigabytes of zeros.
        ["l1-prefault", "no-l1-prefault", "l1-use-lazy", "no-l1-use-lazy"]
            .into_iter()
            .for_each(|flag| drop(self.config.take(flag)));
        self.config.set("l1-prefault", "false");
        if ["l1.size", "l2.adapters", "local_disk.path", "local_cpu"].into_iter().all(unset) {
            let memory = kvstrata_mem::machine_memory();
            let size = (memory / 4).min(given.settings.l1.size.0) & !((2 << 20) - 1);
            self.config.set("l1-size", size.to_string());
            match kvstrata_config::user_cache_directory() {
                Some(cache) => {
                    let path = cache.join("kvstrata");
                    let adapter = serde_json::json!({ "type": "fs", "base_path": path, "max_capacity_gb": EMBEDDED_DISK_GB });
                    self.config.set("l2-adapter", adapter.to_string());
                    println!(
                        "no tiers were given: {} MiB of shared memory and at most {EMBEDDED_DISK_GB} GiB in {}",
                        size >> 20,
                        path.display()
                    );
                }
                None => println!(
                    "no tiers were given: {} MiB of shared memory, and no disk, since the environment names no cache \
                     directory",
                    size >> 20
                ),
            }
        }
        self.config.resolve()
    }

    fn endpoint(&self) -> String {
        // As ZeroMQ does, whatever the resolver puts first.
        let host = if self.host == "localhost" { "127.0.0.1" } else { &self.host };
        format!("tcp://{}:{}", host.trim_start_matches("tcp://"), self.port)
    }
}

/// What the embedded default keeps on disk.
const EMBEDDED_DISK_GB: u32 = 16;

/// A server that runs.
struct Server {
    service: Service,
    manager: Manager,
    shm: Option<Arc<ShmRegion>>,
    admin: Admin,
    shutdown_timeout: Duration,
}

impl Server {
    fn open(mut options: Options, resolved: &Resolved, tiers: tokio::runtime::Handle) -> Result<Self> {
        let cx = BuildContext::tokio(tiers);
        let components = resolved.build(&cx)?;
        let shm = components.shm.clone();
        options.pool = shm.as_ref().map(|region| Pool {
            name: region.name().trim_start_matches('/').to_owned(),
            bytes: region.len() as u64,
        });
        options.chunk_tokens = resolved.settings.chunk_size as usize;
        options.lookup_timeout = resolved.settings.deadlines.load_timeout;
        let listed = serve_http::listed(resolved, &components);
        let manager = components.into_manager(&cx)?;
        let service = Service::new(manager.clone(), cx.l2, options)?;
        let admin = serve_http::admin(manager.clone(), &service, resolved, listed);
        Ok(Self {
            service,
            manager,
            shm,
            admin,
            shutdown_timeout: resolved.settings.deadlines.shutdown_timeout,
        })
    }

    /// Faults the pool in on a thread of its own, so that no client pays for first touches, and nobody waits for it.
    fn fault_in(&self) {
        let Some(region) = self.shm.as_ref().map(Arc::downgrade) else { return };
        tokio::task::spawn_blocking(move || {
            const STEP: usize = 32 << 20;
            let begun = Instant::now();
            let mut at = 0;
            // The region may go meanwhile.
            while let Some(region) = region.upgrade().filter(|r| at < r.len()) {
                let end = (at + STEP).min(region.len());
                if let Err(e) = region.populate(at..end) {
                    tracing::warn!(error = %e, "shared memory is not faulted in beforehand");
                    return;
                }
                at = end;
            }
            tracing::info!(mib = at >> 20, took = ?begun.elapsed(), "shared memory is faulted in");
        });
    }

    /// No client is served any more: what is in flight to L2 is finished within the limit, and everything is closed.
    async fn close(self) -> Result<()> {
        self.service.close();
        Ok(self.manager.shutdown(self.shutdown_timeout).await?)
    }
}

/// How long a start waits for one that was killed to be gone: the kernel gives up a port, a name and a lock only when it has
/// torn down the process's memory, and a pool of many gigabytes takes a while.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// Tries again while somebody else holds what is wanted, for a while.
async fn patiently<T, E>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
    held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let until = Instant::now() + PREDECESSOR;
    loop {
        match attempt().await {
            Err(e) if held(&e) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            done => return done,
        }
    }
}

async fn listen(endpoint: &str) -> Result<Router> {
    let bound = patiently(
        async || Router::bind(endpoint, Limits::default()).await,
        |e: &std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse,
    );
    Ok(bound.await.map_err(|e| Error::io("listen", e).with("endpoint", endpoint))?)
}

pub(crate) async fn run(mut args: ServeArgs) -> Result<bool> {
    let options = args.options()?;
    let resolved = args.settings()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    // Bound first: whoever finds the port taken has made nothing.
    let mut routers = vec![listen(&args.endpoint()).await?];
    if let Some(path) = &args.ipc {
        let endpoint = format!("ipc://{path}");
        routers.push(listen(&endpoint).await?);
    }
    let address = format!("{}:{}", args.http_host, args.http_port);
    let http = patiently(
        async || tokio::net::TcpListener::bind(&address).await,
        |e| e.kind() == std::io::ErrorKind::AddrInUse,
    )
    .await
    .map_err(|e| Error::io("listen", e).with("http", &address))?;
    // Digests and copies take a thread for milliseconds at a time. On threads of their own they delay no answer.
    let tiers =
        tokio::runtime::Builder::new_multi_thread().thread_name("kvstrata-tiers").enable_all().build()?;
    let busy = |e: &anyhow::Error| e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::Busy);
    let opened =
        patiently(async || Server::open(options.clone(), &resolved, tiers.handle().clone()), busy).await;
    let server = match opened {
        Ok(server) => server,
        Err(e) => {
            // It cannot be dropped where tasks run.
            tiers.shutdown_background();
            return Err(e);
        }
    };
    if let Some(endpoint) = args.otlp_endpoint.take() {
        serve_spans::send(&server.service, endpoint, options.incarnation);
    }
    let zmq = Arc::new(Zmq::new(server.service.clone(), Arc::new(tokio::runtime::Handle::current())));
    for router in &routers {
        println!("listening at {}", router.endpoint());
    }
    println!("HTTP at http://{}", http.local_addr()?);
    if let Some(shm) = &server.shm {
        println!("shared memory {} of {} MiB", shm.name(), shm.len() >> 20);
    }
    println!("ready");
    server.fault_in();
    let serving: Vec<_> = routers.into_iter().map(|r| tokio::spawn(r.serve(zmq.clone()))).collect();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let http = kvstrata_admin::serve(http, server.admin.clone(), async {
        let _ = stopped.await;
    });
    let http = tokio::spawn(http);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(stop);
    tracing::info!("shutting down");
    for task in serving {
        task.abort();
        let _ = task.await;
    }
    http.abort();
    let closed = server.close().await;
    tiers.shutdown_background();
    closed.map(|()| true)
}

/// What becomes of a command line, up to where something would be opened.
#[cfg(test)]
pub(super) fn trial(line: &[&str]) -> Result<Resolved> {
    let cli = <super::Cli as clap::Parser>::try_parse_from(line)?;
    let super::Command::Serve(mut args) = cli.command else { anyhow::bail!("that serves nothing") };
    args.options()?;
    args.settings()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_flag_makes_the_start_wait_for_the_pool() {
        for flag in [&[][..], &["--no-l1-use-lazy"], &["--l1-use-lazy"], &["--l1-prefault", "--l1-size-gb=2"]]
        {
            let line = [&["kvstrata", "serve", "--shm-name", "a"], flag].concat();
            assert!(!super::trial(&line).unwrap().settings.l1.prefault, "{flag:?}");
        }
    }
}
