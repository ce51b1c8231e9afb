//! The steps of a child on its way to being QEMU, and which of them a trial has found to be possible.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::qemu::child::Word;
use crate::qemu::filter::Filter;
use crate::qemu::landlock::Landlock;
use crate::qemu::privileges;

/// Descriptors that QEMU may have open. It is given a dozen.
const OPEN_FILES: u64 = 64;

/// What a child is confined by, made before it is.
pub(crate) struct Confinement<'a> {
    /// What it keeps, and where.
    pub(crate) descriptors: &'a [(RawFd, RawFd)],
    /// Who it becomes, with a group of the same number. `None` for nobody else.
    pub(crate) user: Option<u32>,
    /// A group that it is in as well.
    pub(crate) group: Option<Gid>,
    /// Size to which it may write files.
    pub(crate) file_bytes: u64,
    /// The process that it must not outlive.
    pub(crate) server: BorrowedFd<'a>,
    pub(crate) oom_score: &'a str,
    /// What it may do with files, where the kernel can tell it.
    pub(crate) landlock: Option<&'a Landlock>,
    /// What it may ask of the kernel. `None` for what is no program.
    pub(crate) filter: Option<&'a Filter>,
}

/// A step of a child on its way to being QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Descriptors = 1,
    Session,
    User,
    Limits,
    Privileges,
    Lifeline,
    Landlock,
    Filter,
    Program,
}

/// With what an error says that it was about.
const STEPS: [(Step, &str); 9] = [
    (Step::Descriptors, "giving it its descriptors"),
    (Step::Session, "giving it a session of its own"),
    (Step::User, "changing to another user"),
    (Step::Limits, "setting its limits"),
    (Step::Privileges, "giving up its privileges"),
    (Step::Lifeline, "tying its life to the server's"),
    (Step::Landlock, "submitting it to Landlock's rules"),
    (Step::Filter, "filtering its system calls"),
    (Step::Program, "executing it"),
];

/// Why a child did not become QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    step: Option<Step>,
    errno: i32,
}

/// What of the steps that may fail has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Degree {
    pub(crate) has_no_bounding_set: bool,
    pub(crate) has_oom_score: bool,
}

/// Runs in the child, before QEMU, and in one that tries it out: system calls only.
pub(crate) fn confine(confinement: &Confinement<'_>) -> Result<Degree, Refused> {
    let at = |step: Step| move |error: io::Error| Refused::new(step, &error);
    keep_descriptors(confinement.descriptors).map_err(at(Step::Descriptors))?;
    leave_session().map_err(at(Step::Session))?;
    // Both before the change of user, who may do neither.
    let has_oom_score = write_oom_score(confinement.oom_score).is_ok();
    let has_no_bounding_set = privileges::empty_bounding_set();
    become_user(confinement.user, confinement.group).map_err(at(Step::User))?;
    limit(confinement.file_bytes).map_err(at(Step::Limits))?;
    privileges::give_up().map_err(at(Step::Privileges))?;
    // After the change of user, which clears it.
    end_with(confinement.server).map_err(at(Step::Lifeline))?;
    if let Some(landlock) = confinement.landlock {
        landlock.apply().map_err(|errno| Refused::new(Step::Landlock, &errno.into()))?;
    }
    // Last, since it forbids what came before.
    if let Some(filter) = confinement.filter {
        filter.apply().map_err(|errno| Refused::new(Step::Filter, &errno.into()))?;
    }
    Ok(Degree { has_no_bounding_set, has_oom_score })
}

