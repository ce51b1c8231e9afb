//! The state of the sandbox: the result of `pool_status`.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::session::SessionStatus;

/// Arguments of the tool `pool_status`: none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StatusInput {}

/// Result of the tool `pool_status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct PoolStatus {
    /// What executes the guests: `kvm` (hardware) or `tcg` (translation: slower, and a weaker boundary).
    pub accelerator: Accelerator,
    /// What QEMU says of its version.
    pub qemu: String,
    /// What holds its processes on this host.
    pub confinement: Confinement,
    /// What the VMs boot.
    pub image: ImageDigests,
    /// What VMs without packages are restored from.
    pub template: TemplateStatus,
    /// The environments that were used lately, or shall be kept warm.
    pub environments: Vec<EnvironmentStatus>,
    /// VMs, by what they do now.
    pub vms: VmCounts,
    /// Calls that wait for a VM.
    pub queued: u64,
    /// Runs since the server started, by where their VM came from.
    pub runs: RunCounts,
    /// Which part of the runs found what they needed, by tier.
    pub hit_rates: HitRates,
    /// From the start of QEMU until the restored guest was ready, in milliseconds, of the last 1000.
    pub restore_ms: Percentiles,
    /// From an accepted call to its result, in milliseconds, of the last 1000.
    pub run_ms: Percentiles,
    /// Memory that the VMs have for themselves now, in MiB: what they share with their template is not in it.
    pub private_memory_mb: f64,
    /// What images and templates take on the disk.
    pub cache: CacheSize,
    /// Where templates and images are asked for when they are not on the disk; none unless one is set.
    pub tiers: Vec<TierStatus>,
    /// The sessions that are open, the oldest first.
    pub sessions: Vec<SessionStatus>,
    /// The limits in force.
    pub limits: LimitsInForce,
}

/// What holds QEMU's processes on this host, beside the VMs themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Confinement {
    /// Whose user a VM's process has.
    pub user: ProcessUser,
    /// Linux namespaces of its own.
    pub namespaces: Vec<String>,
    /// Whose filter of system calls: `allowlist` (and QEMU's), or `qemu` alone.
    pub seccomp: SystemCalls,
    /// Version of Landlock, which keeps files from it; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock: Option<u32>,
    /// Whether each VM has a cgroup of its own.
    pub cgroup: bool,
}

/// Whose user a VM's process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProcessUser {
    /// One that no other VM has.
    Own,
    /// The server's.
    Server,
}

/// What decides which system calls a VM's process may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SystemCalls {
    /// A list of what is allowed, and QEMU's own of what is not.
    Allowlist,
    /// QEMU's own alone.
    Qemu,
}

/// SHA-256 of the files that a VM boots, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ImageDigests {
    /// The kernel.
    pub kernel: String,
    /// The root file system.
    pub root: String,
    /// The guest agent.
    pub agent: String,
}

/// What is known of an environment's template and its VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct EnvironmentStatus {
    /// What `install_packages` has called it.
    pub environment_id: String,
    /// How its template is doing.
    pub state: TemplateState,
    /// What went wrong last with it; absent when nothing has since a VM was restored from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When a template that failed is tried again, in seconds; absent while none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_seconds: Option<u64>,
    /// VMs with it that wait for a program.
    pub ready: u64,
    /// Calls that want a VM with it: queued, being prepared or running.
    pub calls: u64,
}

/// What is known of the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct TemplateStatus {
    /// Whether VMs can be restored.
    pub state: TemplateState,
    /// Digest of all that it depends on, in hexadecimal digits; absent where templates are off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What went wrong last; absent when nothing has since a VM was restored from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When a template that failed is tried again, in seconds; absent while none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_seconds: Option<u64>,
}

/// Whether VMs can be restored from a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TemplateState {
    /// Templates are off: every VM boots.
    Off,
    /// It is being loaded, or built.
    Preparing,
    /// It is there.
    Ready,
    /// It could not be built, or its clones do not come up: every VM boots until it is tried again.
    Failed,
}

