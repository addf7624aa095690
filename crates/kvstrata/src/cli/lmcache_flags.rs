//! Flags of `lmcache server` that mean something else here, or nothing.

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kvstrata_core::Error;

/// What a flag of LMCache's server is here.
#[derive(Clone, Copy)]
enum Here {
    /// Accepted, and has no effect for this reason.
    NoEffect(&'static str),
    /// Only these values mean what is done here anyway.
    Only(&'static [&'static str], &'static str),
    /// Refused for this reason.
    Refused(&'static str),
}

use Here::{NoEffect, Only, Refused};

const THREADS: &str = "requests do not queue for workers here";
const PEERS: &str = "transfers between servers are not built in this version";
const COORDINATOR: &str = "the coordinator is not built in this version";
const CODE: &str = "this server runs no code that it is sent";
const HASH_LOG: &str = "lookups are not logged by hash in this version";
const DEVICE: &str = "device memory is not mapped in this version";
const GC: &str = "there is no garbage collector";
const BUS: &str = "there is no event bus: counting is done where things happen";

const LOG: &str = "--log says what is logged";
const RECORD: &str = "requests are not recorded in this version";
const TABLE: &str = "the server prints no table";

/// The flags, without those that are settings or the command's own. A switch takes no value.
const FLAGS: &[(&str, bool, Here)] = &[
    ("max-workers", false, NoEffect(THREADS)),
    ("max-gpu-workers", false, NoEffect(THREADS)),
    ("max-cpu-workers", false, NoEffect(THREADS)),
    ("grpc-server-workers", false, NoEffect(THREADS)),
    ("hash-algorithm", false, Only(&["blake3"], "only blake3 is the same in every process and program")),
    ("engine-type", false, Only(&["default"], "blending is not built in this version")),
    (
        "supported-transfer-mode",
        false,
        Only(
            &["lmcache_driven", "engine_driven", "auto"],
            "both modes are served: device memory in engine_driven only, host memory in either",
        ),
    ),
    ("isolated-ipc", true, Refused(DEVICE)),
    ("no-isolated-ipc", true, NoEffect(DEVICE)),
    ("instance-id", false, NoEffect("nothing here needs the server's name")),
    ("runtime-plugin-locations", false, Refused(CODE)),
    ("runtime-plugin-config", false, Refused(CODE)),
    ("script-allowed-imports", false, Refused(CODE)),
    ("run-script-api-enabled", true, Refused(CODE)),
    ("server-module", false, Refused(CODE)),
    ("separate-object-groups", true, Refused("a chunk is one object in this version")),
    ("enable-segmented-prefix", true, Refused("only prefixes are looked up in this version")),
    (
        "enable-dedup-content",
        true,
        Refused("equal contents under different names are not shared in this version"),
    ),
    ("enable-blend-reorder", true, Refused("blending is not built in this version")),
    ("enable", false, Refused("there are no experimental transfers in this version")),
    ("p2p-advertise-url", false, Refused(PEERS)),
    ("p2p-listen-url", false, Refused(PEERS)),
    ("p2p-lookup-timeout", false, Refused(PEERS)),
    ("p2p-load-timeout", false, Refused(PEERS)),
    ("p2p-transfer-engine", false, Refused(PEERS)),
    ("coordinator-url", false, Refused(COORDINATOR)),
    ("coordinator-advertise-ip", false, Refused(COORDINATOR)),
    ("coordinator-heartbeat-interval", false, Refused(COORDINATOR)),
    ("coordinator-event-reporting", true, Refused(COORDINATOR)),
    ("coordinator-event-flush-interval", false, Refused(COORDINATOR)),
    ("coordinator-event-transport", false, Refused(COORDINATOR)),
    ("coordinator-kafka-bootstrap-servers", false, Refused(COORDINATOR)),
    ("coordinator-kafka-topic", false, Refused(COORDINATOR)),
    ("coordinator-kafka-delivery-timeout", false, Refused(COORDINATOR)),
    ("coordinator-blend-timeout", false, Refused(COORDINATOR)),
    ("coordinator-blend-match-concurrency", false, Refused(COORDINATOR)),
    ("lookup-hash-log-dir", false, Refused(HASH_LOG)),
    ("lookup-hash-log-rotation-interval", false, NoEffect(HASH_LOG)),
    ("lookup-hash-log-rotation-max-size", false, NoEffect(HASH_LOG)),
    ("lookup-hash-log-max-files", false, NoEffect(HASH_LOG)),
    ("disable-observability", true, NoEffect(BUS)),
    ("disable-grpc-metrics", true, NoEffect("there is no gRPC")),
    ("event-bus-queue-size", false, NoEffect(BUS)),
    ("metrics-sample-rate", false, NoEffect("everything is counted")),
    ("enable-gc-monitor", true, NoEffect(GC)),
    ("gc-monitor-min-pause-ms", false, NoEffect(GC)),
    ("gc-monitor-top-objects", false, NoEffect(GC)),
    ("extra-logging-interval", false, NoEffect(LOG)),
    ("disable-logging", true, NoEffect(LOG)),
    ("disable-metrics", true, NoEffect("counting costs nothing that could be saved")),
    ("prometheus-port", false, NoEffect("metrics are at /metrics of --http-port")),
    ("enable-tracing", true, NoEffect("spans are sent where --otlp-endpoint says, if it is given")),
    ("trace-level", false, Refused(RECORD)),
    ("trace-output", false, Refused(RECORD)),
    ("format", false, NoEffect(TABLE)),
    ("output", false, NoEffect(TABLE)),
    ("quiet", true, NoEffect(TABLE)),
];

/// What was given of these flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct OtherFlags(Vec<(&'static str, String)>);

impl OtherFlags {
    /// Refuses what cannot be had, by name and with the reason; says once what has no effect.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in &self.0 {
            let Some((_, switch, here)) = FLAGS.iter().find(|(n, ..)| n == name) else { continue };
            let refusal = |why: &str| Error::invalid("serve", why).with("flag", format_args!("--{name}"));
            match here {
                Refused(why) => {
                    let e = refusal(why);
                    return Err(if *switch { e } else { e.with("value", value) }.into());
                }
                Only(good, why) if !good.contains(&value.as_str()) => {
                    let e = refusal(why).with("value", value);
                    return Err(e.with("accepted", good.join(", ")).into());
                }
                Only(..) => {}
                NoEffect(why) => tracing::warn!("--{name} has no effect: {why}"),
            }
        }
        Ok(())
    }
}

