//! QEMU's system calls as tables: which it may make, with which arguments, and which end it. [`filter`](super::filter) is made of
//! them and says why.

use nix::libc;

/// Calls that are allowed with any arguments, by what they are for. What they may be done to is a matter of the descriptors that
/// QEMU has, and of Landlock.
pub(super) const ALLOWED: &[&[libc::c_long]] = &[
    // Memory. Under TCG QEMU writes code and executes it: no rule on PROT_EXEC could hold.
    &[
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_membarrier,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_msync,
        libc::SYS_munmap,
    ],
    // Files that are open, and what a program looks at while it is being loaded.
    &[
        libc::SYS_access,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_dup,
        libc::SYS_dup2,
        libc::SYS_dup3,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fadvise64,
        libc::SYS_fallocate,
        libc::SYS_fchdir,
        libc::SYS_fcntl,
        libc::SYS_fdatasync,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_lseek,
        libc::SYS_lstat,
        libc::SYS_newfstatat,
        libc::SYS_pipe,
        libc::SYS_pipe2,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_read,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_readv,
        libc::SYS_stat,
        libc::SYS_statfs,
        libc::SYS_statx,
        libc::SYS_write,
        libc::SYS_writev,
    ],
    // Threads of its own.
    &[
        libc::SYS_arch_prctl,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_get_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
    ],
    // Waiting.
    &[
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_epoll_wait,
        libc::SYS_eventfd2,
        libc::SYS_gettimeofday,
        libc::SYS_nanosleep,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_pselect6,
        libc::SYS_select,
        libc::SYS_signalfd4,
        libc::SYS_time,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_gettime,
        libc::SYS_timerfd_settime,
    ],
    // Signals to itself; `tgkill` is below.
    &[
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigpending,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigsuspend,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_sigaltstack,
    ],
    // The wire and the monitor, which it is given: it makes no socket.
    &[
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
    ],
    // Who and where it is.
    &[
        libc::SYS_getcpu,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getrandom,
        libc::SYS_getrlimit,
        libc::SYS_getrusage,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_sysinfo,
        libc::SYS_times,
        libc::SYS_uname,
    ],
    // How QEMU begins. It cannot be said that this is for once: QEMU's own filter forbids it when QEMU is up, Landlock lets nothing be
    // executed but QEMU, and no_new_privs has nothing to be won by it.
    &[libc::SYS_execve],
    // QEMU's own filter, which can only forbid more.
    &[libc::SYS_seccomp],
];

/// Calls that end the process: there is no way to them that begins with a fallback or a probe of QEMU's or of a library's.
pub(super) const DEADLY: &[&[libc::c_long]] = &[
    // Into other processes.
    &[
        libc::SYS_kcmp,
        libc::SYS_kill,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_process_madvise,
        libc::SYS_process_mrelease,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_tkill,
    ],
    // New processes.
    &[libc::SYS_execveat, libc::SYS_fork, libc::SYS_vfork],
    // Other rights, other worlds.
    &[
        libc::SYS_capset,
        libc::SYS_chroot,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_pivot_root,
        libc::SYS_setfsgid,
        libc::SYS_setfsuid,
        libc::SYS_setgid,
        libc::SYS_setgroups,
        libc::SYS_setns,
        libc::SYS_setregid,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_setreuid,
        libc::SYS_setuid,
        libc::SYS_umount2,
        libc::SYS_unshare,
    ],
    // Parts of the kernel that more exploits began with than programs had use for. Not io_uring and userfaultfd: QEMU looks
    // whether they are there.
    &[
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_modify_ldt,
        libc::SYS_perf_event_open,
        libc::SYS_request_key,
    ],
    // The whole machine.
    &[
        libc::SYS_acct,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_init_module,
        libc::SYS_ioperm,
        libc::SYS_iopl,
        libc::SYS_kexec_file_load,
        libc::SYS_kexec_load,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_setdomainname,
        libc::SYS_sethostname,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
    ],
];

/// What a new thread shares with the one that makes it. A process would share less.
pub(super) const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

/// Namespaces of its own a thread cannot have either way, nor be traced.
pub(super) const NOT_A_THREADS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK) as u64;

/// What makes a file where there was none. (O_TMPFILE is O_DIRECTORY as well, which may be.)
pub(super) const CREATES: u64 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64;

/// What a process may ask of itself. Not PR_SET_PDEATHSIG, by which it ends with the server, nor PR_SET_DUMPABLE and PR_SET_PTRACER.
pub(super) const PRCTL: &[libc::c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    // By which older libraries set a filter.
    libc::PR_SET_SECCOMP,
    libc::PR_GET_SECCOMP,
    libc::PR_SET_TIMERSLACK,
    libc::PR_GET_TIMERSLACK,
    libc::PR_MCE_KILL,
    libc::PR_CAPBSET_READ,
    PR_SET_VMA,
];

/// Gives anonymous memory a name in /proc, as newer C libraries do.
pub(super) const PR_SET_VMA: libc::c_int = 0x53_56_4d_41;

/// What is asked of files. All that TCG was seen to do without one.
pub(super) const IOCTL: &[libc::c_ulong] = &[
    libc::FIONREAD,
    libc::FIONBIO,
    // Whether it is a terminal.
    libc::TCGETS,
];

/// KVM's own, of the machine, of its processor and of the devices within it, have this in their second byte.
pub(super) const KVM_IOCTL: u64 = 0xae << 8;
