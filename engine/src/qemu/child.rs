//! A child process, from its first instruction until it is reaped.
//!
//! `std::process` can begin none as the first of a PID namespace, nor in a cgroup: both are decided when a process is made. So
//! it is made here, by `clone3`, and from then on it is meant by a descriptor, which never comes to mean another process.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::pipe2;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first descriptor that a child is not given. Those below have a meaning for it, so that none of ours may be there when
/// it sets them up.
pub(crate) const NOT_GIVEN: RawFd = 13;

/// Of `clone3`, beyond the namespaces: `libc` has two of them as numbers that are too small.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child that is ours to reap. Killed when it is dropped before that.
#[derive(Debug)]
pub(crate) struct Child {
    id: u32,
    process: OwnedFd,
    is_reaped: bool,
}

/// What a child begins in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning<'a> {
    pub(crate) way: Way,
    /// The directory of its cgroup.
    pub(crate) group: Option<BorrowedFd<'a>>,
}

/// How a child is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// With namespaces of its own.
    Clone(CloneFlags),
    /// As it always was: some containers refuse `clone3`, since what it is asked for cannot be looked at.
    Fork,
}

/// How a child has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// What a child says while it is still ours: why it cannot go on, or how it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) about: u8,
    pub(crate) value: i32,
}

/// The child's end of the pipe that it speaks on. Closed when it becomes another program.
#[derive(Debug)]
pub(crate) struct Voice(RawFd);

impl Voice {
    pub(crate) fn say(&self, word: Word) {
        let [a, b, c, d] = word.value.to_ne_bytes();
        let bytes = [word.about, a, b, c, d];
        #[allow(unsafe_code, reason = "the descriptor is the child's own, and is borrowed by no one")]
        // SAFETY: it is open for as long as this process is ours.
        let voice = unsafe { BorrowedFd::borrow_raw(self.0) };
        let _ = nix::unistd::write(voice, &bytes);
    }

    /// Nothing more will be said.
    pub(crate) fn end(&self) {
        #[allow(unsafe_code, reason = "nobody owns it in the child")]
        // SAFETY: it is closed once, in a process that ends without dropping anything.
        unsafe {
            libc::close(self.0)
        };
    }
}

/// Starts a child that does `body`, and ends if that returns. Waits until it is another program, has ended, or has ended its
/// voice; what it said until then comes with it.
///
/// # Safety
///
/// The child is a copy of this process with one of its threads. Another may have held any lock, so that `body` must take none,
/// nor allocate: it may make system calls. Not those that the C library makes in all threads (`setuid`), of whose end it has not heard.
#[allow(unsafe_code, reason = "who calls this promises what the child does")]
pub(crate) unsafe fn start(beginning: Beginning<'_>, body: impl FnOnce(&Voice)) -> io::Result<(Child, Option<Word>)> {
    let (hears, speaks) = pipe2(OFlag::O_CLOEXEC)?;
    let speaks = not_given(speaks)?;
    // SAFETY: in the child, nothing follows but what the caller has promised.
    let made = unsafe {
        match beginning.way {
            Way::Clone(namespaces) => clone(namespaces, beginning.group)?,
            Way::Fork => fork()?,
        }
    };
    let Some(child) = made else {
        let _ = as_a_program_expects_it();
        body(&Voice(speaks.as_raw_fd()));
        // SAFETY: it ends the process, without the duties of one that has threads and buffers.
        unsafe { libc::_exit(127) }
    };
    drop(speaks);
    let mut bytes = [0; 5];
    let word = match File::from(hears).read_exact(&mut bytes) {
        Ok(()) => {
            let [about, value @ ..] = bytes;
            Some(Word { about, value: i32::from_ne_bytes(value) })
        }
        Err(_) => None,
    };
    Ok((child, word))
}

/// A descriptor that is in no place which a child is given another for.
pub(crate) fn not_given(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() >= NOT_GIVEN {
        return Ok(descriptor);
    }
    let copy = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(NOT_GIVEN))?;
    #[allow(unsafe_code, reason = "fcntl returns a number")]
    // SAFETY: it was made just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// `None` in the child.
