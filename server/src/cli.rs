//! The command line. Its settings are those of `settings`.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::Flags;

/// A code sandbox for AI agents: runs Python, JavaScript and shell programs in microVMs on this machine.
///
/// Without a subcommand it serves the Model Context Protocol on stdin and stdout.
#[derive(Debug, Clone, Parser)]
#[command(name = "sandbox-mcp", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) flags: Flags,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Build or show what the VMs boot
    Image {
        #[command(subcommand)]
        action: ImageAction,
    },
    /// Show or remove what is kept on this machine: images, templates and what they were built from
    Cache {
        #[command(subcommand)]
        action: CacheAction,
    },
    /// Show every setting with its value and where that came from, in the form of the file
    Settings,
    /// Show what clients are told of the tools, their JSON schemas with it, as one JSON object
    Schema,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ImageAction {
    /// Build what is missing, damaged or older than 30 days, and the template that VMs are restored from
    Build {
        #[command(flatten)]
        qemu: OwnQemu,

        /// Build anew whatever has Debian's packages in it, though it is here or in the S3 bucket: kernel, root, and QEMU if one was
        /// built. The bucket gets what is new. Not while a server runs
        #[arg(long)]
        fresh: bool,
    },
    /// Fetch what is missing, damaged or older than 30 days from the S3 bucket; exits with 1 when it does not have all
    Pull,
    /// Show what is there and how old it is; exits with 1 when something is missing
    Status,
    /// Remove a part, unless a process uses it: it is built again from what Debian has by then, or not used any more
    Remove {
        /// Which
        part: Part,
    },
}

/// Whether a QEMU for these VMs alone is built, from Debian's source: it starts sooner, takes less memory and has less that can be
/// attacked. Used from then on, unless --qemu names another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct OwnQemu {
    /// Also build a QEMU for these VMs alone, from Debian's source. Without KVM that is done anyway
    #[arg(long, overrides_with = "without_qemu")]
    pub(crate) with_qemu: bool,

    /// Do not build a QEMU
    #[arg(long, overrides_with = "with_qemu")]
    pub(crate) without_qemu: bool,
}

/// A part of the image that is built from what changes with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The guest kernel
    Kernel,
    /// The root file system
    Root,
    /// The QEMU that `image build` has built
    Qemu,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CacheAction {
    /// Show what is there, what it takes on the disk, and whether a process uses it
    Status {
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove all that no process uses; what is needed is built again
    Clear,
    /// Send an entry to the S3 bucket, unless it is there
    Push {
        /// Its key, or the first digits of it, as `cache status` shows it
        key: String,
    },
    /// Fetch an entry from the S3 bucket, unless it is here
    Pull {
        /// Its key, or the first digits of it
        key: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn whoever_builds_says_whether_a_qemu_is_built_or_does_not() {
        let action = |arguments: &[&str]| match Cli::try_parse_from(["sandbox-mcp", "image"].iter().chain(arguments))
            .map(|cli| cli.command)
        {
            Ok(Some(Command::Image { action })) => Some(action),
            _ => None,
        };
        let qemu = |arguments: &[&str]| match action(&[&["build"], arguments].concat()) {
            Some(ImageAction::Build { qemu, fresh: false }) => (qemu.with_qemu, qemu.without_qemu),
            _ => panic!("{arguments:?}"),
        };
        assert_eq!(qemu(&[]), (false, false));
        assert_eq!(qemu(&["--with-qemu"]), (true, false));
        assert_eq!(qemu(&["--with-qemu", "--without-qemu"]), (false, true));
        assert_eq!(qemu(&["--without-qemu", "--with-qemu"]), (true, false));
        assert!(matches!(action(&["build", "--fresh"]), Some(ImageAction::Build { fresh: true, .. })));
        assert!(matches!(action(&["remove", "qemu"]), Some(ImageAction::Remove { part: Part::Qemu })));
        assert!(action(&["remove"]).is_none() && action(&["remove", "agent"]).is_none());
    }

    #[test]
    fn flags_count_before_and_behind_a_command_and_the_last_of_a_switch_wins() {
        let given = |arguments: &[&str]| {
            let cli = Cli::try_parse_from(["sandbox-mcp"].iter().chain(arguments)).unwrap();
            let given = cli.flags.given.iter().map(|given| format!("{}={}", given.key, given.written));
            given.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(given(&[]), "");
        assert_eq!(given(&["--warm-pool-size", "-1", "settings"]), "warm_pool_size=-1");
        assert_eq!(given(&["settings", "--accel", "tcg", "--no-templates"]), "accel=tcg templates=false");
        assert_eq!(given(&["--no-templates", "--templates"]), "templates=true");
        assert_eq!(given(&["--templates", "--no-templates"]), "templates=false");
        assert_eq!(given(&["--qemu=/q", "image", "status", "--cache-dir", "/c"]), "qemu=/q cache_dir=/c");
    }
}
