//! The system calls that QEMU may make: a list of those it needs, whichever version it is, and nothing else.
//!
//! QEMU's own `-sandbox` is a list of what is forbidden, and what a later kernel adds is not on it. It stays on, above ours: it
//! comes when QEMU is up, and takes away what only its start needs (`execve`).
//!
//! Two filters, of which the kernel obeys the stricter:
//!
//! - **What is not on the list fails with `ENOSYS`**, as on an older kernel, for which the C library and QEMU have another way:
//!   so a call that is new to us costs a fallback and not a VM. (`EPERM` they take for an answer, and give up.)
//! - **What no QEMU of ours ever asks for, and an attacker does, ends the process.** Whoever calls `ptrace` there has conquered it.
//!
//! Both are in force before QEMU begins, in every thread, for ever. Calls of another architecture end the process as well;
//! those of x32 are not on the list. What is allowed whatever its arguments costs nothing: the kernel keeps a table of these.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::libc;
use sandbox_schemas::accelerator::Accelerator;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::qemu::calls::{ALLOWED, CREATES, DEADLY, IOCTL, KVM_IOCTL, NOT_A_THREADS, PRCTL, THREAD};
use crate::qemu::program::Program;

/// Stands in a filter for the id of the process, which is not known before that is there. No process has it: the kernel's largest
/// id is 4,194,304.
const OWN_ID: u32 = 0x7fab_cdef;

/// Most instructions of a filter with [`OWN_ID`] in it.
const PROGRAM_MAX: usize = 1024;

/// What one kind of QEMU is held by.
#[derive(Debug)]
pub(crate) struct Filter {
    deadly: BpfProgram,
    allowed: BpfProgram,
    /// Where in `allowed` the process's id belongs.
    own_id: usize,
}

/// A filter that cannot be built: a fault of the lists.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the system call filter cannot be built: {0}")]
pub(crate) struct FilterError(String);

impl Filter {
    /// The one for QEMUs of this kind, built once. `None` for a script, which starts and reads what it likes.
    pub(crate) fn of(program: &Program, accelerator: Accelerator) -> Result<Option<&'static Filter>, FilterError> {
        static TCG: LazyLock<Result<Filter, FilterError>> = LazyLock::new(|| Filter::new(false));
        static KVM: LazyLock<Result<Filter, FilterError>> = LazyLock::new(|| Filter::new(true));
        let filter = match (program, accelerator) {
            (Program::Script, _) => return Ok(None),
            (_, Accelerator::Tcg) => &TCG,
            (_, Accelerator::Kvm) => &KVM,
        };
        filter.as_ref().map(Some).map_err(Clone::clone)
    }

    fn new(uses_kvm: bool) -> Result<Filter, FilterError> {
        let deadly = compile(of_any_arguments(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?;
        let mut rules = of_any_arguments(ALLOWED);
        rules.extend(of_some_arguments(uses_kvm)?);
        let otherwise = SeccompAction::Errno(libc::ENOSYS as u32);
        let allowed = compile(rules, otherwise, SeccompAction::Allow)?;
        let mut places = allowed.iter().enumerate().filter(|(_, instruction)| instruction.k == OWN_ID);
        match (places.next(), places.next()) {
            (Some((own_id, _)), None) if allowed.len() <= PROGRAM_MAX => {
                drop(places);
                Ok(Filter { deadly, allowed, own_id })
            }
            _ => Err(FilterError("the process's id has no place in it, or it is too long".into())),
        }
    }

    /// Runs in the child, as the last step before it is QEMU: system calls only. The process must have no_new_privs.
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        #[allow(unsafe_code, reason = "the C library's getpid may remember another process's")]
        // SAFETY: it has no arguments and cannot fail.
        let id = unsafe { libc::syscall(libc::SYS_getpid) };
        const NOTHING: sock_filter = sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        let mut program = [NOTHING; PROGRAM_MAX];
        let program = &mut program[..self.allowed.len()];
        program.clone_from_slice(&self.allowed);
        program[self.own_id].k = id as u32;
        install(&self.deadly)?;
        install(program)
    }
}

/// The order matters to the kernel alone, which is told the number of a call: the map's is by number.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn of_any_arguments(groups: &[&[libc::c_long]]) -> Rules {
    groups.iter().flat_map(|group| group.iter()).map(|&call| (call, Vec::new())).collect()
}

