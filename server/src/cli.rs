//! The command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sandbox_engine::{AcceleratorChoice, Limits};
use sandbox_store::DEFAULT_LIMIT_GB;

/// A code sandbox for AI agents: runs Python, JavaScript and shell programs in microVMs on this machine.
///
/// Without a subcommand it serves the Model Context Protocol on stdin and stdout.
#[derive(Debug, Clone, Parser)]
#[command(name = "sandbox-mcp", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) machine: Machine,

    /// Where images, templates and verdicts are kept [default: the user's cache directory]
    #[arg(long, global = true, env = "SANDBOX_MCP_CACHE_DIR", value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,

    /// What images and templates may take on the disk, in GB; after a build, the least recently used go that no process uses
    #[arg(long, global = true, env = "SANDBOX_MCP_CACHE_MAX_GB", value_name = "GB", default_value_t = DEFAULT_LIMIT_GB)]
    pub(crate) cache_max_gb: u64,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Machine {
    /// What executes the guests. `auto` boots a trial VM on KVM and falls back to TCG, which is slower
    #[arg(long, value_enum, default_value_t = Accel::Auto, env = "SANDBOX_MCP_ACCEL")]
    accel: Accel,

    /// Refuse to run without KVM, with which alone QEMU promises isolation. It wins over --accel and its variable
    // No conflict with `accel`: clap counts a variable as present, and a stricter flag must not fail because of one.
    #[arg(long)]
    require_kvm: bool,

    /// QEMU's binary [default: qemu-system-x86_64 in PATH or the usual places]
    #[arg(long, env = "SANDBOX_MCP_QEMU", value_name = "PATH")]
    pub(crate) qemu: Option<PathBuf>,

    /// VMs that exist at the same time; further calls wait [default: by cores and memory]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_vms: Option<u16>,

    /// VMs that wait for a program, started in advance; 0 for none [default: one a processor, at most 4]
    #[arg(long, value_name = "N", env = "SANDBOX_MCP_WARM_POOL_SIZE", value_parser = clap::value_parser!(u16).range(0..=64))]
    warm_pool_size: Option<u16>,

    /// Boot every VM instead of restoring it from a template: slower
    #[arg(long)]
    no_templates: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
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
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ImageAction {
    /// Build what is missing or damaged, and the template that VMs are restored from
    Build,
    /// Show what is there; exits with 1 when something is missing
    Status,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum CacheAction {
    /// Show what is there, what it takes on the disk, and whether a process uses it
    Status {
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove all that no process uses; what is needed is built again
    Clear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    Auto,
    Kvm,
    Tcg,
}

impl Machine {
    pub(crate) fn accelerator(&self) -> AcceleratorChoice {
        match self.accel {
            _ if self.require_kvm => AcceleratorChoice::Kvm,
            Accel::Auto => AcceleratorChoice::Auto,
            Accel::Kvm => AcceleratorChoice::Kvm,
            Accel::Tcg => AcceleratorChoice::Tcg,
        }
    }

    pub(crate) fn uses_templates(&self) -> bool {
        !self.no_templates
    }

    pub(crate) fn warm_pool_size(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.warm_pool_size.map_or(cores.min(4), usize::from)
    }

    pub(crate) fn limits(&self) -> Limits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let defaults = Limits::for_machine(cores, host_memory_mb());
        Limits { vms: self.max_vms.map_or(defaults.vms, usize::from), ..defaults }
    }
}

impl Cli {
    pub(crate) fn cache_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.cache_dir {
            return Ok(named.clone());
        }
        let folders = directories::ProjectDirs::from("", "", "sandbox-mcp");
        let folders = folders.context("no home directory is known: set HOME, or name a folder with --cache-dir")?;
        Ok(folders.cache_dir().to_path_buf())
    }
}

/// Memory of this machine in MiB; 0 where it is not known, which leaves one VM.
fn host_memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(0, |kib: u64| kib / 1024)
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
    fn kvm_that_is_required_wins() {
        let choice = |arguments: &[&str]| {
            let all = ["sandbox-mcp"].iter().chain(arguments);
            Cli::try_parse_from(all).unwrap().machine.accelerator()
        };
        assert_eq!(choice(&["--accel", "tcg"]), AcceleratorChoice::Tcg);
        assert_eq!(choice(&["--accel", "tcg", "--require-kvm"]), AcceleratorChoice::Kvm);
        assert_eq!(choice(&["--require-kvm"]), AcceleratorChoice::Kvm);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(host_memory_mb() > 100);
    }
}
