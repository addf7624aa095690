//! One adapter after the other, under its name.

use std::fmt;

use kvstrata_l2::{Miss, OpCounts, PartUsage, Phase};
use kvstrata_manager::AdapterUsage;

use crate::page::{Labels, Page};

pub(crate) fn write(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    room(page, adapters)?;
    checks(page, adapters)?;
    calls(page, adapters)?;
    health(page, adapters)?;
    parts(page, adapters)
}

fn of<'a>(adapter: &'a AdapterUsage, part: &'a PartUsage) -> Labels<'a> {
    with(adapter, &[("path", part.name.as_str())])
}

/// The paths of adapters that have several.
fn parts(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    let each = || adapters.iter().flat_map(|a| a.parts.iter().map(move |part| (a, part)));
    page.gauge(
        "kvstrata_l2_path",
        "1 for the state that a path is in: live, out, returning, closed",
        each().flat_map(|(a, part)| {
            let is = |state: &&'static str| {
                let labels = with(a, &[("path", part.name.as_str()), ("state", *state)]);
                (labels, f64::from(u8::from(part.state == *state)))
            };
            part.states.iter().map(is).collect::<Vec<_>>()
        }),
    )?;
    page.gauge(
        "kvstrata_l2_path_used_bytes",
        "Bytes taken on a path, headers and rounding included; 0 while it is closed",
        each().map(|(a, part)| (of(a, part), part.usage.used as f64)),
    )?;
    page.gauge(
        "kvstrata_l2_path_capacity_bytes",
        "The hard limit of a path; absent without one",
        each().filter_map(|(a, part)| Some((of(a, part), part.usage.capacity? as f64))),
    )?;
    page.gauge(
        "kvstrata_l2_path_objects",
        "Objects that can be found on a path",
        each().map(|(a, part)| (of(a, part), part.usage.objects as f64)),
    )?;
    page.counter(
        "kvstrata_l2_path_errors",
        "Keys that a path failed, those refused while it was out left aside",
        each().map(|(a, part)| (of(a, part), part.errors)),
    )?;
    page.counter(
        "kvstrata_l2_path_outages",
        "How often a path was taken out of service",
        each().map(|(a, part)| (of(a, part), part.outages)),
    )
}

fn with<'a>(adapter: &'a AdapterUsage, more: &[(&'a str, &'a str)]) -> Labels<'a> {
    [&[("adapter", adapter.name.as_str())], more].concat()
}

fn room(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    let known = || adapters.iter().filter_map(|a| Some((a, a.usage?)));
    let used = || known().map(|(a, u)| (with(a, &[]), u.used as f64));
    page.gauge("lmcache_mp_l2_usage_bytes", "Bytes taken, headers and rounding included", used())?;
    page.gauge("kvstrata_l2_used_bytes", "Bytes taken, headers and rounding included", used())?;
    page.gauge(
        "kvstrata_l2_capacity_bytes",
        "The hard limit; absent without one",
        known().filter_map(|(a, u)| Some((with(a, &[]), u.capacity? as f64))),
    )?;
    page.gauge(
        "kvstrata_l2_objects",
        "Objects that can be found",
        known().map(|(a, u)| (with(a, &[]), u.objects as f64)),
    )?;
    let evicted = || known().map(|(a, u)| (with(a, &[]), u.evicted));
    page.counter("kvstrata_l2_evicted", "Objects evicted for room", evicted())?;
    page.counter("lmcache_mp_l2_evicted_objects", "Objects evicted for room", evicted())?;
    page.counter(
        "kvstrata_l2_declined",
        "Stores declined for want of room",
        known().map(|(a, u)| (with(a, &[]), u.declined)),
    )
}