/// Calls that are allowed with some arguments. Where a call has several rules, one of them has to fit.
fn of_some_arguments(uses_kvm: bool) -> Result<Rules, FilterError> {
    let opens_what_is_there = |argument| rule(&[(argument, SeccompCmpOp::MaskedEq(CREATES), 0)]);
    let mut ioctl =
        IOCTL.iter().map(|&request| rule(&[(1, SeccompCmpOp::Eq, request)])).collect::<Result<Vec<_>, _>>()?;
    if uses_kvm {
        ioctl.push(rule(&[(1, SeccompCmpOp::MaskedEq(0xff00), KVM_IOCTL)])?);
    }
    let prctl =
        PRCTL.iter().map(|&option| rule(&[(0, SeccompCmpOp::Eq, option as u64)])).collect::<Result<Vec<_>, _>>()?;
    Ok(Rules::from([
        // Nothing is made, whatever Landlock says to it.
        (libc::SYS_open, vec![opens_what_is_there(1)?]),
        (libc::SYS_openat, vec![opens_what_is_there(2)?]),
        (
            libc::SYS_clone,
            vec![rule(&[(0, SeccompCmpOp::MaskedEq(THREAD), THREAD), (0, SeccompCmpOp::MaskedEq(NOT_A_THREADS), 0)])?],
        ),
        // A thread of its own is woken with it (KVM), and an assertion that fails ends the process.
        (libc::SYS_tgkill, vec![rule(&[(0, SeccompCmpOp::Eq, u64::from(OWN_ID))])?]),
        (libc::SYS_ioctl, ioctl),
        (libc::SYS_prctl, prctl),
        // Its limits are asked for, not changed, and nobody else's.
        (libc::SYS_prlimit64, vec![rule_wide(&[(0, SeccompCmpOp::Eq, 0), (2, SeccompCmpOp::Eq, 0)])?]),
    ]))
}

/// What has to be true of the arguments together. The kernel takes these for 32 bits: more are not looked at by it either.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, FilterError> {
    build_rule(SeccompCmpArgLen::Dword, conditions)
}

/// The same of 64 bits, as pointers have.
fn rule_wide(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, FilterError> {
    build_rule(SeccompCmpArgLen::Qword, conditions)
}

fn build_rule(length: SeccompCmpArgLen, conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, FilterError> {
    let conditions = conditions
        .iter()
        .map(|(argument, operator, value)| SeccompCondition::new(*argument, length.clone(), operator.clone(), *value));
    let conditions = conditions.collect::<Result<Vec<_>, _>>();
    conditions.and_then(SeccompRule::new).map_err(|error| FilterError(error.to_string()))
}

fn compile(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, FilterError> {
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|error| FilterError(error.to_string()))
}

fn install(program: &[sock_filter]) -> Result<(), Errno> {
    match seccompiler::apply_filter(program) {
        Ok(()) => Ok(()),
        Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error)) => {
            Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL)))
        }
        Err(_) => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "what system calls come to is seen by making them")]
mod tests {
    use super::*;
    use crate::qemu::held::held_by;
    use nix::sys::signal::Signal;
    use nix::sys::wait::WaitStatus;
    use nix::unistd::getpid;

    /// What has come of a call.
    #[derive(Debug, PartialEq)]
    enum Outcome {
        Done,
        Failed(Errno),
        Killed,
    }

    /// Does `act` in a process that the filter holds; it returns what a system call does.
    fn held(filter: &Filter, act: impl FnOnce() -> libc::c_long) -> Outcome {
        match held_by(|| filter.apply(), act) {
            WaitStatus::Exited(_, 0) => Outcome::Done,
            WaitStatus::Exited(_, errno) => Outcome::Failed(Errno::from_raw(errno)),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => Outcome::Killed,
            other => panic!("{other:?}"),
        }
    }

    fn call(filter: &Filter, number: libc::c_long, arguments: &[u64]) -> Outcome {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let [a, b, c, d, e, f] = all;
        // SAFETY: no call that is made here takes memory that is not there, and all but a few are refused.
        held(filter, || unsafe { libc::syscall(number, a, b, c, d, e, f) })
    }

    fn filter() -> Filter {
        Filter::new(false).unwrap()
    }

    const UNKNOWN: Outcome = Outcome::Failed(Errno::ENOSYS);

