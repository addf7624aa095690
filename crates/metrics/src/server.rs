//! What a cache server counts of its clients.

use std::fmt;

use kvstrata_server::{Counts, RequestCounts, Service, Status, TenantCounts};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::page::{Labels, Page};

/// The metrics of a server: its clients' requests, sessions and workers. They stand beside those of its manager
/// ([`Metrics`](crate::Metrics)).
#[derive(Debug)]
pub struct ServerMetrics(Service);

impl ServerMetrics {
    /// Those of this service, which is kept alive by them.
    pub fn of(service: Service) -> Self {
        Self(service)
    }
}

impl Collector for ServerMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (status, requests) = (self.0.status(), self.0.request_counts());
        let mut page = Page(encoder);
        now(&mut page, &status)?;
        self::requests(&mut page, &status.counts, &requests)?;
        transfers(&mut page, &status.counts)?;
        tenants(&mut page, &requests.tenants, status.chunk_tokens as u64)?;
        theirs(&mut page, &status, &requests.tenants)
    }
}

fn now(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.gauge(
        "kvstrata_server_sessions",
        "Requests of engines that are remembered",
        [(vec![], status.sessions as f64)],
    )?;
    page.gauge(
        "kvstrata_server_lookups_running",
        "Lookups that are not over",
        [(vec![], status.lookups_running as f64)],
    )?;
    let workers = |connected| status.workers.iter().filter(move |w| w.connected == connected).count() as f64;
    page.gauge(
        "kvstrata_server_workers",
        "Registered workers, by whether a connection of theirs is open",
        [("yes", true), ("no", false)].map(|(label, is)| (vec![("connected", label)], workers(is))),
    )?;
    page.gauge(
        "kvstrata_server_locked_chunks",
        "Chunks that finished lookups keep for their readers",
        [(vec![], status.locked_chunks as f64)],
    )?;
    page.gauge(
        "kvstrata_server_leases",
        "Transfers that are prepared and not committed: in time, and those whose buffers are kept though their time is over",
        [("live", status.leases), ("quarantined", status.quarantined)]
            .map(|(state, n)| (vec![("state", state)], n as f64)),
    )?;
    page.gauge(
        "kvstrata_server_followers",
        "Clients that follow the stream of events",
        [(vec![], status.followers as f64)],
    )?;
    let oldest = &status.oldest;
    page.gauge(
        "kvstrata_server_oldest_pin_seconds",
        "Age of the oldest pin, by who holds it: a finished lookup, a worker that fills, a worker that reads; 0 without one",
        [("lookup", oldest.lookup), ("write", oldest.write), ("read", oldest.read)]
            .map(|(holder, age)| (vec![("holder", holder)], age.unwrap_or_default().as_secs_f64())),
    )
}

fn requests(page: &mut Page<'_>, counts: &Counts, requests: &RequestCounts) -> fmt::Result {
    page.counter(
        "kvstrata_server_requests",
        "Messages of clients, unreadable ones included",
        [(vec![], counts.requests)],
    )?;
    let operations = || requests.operations.iter().map(|o| (vec![("operation", o.name)], o));
    page.counter(
        "kvstrata_server_requests_refused",
        "Requests that were answered with no, by operation",
        operations().map(|(labels, o)| (labels, o.refused)),
    )?;
    page.counter(
        "kvstrata_server_refused",
        "Messages that were answered with no, or could not even be read",
        [(vec![], counts.refused)],
    )?;
    page.seconds(
        "kvstrata_server_request_duration_seconds",
        "From a request to its answer, by operation",
        operations().map(|(labels, o)| (labels, o.latency)),
    )?;
    page.seconds(
        "kvstrata_server_lookup_duration_seconds",
        "From the beginning of a lookup to its end, loads from L2 included",
        [(vec![], requests.lookup_latency)],
    )?;
    page.counter(
        "kvstrata_server_lookup_ends",
        "Lookups by why they found no more: they found all, a shard lacks the next chunk, it could not be loaded, no worker \
         of the model is registered, the prompt fills no chunk",
        requests.lookup_ends.map(|(end, n)| (vec![("reason", end.name())], n)),
    )
}

