//! What a program may not do: an ordinary user's rights, and fewer system calls than that.

use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::error::{Context, Result};

/// The user that programs run as.
pub(crate) const USER_UID: u32 = 1000;
/// Its group.
pub(crate) const USER_GID: u32 = 1000;
/// The user, and the group, of the tunnel's process: a program cannot signal it, nor look into it.
pub(crate) const TUNNEL_UID: u32 = 1001;

/// System calls that fail with EPERM. Most need a capability that the user lacks; that they do not even enter the kernel
/// takes their code out of a hostile program's reach.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// The filter, compiled once and applied in each child.
pub(crate) fn filter() -> Result<BpfProgram> {
    let rules = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .context("building the system call filter")
}

/// What sets the processes of a language's programs apart from the interpreters that wait for programs of another, although all
/// are the same user's: the kernel lets a process reach into another (its descriptors and its memory in /proc, `ptrace` and its
/// kin) only if it has every capability that the other has. These three are about auditing, which our kernel has not: they
/// permit nothing. A child of a program has its parent's, whatever it executes.
pub(crate) fn mark(language: Language) -> CapabilitySet {
    match language {
        Language::Python => CapabilitySet::AUDIT_READ,
        Language::Javascript => CapabilitySet::AUDIT_WRITE,
        Language::Shell => CapabilitySet::AUDIT_CONTROL,
    }
}

/// Turns the calling process, a fresh child of the agent, into that of an ordinary user, whose group has the same number: no
/// way back. Of root's capabilities it keeps the mark alone.
pub(crate) fn become_user(id: u32, mark: CapabilitySet, filter: &BpfProgram, cgroup: &Path) -> std::io::Result<()> {
    setsid()?;
    // The agent blocks the signals that it waits for; a program expects none to be blocked.
    SigSet::empty().thread_set_mask()?;
    std::fs::write(cgroup, "0")?;
    setrlimit(Resource::RLIMIT_NOFILE, limits::OPEN_FILES_MAX, limits::OPEN_FILES_MAX)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(id))?;
    rustix::thread::set_keep_capabilities(true)?;
    setuid(Uid::from_raw(id))?;
    keep_only(mark)?;
    nix::sys::prctl::set_no_new_privs()?;
    seccompiler::apply_filter(filter).map_err(std::io::Error::other)
}

/// Gives up all other capabilities. What is ambient is there after exec as well.
fn keep_only(mark: CapabilitySet) -> std::io::Result<()> {
    let sets = CapabilitySets { effective: CapabilitySet::empty(), permitted: mark, inheritable: mark };
    rustix::thread::set_capabilities(None, sets)?;
    for capability in mark.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