    #[test]
    fn no_call_is_on_two_lists() {
        let listed = [ALLOWED, DEADLY].concat().concat();
        let conditional = of_some_arguments(true).unwrap();
        let mut all: Vec<i64> = listed.into_iter().chain(conditional.into_keys()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_is_not_listed_is_unknown_and_what_is_deadly_kills() {
        let filter = filter();
        for listed in [libc::SYS_getppid, libc::SYS_sched_yield, libc::SYS_gettid] {
            assert_eq!(call(&filter, listed, &[]), Outcome::Done, "{listed}");
        }
        const X32: libc::c_long = 0x4000_0000;
        for unlisted in [
            libc::SYS_clone3,
            libc::SYS_connect,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_setup,
            libc::SYS_memfd_create,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_unlink,
            libc::SYS_userfaultfd,
            libc::SYS_getpid | X32,
            // There may be such a call one day.
            4000,
        ] {
            assert_eq!(call(&filter, unlisted, &[]), UNKNOWN, "{unlisted}");
        }
        for deadly in DEADLY.concat() {
            assert_eq!(call(&filter, deadly, &[]), Outcome::Killed, "{deadly}");
        }
    }

    #[test]
    fn calls_of_another_architecture_kill() {
        let filter = filter();
        let ended = held_by(
            || filter.apply(),
            || {
                // SAFETY: getpid of 32 bits, which takes nothing. Kernels that do not have those send SIGSEGV.
                unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
                0
            },
        );
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGSYS | Signal::SIGSEGV, _)), "{ended:?}");
    }

    #[test]
    fn a_process_signals_itself_and_nobody_else() {
        let filter = filter();
        let itself = held(&filter, || {
            // SAFETY: signal 0 is none.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::syscall(libc::SYS_getpid), libc::syscall(libc::SYS_gettid), 0)
            }
        });
        assert_eq!(itself, Outcome::Done);
        let test = getpid().as_raw() as u64;
        assert_eq!(call(&filter, libc::SYS_tgkill, &[test, test, 0]), UNKNOWN);
        assert_eq!(call(&filter, libc::SYS_tgkill, &[u64::from(OWN_ID), 1, 0]), UNKNOWN, "the id was put in");
    }

    #[test]
    fn arguments_are_looked_at() {
        let filter = filter();
        let path = c"/dev/null".as_ptr() as u64;
        let here = libc::AT_FDCWD as u64;
        let open = |flags: libc::c_int| call(&filter, libc::SYS_openat, &[here, path, flags as u64, 0o600]);
        assert_eq!(open(libc::O_RDWR | libc::O_CLOEXEC), Outcome::Done);
        assert_eq!(open(libc::O_RDONLY | libc::O_DIRECTORY), Outcome::Failed(Errno::ENOTDIR), "it was tried");
        assert_eq!(open(libc::O_RDWR | libc::O_CREAT), UNKNOWN);
        assert_eq!(open(libc::O_RDWR | libc::O_TMPFILE), UNKNOWN);
        assert_eq!(call(&filter, libc::SYS_open, &[path, libc::O_CREAT as u64, 0o600]), UNKNOWN);

        let a_thread = THREAD | libc::CLONE_FS as u64 | libc::CLONE_FILES as u64;
        // Without CLONE_VM, which threads must have, it fails in the kernel, where it has come to.
        assert_eq!(call(&filter, libc::SYS_clone, &[libc::SIGCHLD as u64]), UNKNOWN, "a process");
        assert_eq!(call(&filter, libc::SYS_clone, &[a_thread & !(libc::CLONE_THREAD as u64)]), UNKNOWN);
        assert_eq!(call(&filter, libc::SYS_clone, &[a_thread | libc::CLONE_NEWUSER as u64]), UNKNOWN);

        assert_eq!(
            call(&filter, libc::SYS_ioctl, &[99, libc::FIONREAD]),
            Outcome::Failed(Errno::EBADF),
            "it was tried"
        );
        const KVM_CREATE_VM: u64 = 0xae01;
        assert_eq!(call(&filter, libc::SYS_ioctl, &[99, libc::TIOCSTI]), UNKNOWN);
        assert_eq!(call(&filter, libc::SYS_ioctl, &[99, KVM_CREATE_VM]), UNKNOWN);
        let kvm = Filter::new(true).unwrap();
        assert_eq!(call(&kvm, libc::SYS_ioctl, &[99, KVM_CREATE_VM]), Outcome::Failed(Errno::EBADF), "it was tried");
        assert_eq!(call(&kvm, libc::SYS_ioctl, &[99, libc::TIOCSTI]), UNKNOWN);

        assert_eq!(call(&filter, libc::SYS_prctl, &[libc::PR_GET_NO_NEW_PRIVS as u64]), Outcome::Done);
        for option in [libc::PR_SET_PDEATHSIG, libc::PR_SET_DUMPABLE, libc::PR_SET_PTRACER, libc::PR_SET_MM] {
            assert_eq!(call(&filter, libc::SYS_prctl, &[option as u64]), UNKNOWN, "{option}");
        }
        let (limit, room) = (libc::RLIMIT_FSIZE as u64, [0_u64; 2]);
        let room = room.as_ptr() as u64;
        assert_eq!(call(&filter, libc::SYS_prlimit64, &[0, limit, 0, room]), Outcome::Done);
        assert_eq!(call(&filter, libc::SYS_prlimit64, &[0, limit, room, 0]), UNKNOWN);
        assert_eq!(call(&filter, libc::SYS_prlimit64, &[1, limit, 0, room]), UNKNOWN);
    }

    #[test]
    fn a_script_is_not_held() {
        assert!(Filter::of(&Program::Script, Accelerator::Tcg).unwrap().is_none());
        for program in [Program::Static, Program::Dynamic { loader: "/lib64/ld-linux-x86-64.so.2".into() }] {
            for accelerator in [Accelerator::Tcg, Accelerator::Kvm] {
                assert!(Filter::of(&program, accelerator).unwrap().is_some());
            }
        }
    }
}
