//! One QEMU process: started with little, ended for certain.

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use rustix::thread::Gid;
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::limits::LAYER_SLOT_BYTES;
use sandbox_store::open_regular;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::error::VmError;
use crate::qemu::child::{self, Child, Ended, Voice, not_given};
use crate::qemu::command::{
    self, BINARY_FD, CODE_FD, INITRD_FD, KERNEL_FD, KVM_DEVICE, LaunchSpec, MONITOR_FD, RAM_FD, ROOT_FD, SAVED_CODE_FD,
    SLOT_FD, WIRE_FD,
};
use crate::qemu::confine::{Confinement, Refused, Step, confine};
use crate::qemu::filter::Filter;
use crate::qemu::isolation::Isolation;
use crate::qemu::landlock::Landlock;
use crate::qemu::program::Program;
use crate::template::ram;

/// How long an ended QEMU's last words are waited for.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);

/// Most of QEMU's words that are kept, in bytes.
const LAST_WORDS_BYTES: u64 = 4096;

/// A running QEMU. Its drop kills it; a task of its own reaps it.
#[derive(Debug)]
pub(crate) struct QemuProcess {
    /// The process's id, for as long as it is not reaped.
    pub(crate) id: u32,
    stderr: Option<pipe::Receiver>,
    /// How it ended, if it did so by itself.
    ended: Option<oneshot::Receiver<Ended>>,
    /// Dropped to have the process killed.
    _kill: oneshot::Sender<Infallible>,
}

/// Starts QEMU; the future that comes with it ends when the process is gone, and has to run for that. Must be called from a
/// thread that lives as long as the server (a runtime worker): the kernel ends the child with the thread that started it.
pub(crate) fn spawn(
    qemu: &Path,
    arguments: Vec<String>,
    spec: &LaunchSpec,
    isolation: &Isolation,
    guest_end: UnixStream,
    monitor_end: Option<UnixStream>,
) -> Result<(QemuProcess, impl Future<Output = ()> + use<>), VmError> {
    let failed = |error: io::Error| VmError::Spawn(error.to_string());
    let (hears, speaks) =
        pipe::pipe().and_then(|(speaks, hears)| Ok((hears, speaks.into_blocking_fd()?))).map_err(failed)?;
    let unreadable = |error: io::Error| VmError::Spawn(format!("{}: {error}", qemu.display()));
    let binary = File::open(qemu).map_err(unreadable)?;
    let kind = Program::of(&binary).map_err(unreadable)?;
    let given = descriptors(binary.try_clone().map_err(unreadable)?, spec, guest_end, monitor_end, speaks)?;
    let files = given.iter().map(|(file, _)| file.as_fd());
    let landlock = Landlock::new(&kind, qemu, &binary, files, spec.accelerator);
    let landlock = landlock.map_err(|error| VmError::Spawn(error.to_string()))?;
    let filter = Filter::of(&kind, spec.accelerator).map_err(|error| VmError::Spawn(error.to_string()))?;
    let descriptors: Vec<(RawFd, RawFd)> = given.iter().map(|(file, place)| (file.as_raw_fd(), *place)).collect();

    let program = c_string(command::open(BINARY_FD).as_bytes())?;
    let words = std::iter::once(qemu.as_os_str().as_bytes()).chain(arguments.iter().map(String::as_bytes));
    let words: Vec<CString> = words.map(c_string).collect::<Result<_, _>>()?;
    let words: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    // QEMU needs nothing of the user's environment, and could tell a guest's conqueror about it.
    let environment: [*const c_char; 1] = [std::ptr::null()];

    let belongings = isolation.belongings(spec.memory_mb).map_err(VmError::Spawn)?;
    let confinement = Confinement {
        descriptors: &descriptors,
        user: belongings.user.as_ref().map(|user| user.id),
        group: device_group(spec.accelerator),
        // QEMU writes no file at all, unless it is there to write one.
        file_bytes: if spec.slot.is_writable { LAYER_SLOT_BYTES } else { 0 },
        server: isolation.server.as_fd(),
        oom_score: &isolation.oom_score,
        landlock: landlock.as_ref(),
        filter,
    };
    let become_qemu = |voice: &Voice| {
        let refused = match confine(&confinement) {
            Ok(_) => {
                #[allow(unsafe_code, reason = "this folder is the one that starts QEMU")]
                // SAFETY: strings and lists that end with a null, and live.
                unsafe {
                    libc::execve(program.as_ptr(), words.as_ptr(), environment.as_ptr())
                };
                Refused::new(Step::Program, &io::Error::last_os_error())
            }
            Err(refused) => refused,
        };
        voice.say(refused.into());
    };
    #[allow(unsafe_code, reason = "rights are given up between clone and exec")]
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    let started = unsafe { child::start(isolation.beginning(&belongings), become_qemu) };
    let (mut child, word) = started.map_err(|error| VmError::Spawn(not_begun(&error)))?;
    if let Some(word) = word {
        let _ = child.wait_here();
        return Err(VmError::Spawn(format!("{}: {}", qemu.display(), Refused::from(word))));
    }
    let (kill, killed) = oneshot::channel();
    let (tell, ended) = oneshot::channel();
    let process = QemuProcess { id: child.id(), stderr: Some(hears), ended: Some(ended), _kill: kill };
    let reaping = async move {
        reap(child, killed, tell).await;
        // Now they are nobody's.
        drop(belongings);
    };
    Ok((process, reaping))
}