/// VMs, by what they do now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct VmCounts {
    /// Wait for a program.
    pub ready: u64,
    /// Are being prepared for a program that waits for them, or for the pool.
    pub restoring: u64,
    /// Run a program.
    pub running: u64,
}

/// Runs since the server started, by where their VM came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct RunCounts {
    /// From the pool.
    pub from_pool: u64,
    /// Restored for the run.
    pub from_template: u64,
    /// Booted for the run.
    pub booted: u64,
    /// Calls that ended with an error of the sandbox, or were cancelled.
    pub failed: u64,
}

/// Which part of the runs found what they needed, from 0 to 1; 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct HitRates {
    /// Of all runs: a VM that waited.
    pub pool: f64,
    /// Of the runs that found none waiting: a template.
    pub template: f64,
}

impl From<RunCounts> for HitRates {
    fn from(runs: RunCounts) -> Self {
        let part = |some: u64, all: u64| if all == 0 { 0.0 } else { some as f64 / all as f64 };
        let missed = runs.from_template + runs.booted;
        HitRates { pool: part(runs.from_pool, runs.from_pool + missed), template: part(runs.from_template, missed) }
    }
}

/// What is kept on the disk, in MB (1,000,000 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct CacheSize {
    /// What images and templates take now.
    pub size_mb: f64,
    /// What they may take; more is removed after the next build, as far as it is not in use.
    pub limit_mb: f64,
}

/// A place that entries are fetched from and sent to, and what it was good for since the server started. Whatever ails it, runs
/// go on without.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct TierStatus {
    /// What it is: `s3`.
    pub name: String,
    /// Whether it answers.
    pub state: TierState,
    /// What went wrong last; absent when nothing has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Which key its entries are authenticated with, the same on all hosts that share them; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hmac_key_id: Option<String>,
    /// Entries that were fetched.
    pub hits: u64,
    /// Entries that it did not have, or did not say in time.
    pub misses: u64,
    /// Entries that were damaged, forged or of another make, and not used.
    pub rejected: u64,
    /// Read from it, in MB (1,000,000 bytes), compressed as it is stored.
    pub downloaded_mb: f64,
    /// Written to it, in MB.
    pub uploaded_mb: f64,
    /// Entries that wait for being sent, or are being sent.
    pub uploads_pending: u64,
    /// Entries that were sent.
    pub uploads_done: u64,
    /// Entries that could not be sent, and were given up.
    pub uploads_failed: u64,
}

impl TierStatus {
    /// A tier that was not asked yet.
    pub fn new(name: &str) -> TierStatus {
        TierStatus { name: name.into(), ..TierStatus::default() }
    }
}

/// Whether a tier answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TierState {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// It answered when it was last asked.
    Ok,
    /// It did not, and is not asked for some time.
    Failing,
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Percentiles {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 95 of 100 took no longer.
    pub p95: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

/// The limits in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct LimitsInForce {
    /// VMs at the same time.
    pub max_concurrent_vms: u64,
    /// VMs that are kept waiting for a program.
    pub warm_pool_size: u64,
    /// Memory that the VMs may have together, in MiB.
    pub memory_mb: u64,
    /// Calls that may wait for a VM; one more is refused.
    pub max_queued: u64,
    /// How long a call waits for a VM at most, in seconds.
    pub queue_deadline_seconds: u64,
    /// Sessions that may be open at the same time. Each is one of the VMs.
    pub max_sessions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hit_rates_are_of_those_who_asked() {
        let rates = |from_pool, from_template, booted| {
            HitRates::from(RunCounts { from_pool, from_template, booted, failed: 9 })
        };
        assert_eq!(rates(0, 0, 0), HitRates { pool: 0.0, template: 0.0 });
        assert_eq!(rates(6, 3, 1), HitRates { pool: 0.6, template: 0.75 });
        assert_eq!(rates(2, 0, 0), HitRates { pool: 1.0, template: 0.0 });
    }
}
