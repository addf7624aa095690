//! The flags of the configuration, as the `config` crate lists them.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kvstrata_config::{FlagSpec, Resolved, flag_specs};

/// A configuration file and settings from the command line. Every setting of `kvstrata config show` is a flag too, and so
/// are LMCache's names for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFlags {
    file: Option<PathBuf>,
    values: Vec<(String, String)>,
}

impl ConfigFlags {
    /// The settings of all layers. What there is to say about them is said.
    pub(crate) fn resolve(&self) -> Result<Resolved> {
        let resolved = self.resolve_silently()?;
        for warning in &resolved.warnings {
            tracing::warn!("{warning}");
        }
        Ok(resolved)
    }

    /// Takes a flag out whose meaning is the command's own; the last of several counts.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.values.extract_if(.., |(n, _)| n == name).map(|(_, v)| v).last()
    }

    /// Sets what nobody gave, as if by a flag.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.values.push((name.into(), value.into()));
    }

    /// The settings of all layers, for a command that shows the warnings itself.
    pub(crate) fn resolve_silently(&self) -> Result<Resolved> {
        Ok(kvstrata_config::load(self.file.as_deref(), &self.values)?)
    }
}

impl Args for ConfigFlags {
    fn augment_args(cmd: Command) -> Command {
        let cmd = cmd.next_help_heading("Configuration").arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("A TOML or YAML file of settings; the environment (KVSTRATA_…) and flags override it"),
        );
        flag_specs().into_iter().fold(cmd, |cmd, spec| {
            let off = spec.switch.then(|| {
                let name = format!("no-{}", spec.name);
                Arg::new(name.clone()).long(name).action(ArgAction::SetTrue).hide(true)
            });
            cmd.arg(arg(&spec)).args(off)
        })
    }

    fn augment_args_for_update(cmd: Command) -> Command {
        Self::augment_args(cmd)
    }
}

fn arg(spec: &FlagSpec) -> Arg {
    let arg = Arg::new(spec.name.clone())
        .long(spec.name.clone())
        .value_name(if spec.repeats { "JSON" } else { "VALUE" })
        .allow_hyphen_values(true)
        .action(ArgAction::Append)
        // The aliases are documented; listing them would bury the names that matter.
        .hide_short_help(true)
        .help(spec.help.clone());
    if spec.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        for spec in flag_specs() {
            let given = matches.get_many::<String>(&spec.name).into_iter().flatten();
            self.values.extend(given.map(|v| (spec.name.clone(), v.clone())));
            if spec.switch && matches.get_flag(&format!("no-{}", spec.name)) {
                self.values.push((format!("no-{}", spec.name), "true".into()));
            }
        }
        Ok(())
    }
}