/// Keeps these descriptors and no other beyond the end of this program: whoever started the server may have left some open
/// without close-on-exec.
fn keep_descriptors(descriptors: &[(RawFd, RawFd)]) -> io::Result<()> {
    let first = libc::STDERR_FILENO + 1;
    #[allow(unsafe_code, reason = "nix has no wrapper of close_range")]
    // SAFETY: it only sets a flag on descriptors of this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    for &(file, place) in descriptors {
        #[allow(unsafe_code, reason = "places are numbers")]
        // SAFETY: nothing of ours is in the place, in a process that owns nothing.
        if unsafe { libc::dup2(file, place) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Away from the server's terminal, whose Ctrl-C is for the server, and from its group of processes, which could be signalled
/// as a whole.
fn leave_session() -> io::Result<()> {
    setsid()?;
    Ok(())
}

/// A host that is out of memory shall end a VM, and not who uses it.
fn write_oom_score(score: &str) -> io::Result<()> {
    let (flags, mode) = (rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, mode)?;
    rustix::io::write(&file, score.as_bytes())?;
    Ok(())
}

fn become_user(user: Option<u32>, group: Option<Gid>) -> io::Result<()> {
    let Some(id) = user else { return Ok(()) };
    let (user, own_group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(group.as_slice())?;
    set_thread_res_gid(own_group, own_group, own_group)?;
    set_thread_res_uid(user, user, user)?;
    Ok(())
}

fn limit(file_bytes: u64) -> io::Result<()> {
    let limits =
        [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_FSIZE, file_bytes), (Resource::RLIMIT_NOFILE, OPEN_FILES)];
    for (resource, most) in limits {
        // Whoever started the server may have set less, of which nobody gets back anything.
        let most = getrlimit(resource)?.1.min(most);
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

/// Has the kernel end this process when the server ends.
fn end_with(server: BorrowedFd<'_>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The server may have ended before that. Its id would not say so: in a PID namespace it has none.
    let mut server = [PollFd::from_borrowed_fd(server, PollFlags::IN)];
    match poll(&mut server, Some(&Timespec::default()))? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

impl Refused {
    pub(crate) fn new(step: Step, error: &io::Error) -> Refused {
        Refused { step: Some(step), errno: error.raw_os_error().unwrap_or_default() }
    }
}

impl From<Refused> for Word {
    fn from(refused: Refused) -> Word {
        Word { about: refused.step.map_or(u8::MAX, |step| step as u8), value: refused.errno }
    }
}

impl From<Word> for Refused {
    fn from(word: Word) -> Refused {
        let step = STEPS.iter().map(|(step, _)| *step).find(|step| *step as u8 == word.about);
        Refused { step, errno: word.value }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = STEPS.iter().find(|(step, _)| Some(*step) == self.step).map_or("confining it", |(_, doing)| doing);
        write!(formatter, "{doing}: {}", io::Error::from_raw_os_error(self.errno))
    }
}

/// What a trial says that came to its end, beside the steps that can fail.
const DONE: u8 = 0;

impl From<Degree> for Word {
    fn from(degree: Degree) -> Word {
        Word { about: DONE, value: i32::from(degree.has_no_bounding_set) | i32::from(degree.has_oom_score) << 1 }
    }
}

impl TryFrom<Word> for Degree {
    type Error = Refused;

    fn try_from(word: Word) -> Result<Degree, Refused> {
        match word.about {
            DONE => Ok(Degree { has_no_bounding_set: word.value & 1 != 0, has_oom_score: word.value & 2 != 0 }),
            _ => Err(word.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_pipe_and_says_what_was_refused() {
        for (step, doing) in STEPS {
            let refused = Refused::new(step, &io::Error::from_raw_os_error(libc::EPERM));
            assert_eq!(Refused::from(Word::from(refused)), refused);
            assert_eq!(refused.to_string(), format!("{doing}: Operation not permitted (os error 1)"));
        }
        assert!(Refused::from(Word { about: 200, value: libc::EIO }).to_string().starts_with("confining it: "));
    }

    #[test]
    fn a_trial_tells_its_degree() {
        for (has_no_bounding_set, has_oom_score) in [(false, false), (true, false), (false, true), (true, true)] {
            let degree = Degree { has_no_bounding_set, has_oom_score };
            assert_eq!(Degree::try_from(Word::from(degree)), Ok(degree));
        }
        let refused = Refused::new(Step::User, &io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(Degree::try_from(Word::from(refused)), Err(refused));
    }
}