///
/// # Safety
///
/// As for [`start`].
#[allow(unsafe_code, reason = "as for `start`")]
unsafe fn clone(namespaces: CloneFlags, group: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut process: RawFd = -1;
    // SAFETY: numbers, of which all may be 0.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // Handlers are this process's: in the child they would speak for it.
    arguments.flags = namespaces.bits() as u32 as u64 | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut process as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without a stack and without shared memory it is a fork; the structure is as long as is said.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) } {
        0 => Ok(None),
        id if id > 0 => {
            // SAFETY: the kernel has opened it for us.
            let process = unsafe { OwnedFd::from_raw_fd(process) };
            Ok(Some(Child { id: id as u32, process, is_reaped: false }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// `None` in the child.
///
/// # Safety
///
/// As for [`start`].
#[allow(unsafe_code, reason = "as for `start`")]
unsafe fn fork() -> io::Result<Option<Child>> {
    // SAFETY: the caller's.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        id => {
            let pid = Pid::from_raw(id).filter(|_| id > 0).ok_or_else(io::Error::last_os_error)?;
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => Ok(Some(Child { id: id as u32, process, is_reaped: false })),
                Err(error) => {
                    // Without it nothing can be known of the child.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                    Err(error.into())
                }
            }
        }
    }
}

/// What a program expects of signals: this process blocks some, and ignores the end of its readers.
fn as_a_program_expects_it() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    #[allow(unsafe_code, reason = "a handler could be anything")]
    // SAFETY: there is none.
    unsafe {
        sigaction(Signal::SIGPIPE, &default)?
    };
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

impl Child {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.process, rustix::process::Signal::KILL)?)
    }

    /// Waits for its end. Dropped before that, it can be waited for again.
    pub(crate) async fn wait(&mut self) -> io::Result<Ended> {
        #[allow(unsafe_code, reason = "what is registered is known by its number")]
        // SAFETY: the descriptor is open for as long as it is borrowed, which is longer than this lives.
        let process = unsafe { AsyncFd::register_with_interest(self.process.as_fd(), Interest::READABLE)? };
        loop {
            let mut ready = process.readable().await?;
            if let Some(status) =
                waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?
            {
                self.is_reaped = true;
                return Ok(status.into());
            }
            ready.clear_ready();
        }
    }

    /// The same for one that is known to end at once.
    pub(crate) fn wait_here(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(status) = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED)? {
                self.is_reaped = true;
                return Ok(status.into());
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.kill();
            let _ = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

impl From<WaitIdStatus> for Ended {
    fn from(status: WaitIdStatus) -> Ended {
        match status.exit_status() {
            Some(code) => Ended::Exit(code),
            None => Ended::Signal(status.terminating_signal().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [Way; 2] = [Way::Clone(CloneFlags::empty()), Way::Fork];

    fn begin(way: Way, body: impl FnOnce(&Voice)) -> (Child, Option<Word>) {
        #[allow(unsafe_code, reason = "the bodies below make system calls only")]
        // SAFETY: as above.
        unsafe {
            start(Beginning { way, group: None }, body).unwrap()
        }
    }

    fn exit(status: i32) {
        #[allow(unsafe_code, reason = "as for all that is left of a process")]
        // SAFETY: it is the child's end.
        unsafe {
            libc::_exit(status)
        }
    }

    #[tokio::test]
    async fn how_a_child_ends_is_known() {
        for way in WAYS {
            let (mut child, word) = begin(way, |_| exit(7));
            assert_eq!((word, child.wait().await.unwrap()), (None, Ended::Exit(7)));
            let said = Word { about: 3, value: -5 };
            let (mut child, word) = begin(way, |voice| voice.say(said));
            assert_eq!((word, child.wait_here().unwrap()), (Some(said), Ended::Exit(127)));
        }
    }

    #[tokio::test]
    async fn a_child_can_be_killed_and_is_when_it_is_dropped() {
        for way in WAYS {
            let pause = |voice: &Voice| {
                voice.end();
                let _ = nix::poll::poll(&mut [], nix::poll::PollTimeout::NONE);
            };
            let (mut child, _) = begin(way, pause);
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(50), child.wait());
            assert!(waiting.await.is_err());
            child.kill().unwrap();
            assert_eq!(child.wait().await.unwrap(), Ended::Signal(libc::SIGKILL));
            let (child, _) = begin(way, pause);
            let watched = child.process.try_clone().unwrap();
            drop(child);
            let ended = waitid(WaitId::PidFd(watched.as_fd()), WaitIdOptions::EXITED);
            // Reaped by the drop, or by this.
            assert!(matches!(ended, Ok(Some(_)) | Err(rustix::io::Errno::CHILD)), "{ended:?}");
        }
    }

    #[test]
    fn a_child_has_none_of_our_signal_handling() {
        // The test's process ignores SIGPIPE, as every Rust program does.
        let (mut child, _) = begin(WAYS[0], |_| {
            let _ = nix::sys::signal::raise(Signal::SIGPIPE);
        });
        assert_eq!(child.wait_here().unwrap(), Ended::Signal(libc::SIGPIPE));
    }
}