/// Why there is no process. What was to be had when the engine started can be used up.
fn not_begun(error: &io::Error) -> String {
    let what = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => "the host has no more namespaces (user.max_pid_namespaces and its like)",
        Some(libc::EAGAIN) => "the host allows no more processes (ulimit -u, or pids.max of a cgroup)",
        _ => "a process for it",
    };
    format!("{what}: {error}")
}

fn c_string(bytes: &[u8]) -> Result<CString, VmError> {
    CString::new(bytes).map_err(|error| VmError::Spawn(error.to_string()))
}

/// All that QEMU gets, and where it finds it. None is there already: see [`not_given`].
fn descriptors(
    binary: File,
    spec: &LaunchSpec,
    guest_end: UnixStream,
    monitor_end: Option<UnixStream>,
    stderr: OwnedFd,
) -> Result<Vec<(OwnedFd, RawFd)>, VmError> {
    let open = |path: &Path| -> Result<OwnedFd, VmError> {
        // Not what has been put into its place, and could be waited for.
        let opened = open_regular(path);
        let (file, _) = opened.map_err(|error| VmError::Spawn(format!("{}: {error}", path.display())))?;
        Ok(file.into())
    };
    let share = |file: &OwnedFd, what: &str| {
        file.try_clone().map_err(|error| VmError::Spawn(format!("the {what}'s file: {error}")))
    };
    let nothing = |options: &OpenOptions| -> Result<OwnedFd, VmError> {
        let file = options.open("/dev/null").map_err(|error| VmError::Spawn(format!("/dev/null: {error}")))?;
        Ok(file.into())
    };
    let mut given = vec![
        (nothing(File::options().read(true))?, libc::STDIN_FILENO),
        (nothing(File::options().write(true))?, libc::STDOUT_FILENO),
        (stderr, libc::STDERR_FILENO),
        (guest_end.into(), WIRE_FD),
        (open(&spec.image.root)?, ROOT_FD),
        // As another user it cannot reach what is in the cache, which may be QEMU itself. The descriptor stays open for a
        // script, which is opened once more by its interpreter.
        (binary.into(), BINARY_FD),
    ];
    if spec.start.kind().boots() {
        given.push((open(&spec.image.kernel)?, KERNEL_FD));
        given.push((open(&spec.image.initrd)?, INITRD_FD));
    }
    let slot = match &spec.slot.file {
        Some(file) => share(file, "slot")?,
        // Its own, so that what it makes of it is gone with it.
        None => ram::nothing(LAYER_SLOT_BYTES).map_err(|error| VmError::Spawn(format!("an empty slot: {error}")))?,
    };
    given.push((slot, SLOT_FD));
    if let Some(ram) = spec.start.ram() {
        given.push((share(ram, "memory")?, RAM_FD));
    }
    for (file, place) in [(&spec.code.load, CODE_FD), (&spec.code.save, SAVED_CODE_FD)] {
        if let Some(file) = file {
            given.push((share(file, "translated code")?, place));
        }
    }
    given.extend(monitor_end.map(|end| (end.into(), MONITOR_FD)));
    let moved = given.into_iter().map(|(file, place)| Ok((not_given(file)?, place))).collect::<io::Result<_>>();
    moved.map_err(|error| VmError::Spawn(format!("its descriptors: {error}")))
}