fn transfers(page: &mut Page<'_>, c: &Counts) -> fmt::Result {
    let by = |what: [(&'static str, u64); 3]| what.map(|(result, n)| (vec![("result", result)], n));
    page.counter(
        "kvstrata_server_stores",
        "Stores of workers: prepared with room granted, published, dropped unseen",
        by([
            ("prepared", c.stores_prepared),
            ("committed", c.stores_committed),
            ("aborted", c.stores_aborted),
        ]),
    )?;
    page.counter(
        "kvstrata_server_retrieves",
        "Retrievals of workers: prepared, finished, refused because not all was there",
        by([
            ("prepared", c.retrieves_prepared),
            ("committed", c.retrieves_committed),
            ("missed", c.retrieves_missed),
        ]),
    )?;
    page.counter(
        "kvstrata_server_bytes",
        "Bytes that workers stored and read",
        [("stored", c.stored_bytes), ("retrieved", c.retrieved_bytes)]
            .map(|(what, n)| (vec![("what", what)], n)),
    )?;
    for (name, help, n) in [
        ("hashed_chunks", "Chunks whose tokens were hashed, once per request of an engine", c.chunks_hashed),
        ("chunks_declined", "Chunks that were refused room", c.chunks_declined),
        (
            "leases_lapsed",
            "Transfers that ran out while their worker may still have been at it",
            c.leases_lapsed,
        ),
        ("workers_reaped", "Workers that were forgotten because they were silent", c.workers_reaped),
        ("sessions_expired", "Sessions that ended because nobody asked about them", c.sessions_expired),
    ] {
        page.counter(&format!("kvstrata_server_{name}"), help, [(vec![], n)])?;
    }
    Ok(())
}

fn tenant(t: &TenantCounts) -> Labels<'_> {
    vec![("model_name", &t.model), ("cache_salt", &t.salt)]
}

fn tenants(page: &mut Page<'_>, tenants: &[TenantCounts], chunk_tokens: u64) -> fmt::Result {
    page.counter(
        "kvstrata_server_tokens",
        "Tokens of chunks that workers stored and read, each shard's counted",
        tenants.iter().flat_map(|t| {
            [("stored", t.stored_chunks), ("retrieved", t.retrieved_chunks)]
                .map(|(what, chunks)| ([tenant(t), vec![("what", what)]].concat(), chunks * chunk_tokens))
        }),
    )
}

/// What LMCache's dashboards ask for.
fn theirs(page: &mut Page<'_>, status: &Status, tenants: &[TenantCounts]) -> fmt::Result {
    type Count = fn(&TenantCounts) -> u64;
    let counters: [(&str, &str, Count); 8] = [
        ("lookups_requests", "Lookups that ended", |t| t.lookups),
        ("lookup_requested_tokens", "Tokens of whole chunks that were looked up", |t| t.requested_tokens),
        ("lookup_hit_tokens", "Of those, tokens that were found", |t| t.hit_tokens),
        ("lookup_hit_l1_tokens", "Of those, tokens that every shard had in L1", |t| t.hit_l1_tokens),
        ("lookup_hit_l2_tokens", "Of those, the others", |t| t.hit_tokens - t.hit_l1_tokens),
        ("lookup_hit_l1_keys", "Objects that lookups found in L1", |t| t.hit_l1_keys),
        ("lookup_hit_l2_keys", "Objects that lookups loaded from L2", |t| t.hit_l2_keys),
        ("num_chunks_loaded", "Chunks that workers read", |t| t.retrieved_chunks),
    ];
    for (name, help, count) in counters {
        page.counter(&format!("lmcache_mp_{name}"), help, tenants.iter().map(|t| (tenant(t), count(t))))?;
    }
    let c = &status.counts;
    for (name, help, n) in [
        ("num_submitted_stores", "Stores that were prepared", c.stores_prepared),
        ("num_finished_stores", "Stores that were published", c.stores_committed),
        ("num_submitted_retrieves", "Retrievals that were prepared", c.retrieves_prepared),
        ("num_finished_retrieves", "Retrievals that were finished", c.retrieves_committed),
    ] {
        page.counter(&format!("lmcache_mp_{name}"), help, [(vec![("device", "cpu")], n)])?;
    }
    page.gauge(
        "lmcache_mp_active_prefetch_jobs",
        "Lookups that are not over",
        [(vec![], status.lookups_running as f64)],
    )
}
