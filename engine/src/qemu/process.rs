//! One QEMU process: started with little, ended for certain.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getpid, getppid, setgid, setgroups, setuid};
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::limits::LAYER_SLOT_BYTES;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;

use crate::error::VmError;
use crate::qemu::command::{
    self, BINARY_FD, CODE_FD, INITRD_FD, KERNEL_FD, LaunchSpec, MONITOR_FD, RAM_FD, ROOT_FD, SAVED_CODE_FD, SLOT_FD,
    WIRE_FD,
};

/// KVM's device.
pub(crate) const KVM_DEVICE: &str = "/dev/kvm";

/// Debian's `nobody`: who QEMU is when the server is root. It owns nothing.
const NOBODY: u32 = 65534;

/// How long an ended QEMU's last words are waited for.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);

/// Most of QEMU's words that are kept, in bytes.
const LAST_WORDS_BYTES: u64 = 4096;

/// A running QEMU. Its drop kills it; a task of its own reaps it.
#[derive(Debug)]
pub(crate) struct QemuProcess {
    /// The process's id, for as long as it is not reaped.
    pub(crate) id: u32,
    stderr: Option<ChildStderr>,
    /// Dropped to have the process killed.
    _kill: oneshot::Sender<()>,
}

/// Starts QEMU; the future that comes with it ends when the process is gone, and has to run for that. Must be called from a
/// thread that lives as long as the server (a runtime worker): the kernel ends the child with the thread that started it.
pub(crate) fn spawn(
    qemu: &Path,
    arguments: Vec<String>,
    spec: &LaunchSpec,
    guest_end: UnixStream,
    monitor_end: Option<UnixStream>,
) -> Result<(QemuProcess, impl Future<Output = ()> + use<>), VmError> {
    let open = |path: &Path| -> Result<OwnedFd, VmError> {
        let file = File::open(path).map_err(|error| VmError::Spawn(format!("{}: {error}", path.display())))?;
        Ok(file.into())
    };
    let mut mappings = vec![
        FdMapping { parent_fd: guest_end.into(), child_fd: WIRE_FD },
        FdMapping { parent_fd: open(&spec.image.root)?, child_fd: ROOT_FD },
        // As another user it cannot reach what is in the cache, which may be QEMU itself. The descriptor stays open for a
        // script, which is opened once more by its interpreter.
        FdMapping { parent_fd: open(qemu)?, child_fd: BINARY_FD },
    ];
    if spec.start.kind().boots() {
        mappings.push(FdMapping { parent_fd: open(&spec.image.kernel)?, child_fd: KERNEL_FD });
        mappings.push(FdMapping { parent_fd: open(&spec.image.initrd)?, child_fd: INITRD_FD });
    }
    let share = |file: &OwnedFd, what: &str| {
        file.try_clone().map_err(|error| VmError::Spawn(format!("the {what}'s file: {error}")))
    };
    mappings.push(FdMapping { parent_fd: share(&spec.slot.file, "slot")?, child_fd: SLOT_FD });
    if let Some(ram) = spec.start.ram() {
        mappings.push(FdMapping { parent_fd: share(ram, "memory")?, child_fd: RAM_FD });
    }
    for (file, child_fd) in [(&spec.code.load, CODE_FD), (&spec.code.save, SAVED_CODE_FD)] {
        if let Some(file) = file {
            mappings.push(FdMapping { parent_fd: share(file, "translated code")?, child_fd });
        }
    }
    mappings.extend(monitor_end.map(|end| FdMapping { parent_fd: end.into(), child_fd: MONITOR_FD }));

    #[allow(clippy::disallowed_methods, reason = "this folder is the one that starts QEMU")]
    let mut command = std::process::Command::new(command::open(BINARY_FD));
    command
        .arg0(qemu)
        .args(arguments)
        // QEMU needs nothing of the user's environment, and could tell a guest's conqueror about it.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let server = getpid();
    let group = device_group(spec.accelerator);
    // QEMU writes no file at all, unless it is there to write one.
    let file_bytes = if spec.slot.is_writable { LAYER_SLOT_BYTES } else { 0 };
    #[allow(unsafe_code, reason = "rights are given up between fork and exec")]
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || confine(server, group, file_bytes))
    };
    // After `confine`, which marks every descriptor close-on-exec: those named here are the only ones that stay open.
    command.fd_mappings(mappings).map_err(|error| VmError::Spawn(error.to_string()))?;

    let mut child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| VmError::Spawn(format!("{}: {error}", qemu.display())))?;
    let id = child.id().unwrap_or_default();
    let stderr = child.stderr.take();
    let (kill, killed) = oneshot::channel();
    Ok((QemuProcess { id, stderr, _kill: kill }, reap(child, killed)))
}

