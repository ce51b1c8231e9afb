//! The settings on the command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::settings::given::{CONFIG_VARIABLE, Given, Origin};
use crate::settings::{SPECS, Spec};

/// The flags that were given. What they say is checked with the other sources, so that all errors are alike.
#[derive(Debug, Clone)]
pub(crate) struct Flags {
    pub(crate) given: Vec<Given>,
    /// The file to read.
    pub(crate) config: Option<PathBuf>,
}

const CONFIG: &str = "config";
const HEADING: &str = "Settings";

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!(
                "Read the settings that are not given here from this file [default: sandbox-mcp/config.toml in the user's \
                 configuration directory, if it is there; variable: {CONFIG_VARIABLE}]"
            ));
        let all = SPECS.iter().flat_map(arguments).chain([config]);
        // Global: `sandbox-mcp settings --accel tcg` is as good as the other order.
        command.args(all.map(|argument| argument.global(true).help_heading(HEADING)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

/// The arguments of a setting: `--key VALUE`, or `--key` and `--no-key`, of which the last one counts.
fn arguments(spec: &Spec) -> Vec<Arg> {
    let long = spec.key.replace('_', "-");
    let off = if spec.is_switch { format!("; off: --no-{long}") } else { String::new() };
    let bounds = spec.bounds.map_or_else(String::new, |(least, most)| format!("{least} to {most}; "));
    let (text, default, variable) = (spec.help.trim(), spec.default, spec.variable());
    let help = format!("{text} [{bounds}default: {default}; variable: {variable}{off}]");
    let argument = Arg::new(spec.key).long(long.clone()).help(help);
    if spec.is_switch {
        let off = Arg::new(off_id(spec)).long(format!("no-{long}")).hide(true).action(ArgAction::SetTrue);
        vec![argument.action(ArgAction::SetTrue).overrides_with(off_id(spec)), off.overrides_with(spec.key)]
    } else {
        // A negative number is ours to refuse.
        let argument = argument.value_name(spec.placeholder).value_parser(OsStringValueParser::new());
        let argument = argument.allow_negative_numbers(true);
        vec![if spec.is_list { argument.action(ArgAction::Append) } else { argument }]
    }
}

fn off_id(spec: &Spec) -> String {
    format!("no_{}", spec.key)
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let given = SPECS.iter().filter_map(|spec| given(spec, matches)).collect();
        Ok(Flags { given, config: matches.get_one(CONFIG).cloned() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Flags::from_arg_matches(matches)?;
        Ok(())
    }
}

fn given(spec: &Spec, matches: &ArgMatches) -> Option<Given> {
    let flag = spec.flag();
    if !spec.is_switch {
        let texts: Vec<_> = matches.get_many::<OsString>(spec.key)?.map(OsString::as_os_str).collect();
        return Some(Given::text(spec.key, texts.join(OsStr::new(" | ")), Origin::Flag(flag)));
    }
    if matches.get_flag(spec.key) {
        return Some(Given::text(spec.key, "true".into(), Origin::Flag(flag)));
    }
    let off = flag.replacen("--", "--no-", 1);
    matches.get_flag(&off_id(spec)).then(|| Given::text(spec.key, "false".into(), Origin::Flag(off)))
}

#[cfg(test)]
impl Flags {
    /// Flags as they would come from a command line.
    pub(crate) fn of(given: &[(&'static str, &str)]) -> Flags {
        let flag = |key: &str| Origin::Flag(format!("--{}", key.replace('_', "-")));
        let given = given.iter().map(|(key, text)| Given::text(key, text.into(), flag(key)));
        Flags { given: given.collect(), config: None }
    }
}