impl QemuProcess {
    /// What QEMU said before it ended, and how it did so if that says something, as the tail of a sentence; else empty.
    pub(crate) async fn last_words(&mut self) -> String {
        let (stderr, ended) = (self.stderr.take(), self.ended.take());
        let mut words = Vec::new();
        let listen = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(LAST_WORDS_BYTES).read_to_end(&mut words).await;
            }
        };
        let see = async {
            match ended {
                Some(ended) => ended.await.ok(),
                None => None,
            }
        };
        // It also ends at the deadline when QEMU lives on: then there are no last words yet.
        let deadline = tokio::time::Instant::now() + LAST_WORDS_DEADLINE;
        let (_, ended) =
            tokio::join!(tokio::time::timeout_at(deadline, listen), tokio::time::timeout_at(deadline, see));
        tail(String::from_utf8_lossy(&words).trim(), ended.ok().flatten())
    }
}

/// Words and an end, as the tail of a sentence.
fn tail(words: &str, ended: Option<Ended>) -> String {
    let end = match ended {
        // Of which the words say why.
        None | Some(Ended::Exit(0 | 1)) => None,
        Some(Ended::Exit(status)) => Some(format!("QEMU exited with status {status}")),
        Some(Ended::Signal(libc::SIGKILL)) => Some(
            "QEMU was killed by signal 9, which this server did not send: a host does so when it has no memory left"
                .to_string(),
        ),
        Some(Ended::Signal(libc::SIGSYS)) => {
            Some("QEMU was killed by signal 31, for a system call that is not allowed to it".to_string())
        }
        Some(Ended::Signal(signal)) => Some(format!("QEMU was ended by signal {signal}")),
    };
    match (words, end) {
        ("", None) => String::new(),
        (words, None) => format!(": {words}"),
        ("", Some(end)) => format!(": {end}"),
        (words, Some(end)) => format!(": {words} ({end})"),
    }
}

/// Waits for the process's end, and brings it about when its owner has gone. However that goes: what is not reaped is there.
async fn reap(mut child: Child, killed: oneshot::Receiver<Infallible>, tell: oneshot::Sender<Ended>) {
    let ended = tokio::select! {
        ended = child.wait() => {
            let _ = ended.as_ref().map(|ended| tell.send(*ended));
            ended
        }
        _ = killed => {
            if let Err(error) = child.kill() {
                // Its wire is closed, at which the guest's agent stops the VM, unless it is conquered.
                let id = child.id();
                tracing::error!(%error, id, "QEMU cannot be killed, and keeps its place; CAP_KILL may have been taken from the server");
            }
            child.wait().await
        }
    };
    match ended {
        Ok(ended) => tracing::debug!(?ended, "QEMU ended"),
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

/// The group that may use KVM, where that is what QEMU needs: as somebody else it could not.
fn device_group(accelerator: Accelerator) -> Option<Gid> {
    let device = (accelerator == Accelerator::Kvm).then(|| std::fs::metadata(KVM_DEVICE).ok()).flatten()?;
    Some(Gid::from_raw(device.gid())).filter(|group| group.as_raw() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_where_it_says_something() {
        assert_eq!(tail("", None), "");
        assert_eq!(tail("", Some(Ended::Exit(0))), "", "a guest that has stopped");
        assert_eq!(tail("no such machine", Some(Ended::Exit(1))), ": no such machine");
        assert_eq!(tail("odd", Some(Ended::Exit(3))), ": odd (QEMU exited with status 3)");
        let killed = tail("", Some(Ended::Signal(libc::SIGKILL)));
        assert!(killed.starts_with(": QEMU was killed by signal 9") && killed.contains("no memory left"), "{killed}");
        assert!(tail("", Some(Ended::Signal(libc::SIGSYS))).contains("a system call that is not allowed to it"));
        assert_eq!(tail("", Some(Ended::Signal(libc::SIGSEGV))), ": QEMU was ended by signal 11");
    }

    #[test]
    fn what_is_used_up_is_named() {
        let error = |errno| not_begun(&io::Error::from_raw_os_error(errno));
        assert!(error(libc::ENOSPC).contains("user.max_pid_namespaces"));
        assert!(error(libc::EAGAIN).contains("ulimit -u"));
        assert!(error(libc::ENOMEM).starts_with("a process for it: "));
    }
}
