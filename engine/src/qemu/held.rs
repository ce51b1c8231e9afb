//! For tests: what a system call comes to in a process that something holds.
#![allow(unsafe_code, reason = "what system calls come to is seen by making them")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// What a child exits with that could not be held: no error has this number.
const REFUSED: i32 = 255;

/// Does `act` in a child that `apply` holds, and tells how that ends: its exit status is 0, or the number of the error.
pub(super) fn held_by(apply: impl FnOnce() -> Result<(), Errno>, act: impl FnOnce() -> libc::c_long) -> WaitStatus {
    // SAFETY: the child makes system calls only.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let applied = nix::sys::prctl::set_no_new_privs().and_then(|()| apply());
            let status = match applied {
                Ok(()) if act() >= 0 => 0,
                Ok(()) => Errno::last_raw(),
                Err(_) => REFUSED,
            };
            // SAFETY: it ends the child.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_ne!(ended, WaitStatus::Exited(child, REFUSED), "what is to hold it is refused");
            ended
        }
    }
}