impl Args for OtherFlags {
    fn augment_args(cmd: Command) -> Command {
        FLAGS.iter().fold(cmd.next_help_heading("Flags of lmcache server"), |cmd, (name, switch, here)| {
            let help = match here {
                NoEffect(why) => format!("accepted without effect: {why}"),
                Only(good, why) => format!("{}: {why}", good.join(", ")),
                Refused(why) => format!("refused: {why}"),
            };
            let arg = Arg::new(*name).long(*name).help(help).hide_short_help(true);
            let arg = if *name == "quiet" { arg.short('q') } else { arg };
            cmd.arg(if *switch {
                arg.action(ArgAction::SetTrue)
            } else {
                arg.action(ArgAction::Append).allow_hyphen_values(true).value_name("VALUE")
            })
        })
    }

    fn augment_args_for_update(cmd: Command) -> Command {
        Self::augment_args(cmd)
    }
}

impl FromArgMatches for OtherFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (name, switch, _) in FLAGS {
            if *switch {
                self.0.extend(matches.get_flag(name).then(|| (*name, String::new())));
            } else {
                let given = matches.get_many::<String>(name).into_iter().flatten();
                self.0.extend(given.map(|v| (*name, v.clone())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_refused_accepted_or_without_effect_as_the_table_says() {
        for (name, _, here) in FLAGS {
            let with = |value: &str| OtherFlags(vec![(*name, value.to_owned())]).check();
            match here {
                Refused(why) => {
                    let e = with("x").unwrap_err().to_string();
                    assert!(e.contains(why) && e.contains(&format!("--{name}")), "{e}");
                }
                Only(good, _) => {
                    good.iter().for_each(|value| with(value).unwrap());
                    let e = with("another").unwrap_err().to_string();
                    assert!(e.contains("value: another") && e.contains(good[0]), "{e}");
                }
                NoEffect(_) => with("7").unwrap(),
            }
        }
    }

    /// Every flag of `lmcache server` 0.5.6 with a value that it takes there, mostly its default; an empty one is a
    /// switch.
    const ALL: &[(&str, &str)] = &[
        ("instance-id", "a"),
        ("transport", "zmq"),
        ("host", "localhost"),
        ("port", "5555"),
        ("chunk-size", "256"),
        ("null-block-id", "0"),
        ("max-workers", "1"),
        ("max-gpu-workers", "1"),
        ("max-cpu-workers", "1"),
        ("grpc-server-workers", "32"),
        ("hash-algorithm", "blake3"),
        ("engine-type", "default"),
        ("supported-transfer-mode", "auto"),
        ("isolated-ipc", ""),
        ("no-isolated-ipc", ""),
        ("runtime-plugin-locations", "p"),
        ("runtime-plugin-config", "{}"),
        ("shm-name", "a"),
        ("script-allowed-imports", "os"),
        ("run-script-api-enabled", ""),
        ("separate-object-groups", ""),
        ("worker-reap-timeout-seconds", "120"),
        ("session-ttl-seconds", "600"),
        ("worker-registration-grace-seconds", "3600"),
        ("enable-segmented-prefix", ""),
        ("enable-dedup-content", ""),
        ("enable-blend-reorder", ""),
        ("enable", "transfer_query"),
        ("kv-event-log-size", "32768"),
        ("server-module", "{}"),
        ("p2p-advertise-url", "a"),
        ("p2p-listen-url", "a"),
        ("p2p-lookup-timeout", "30"),
        ("p2p-load-timeout", "30"),
        ("p2p-transfer-engine", "nixl"),
        ("l1-manager", "{}"),
        ("l1-size-gb", "1"),
        ("l1-use-lazy", ""),
        ("no-l1-use-lazy", ""),
        ("l1-init-size-gb", "20"),
        ("l1-align-bytes", "4096"),
        ("l1-use-hugepages", ""),
        ("l1-devdax-path", "/dev/dax0.0"),
        ("gds-l1-path", "/p"),
        ("gds-l1-use-direct-io", ""),
        ("gds-l1-backend", "auto"),
        ("l1-write-ttl-seconds", "600"),
        ("l1-read-ttl-seconds", "300"),
        ("eviction-policy", "LRU"),
        ("eviction-trigger-watermark", "0.8"),
        ("eviction-ratio", "0.2"),
        ("l2-store-policy", "default"),
        ("l2-prefetch-policy", "default"),
        ("l2-prefetch-max-in-flight", "8"),
        ("periodic-notifier-interval-ms", "5"),
        ("l2-adapter", r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":10}"#),
        ("http-host", "127.0.0.1"),
        ("http-port", "8080"),
        ("disable-observability", ""),
        ("disable-metrics", ""),
        ("disable-grpc-metrics", ""),
        ("disable-logging", ""),
        ("enable-tracing", ""),
        ("otlp-endpoint", "http://localhost:4317"),
        ("event-bus-queue-size", "10000"),
        ("prometheus-port", "9090"),
        ("metrics-sample-rate", "0.01"),
        ("lookup-hash-log-dir", "/p"),
        ("lookup-hash-log-rotation-interval", "21600"),
        ("lookup-hash-log-rotation-max-size", "104857600"),
        ("lookup-hash-log-max-files", "100"),
        ("enable-gc-monitor", ""),
        ("gc-monitor-min-pause-ms", "1"),
        ("gc-monitor-top-objects", "0"),
        ("enable-extra-logging", ""),
        ("extra-logging-interval", "10"),
        ("trace-level", "storage"),
        ("trace-output", "/p"),
        ("coordinator-url", "a"),
        ("coordinator-advertise-ip", "a"),
        ("coordinator-heartbeat-interval", "5"),
        ("coordinator-event-reporting", ""),
        ("coordinator-event-flush-interval", "1"),
        ("coordinator-event-transport", "http"),
        ("coordinator-kafka-bootstrap-servers", "a"),
        ("coordinator-kafka-topic", "a"),
        ("coordinator-kafka-delivery-timeout", "300"),
        ("coordinator-blend-timeout", "1"),
        ("coordinator-blend-match-concurrency", "8"),
        ("format", "json"),
        ("output", "/p"),
        ("quiet", ""),
    ];

    /// Those that are refused with such a value. The others are taken, or have no effect.
    const REFUSED: &[&str] = &[
        "isolated-ipc",
        "runtime-plugin-locations",
        "runtime-plugin-config",
        "script-allowed-imports",
        "run-script-api-enabled",
        "separate-object-groups",
        "enable-segmented-prefix",
        "enable-dedup-content",
        "enable-blend-reorder",
        "enable",
        "server-module",
        "p2p-advertise-url",
        "p2p-listen-url",
        "p2p-lookup-timeout",
        "p2p-load-timeout",
        "p2p-transfer-engine",
        "l1-manager",
        "l1-use-hugepages",
        "l1-devdax-path",
        "gds-l1-path",
        "gds-l1-use-direct-io",
        "gds-l1-backend",
        "lookup-hash-log-dir",
        "trace-level",
        "trace-output",
        "coordinator-url",
        "coordinator-advertise-ip",
        "coordinator-heartbeat-interval",
        "coordinator-event-reporting",
        "coordinator-event-flush-interval",
        "coordinator-event-transport",
        "coordinator-kafka-bootstrap-servers",
        "coordinator-kafka-topic",
        "coordinator-kafka-delivery-timeout",
        "coordinator-blend-timeout",
        "coordinator-blend-match-concurrency",
    ];

    #[test]
    fn every_flag_of_lmcaches_server_is_accounted_for() {
        let mut wrong = Vec::new();
        for (name, value) in ALL {
            let flag = format!("--{name}");
            let with = [flag.as_str(), value];
            let given = if value.is_empty() { &with[..1] } else { &with[..] };
            // No disk of this machine is touched: a tier is named, and nothing is opened.
            let size: &[&str] = if *name == "l1-size-gb" { &[] } else { &["--l1-size-gb", "1"] };
            let line = [&["kvstrata", "serve"], size, given].concat();
            let refusal = crate::cli::serve::trial(&line).err().map(|e| format!("{e:#}"));
            match (refusal, REFUSED.contains(name)) {
                (None, false) => {}
                (Some(e), true) if e.contains(name) => {}
                (refusal, _) => wrong.push(format!("--{name} {value}: {refusal:?}")),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(REFUSED.iter().all(|name| ALL.iter().any(|(n, _)| n == name)));
    }
}
