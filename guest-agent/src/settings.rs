//! What the kernel is told at the start, and why: files below /proc/sys, and what users may do in /dev and /proc.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::error::{Context, Result};

/// Files below /proc/sys, and what is written to them.
const SYSTEM: &[(&str, &str)] = &[
    // The kernel's log is the guest's own business, and a map for whoever attacks it.
    ("kernel/dmesg_restrict", "1"),
    // So are its addresses, for whomever.
    ("kernel/kptr_restrict", "2"),
    // Nor does a user measure it. The filter denies the system call; this holds if a process should be without the filter.
    ("kernel/perf_event_paranoid", "3"),
    // What programs leave in directories that all may write to is no trap for others: today that is root and the tunnel's user.
    ("fs/protected_fifos", "2"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_regular", "2"),
    ("fs/protected_symlinks", "1"),
    // The kernel would look twice a second whether memory is worth compacting: of all that wakes a VM that waits, four fifths.
    // Whoever needs memory in one piece still has it compacted.
    ("vm/compaction_proactiveness", "0"),
];

/// How /proc is mounted: a process that one may not look into is not there. Of the agent, the kernel's threads and the
/// interpreters that wait, a program finds no trace; whom it may signal is another matter, for which this changes nothing.
pub(crate) const PROC_OPTIONS: &str = "hidepid=invisible";

/// Devices that all could read, were it not for this: the kernel's log.
const ROOTS_OWN: &[&str] = &["/dev/kmsg"];

/// Tells the kernel all of it.
pub(crate) fn apply() -> Result<()> {
    for (name, value) in SYSTEM {
        let path = format!("/proc/sys/{name}");
        fs::write(&path, value).context(format!("writing {path}"))?;
    }
    for path in ROOTS_OWN {
        fs::set_permissions(path, Permissions::from_mode(0o600)).context(format!("closing {path}"))?;
    }
    Ok(())
}