impl QemuProcess {
    /// What QEMU said before it ended, as the tail of a sentence; empty when it said nothing.
    pub(crate) async fn last_words(&mut self) -> String {
        let Some(stderr) = self.stderr.take() else { return String::new() };
        let mut words = Vec::new();
        // It also ends at the deadline when QEMU lives on: then there are no last words yet.
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, stderr.take(LAST_WORDS_BYTES).read_to_end(&mut words)).await;
        match String::from_utf8_lossy(&words).trim() {
            "" => String::new(),
            words => format!(": {words}"),
        }
    }
}

/// Waits for the process's end, and brings it about when its owner has gone.
async fn reap(mut child: Child, killed: oneshot::Receiver<()>) {
    let ended = tokio::select! {
        status = child.wait() => status,
        _ = killed => match child.start_kill() {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    match ended {
        Ok(status) => tracing::debug!(%status, "QEMU ended"),
        Err(error) => tracing::error!(%error, "QEMU could not be reaped"),
    }
}

/// What a process has in memory that no file stands behind, in bytes; 0 when it is gone.
pub(crate) fn private_memory_bytes(id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).unwrap_or_default();
    // In pages: size, resident, of that shared (with a file or in shared memory).
    let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let pages = match fields[..] {
        [_, resident, shared, ..] => resident.saturating_sub(shared),
        _ => 0,
    };
    pages * 4096
}

/// For how long a process's threads, of them the one that did so for longest, were ready to run and did not: other processes had the
/// processors, or its control group may use no more. Nothing where the kernel does not say.
pub(crate) fn starved(id: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    // In nanoseconds: time on a processor, time in a queue for one.
    let waited = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or(0))
}

/// The group that may use KVM, where that is what QEMU needs: as nobody it could not.
fn device_group(accelerator: Accelerator) -> Option<Gid> {
    let device = (accelerator == Accelerator::Kvm).then(|| std::fs::metadata(KVM_DEVICE).ok()).flatten()?;
    Some(Gid::from_raw(device.gid())).filter(|group| group.as_raw() != 0)
}

/// Runs in the child, before QEMU.
fn confine(server: Pid, group: Option<Gid>, file_bytes: u64) -> std::io::Result<()> {
    close_descriptors_on_exec()?;
    // A network of its own with nothing in it, where that is allowed (not to most users, nor to root in most containers): QEMU
    // has no network device either way, this is the second lock.
    if runs_as_another_user() {
        let _ = unshare(CloneFlags::CLONE_NEWNET);
        setgroups(group.as_slice())?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    } else {
        let _ = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, file_bytes, file_bytes)?;
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
    // After the change of user, which clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The server may have ended before that.
    if getppid() != server {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Whether QEMU is somebody else than the server.
pub(crate) fn runs_as_another_user() -> bool {
    Uid::effective().is_root()
}

/// Whoever started the server may have left descriptors open without close-on-exec.
fn close_descriptors_on_exec() -> std::io::Result<()> {
    #[allow(unsafe_code, reason = "nix has no wrapper of close_range")]
    // SAFETY: it only sets a flag on descriptors of this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
