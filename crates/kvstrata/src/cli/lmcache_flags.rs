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
    ("extra-logging-interval", false, NoEffect("the log filter says what is logged")),
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
}