fn checks(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    page.counter(
        "kvstrata_l2_misses",
        "Loads that missed, by reason",
        adapters
            .iter()
            .flat_map(|a| Miss::ALL.map(|miss| (with(a, &[("reason", miss.name())]), a.checks.missed(miss)))),
    )?;
    page.counter(
        "kvstrata_l2_verified",
        "Loads by whether their digest was checked: it was, checking is off, the object has none, the bytes are a device's",
        adapters.iter().flat_map(|a| {
            let c = &a.checks;
            [
                ("verified", c.verified),
                ("off", c.unverified_off),
                ("no_digest", c.unverified_no_digest),
                ("device", c.unverified_device),
            ]
            .map(|(result, n)| (with(a, &[("result", result)]), n))
        }),
    )?;
    page.counter(
        "kvstrata_l2_healed",
        "Objects with wrong bytes, by whether they could be removed",
        adapters.iter().flat_map(|a| {
            [("removed", a.checks.healed), ("stuck", a.checks.unhealed)]
                .map(|(result, n)| (with(a, &[("result", result)]), n))
        }),
    )?;
    page.counter(
        "kvstrata_l2_refused",
        "Items refused before they reached the adapter",
        adapters.iter().map(|a| (with(a, &[]), a.checks.refused)),
    )
}

/// The kinds of calls, by name.
fn ops(adapter: &AdapterUsage) -> [(&'static str, &OpCounts); 5] {
    let m = &adapter.meter;
    [("put", &m.put), ("get", &m.get), ("probe", &m.probe), ("remove", &m.remove), ("list", &m.list)]
}

fn calls(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    let each = || adapters.iter().flat_map(|a| ops(a).map(|(op, counts)| (a, op, counts)));
    page.counter(
        "kvstrata_l2_calls",
        "Calls of the adapter",
        each().map(|(a, op, c)| (with(a, &[("op", op)]), c.calls)),
    )?;
    page.counter(
        "kvstrata_l2_keys",
        "Keys of those calls by how they ended; an outcome is listed from its first time on, ok always",
        each().flat_map(|(a, op, c)| {
            c.outcomes()
                .filter(|(outcome, n)| *n > 0 || *outcome == "ok")
                .map(move |(outcome, n)| (with(a, &[("op", op), ("outcome", outcome)]), n))
                .collect::<Vec<_>>()
        }),
    )?;
    let moving = || each().filter(|(_, op, _)| ["put", "get"].contains(op));
    page.counter(
        "kvstrata_l2_bytes",
        "Payload bytes written or loaded",
        moving().map(|(a, op, c)| (with(a, &[("op", op)]), c.bytes)),
    )?;
    page.seconds(
        "kvstrata_l2_duration_seconds",
        "From the call to each key's answer; of lookups, removals and listings: of the call",
        each().map(|(a, op, c)| (with(a, &[("op", op)]), c.latency)),
    )
}

fn health(page: &mut Page<'_>, adapters: &[AdapterUsage]) -> fmt::Result {
    let breakers = || adapters.iter().filter_map(|a| Some((a, a.breaker?)));
    page.gauge(
        "kvstrata_l2_breaker",
        "1 for the state the breaker is in: closed, open, half_open",
        breakers().flat_map(|(a, b)| {
            [Phase::Closed, Phase::Open, Phase::HalfOpen]
                .map(|phase| (with(a, &[("state", phase.name())]), f64::from(u8::from(b.phase == phase))))
        }),
    )?;
    page.counter(
        "kvstrata_l2_breaker_trips",
        "How often the breaker has opened, failed trials included",
        breakers().map(|(a, b)| (with(a, &[]), b.trips)),
    )?;
    page.counter(
        "kvstrata_l2_breaker_refused",
        "Calls refused by an open breaker",
        breakers().map(|(a, b)| (with(a, &[]), b.refused)),
    )?;
    let limits = || adapters.iter().filter_map(|a| Some((a, a.in_flight?)));
    page.gauge(
        "kvstrata_l2_in_flight_bytes",
        "Bytes given to the adapter and waiting to be, by direction",
        limits().flat_map(|(a, l)| {
            [
                ("load", "in_flight", l.loads_in_flight),
                ("store", "in_flight", l.stores_in_flight),
                ("load", "waiting", l.loads_waiting),
                ("store", "waiting", l.stores_waiting),
            ]
            .map(|(direction, state, n)| (with(a, &[("direction", direction), ("state", state)]), n as f64))
        }),
    )?;
    page.counter(
        "kvstrata_l2_limit_refused",
        "Keys refused because too much waits already, and keys whose deadline passed while they waited",
        limits().flat_map(|(a, l)| {
            [("full", l.refused), ("expired", l.expired)].map(|(why, n)| (with(a, &[("reason", why)]), n))
        }),
    )
}
