//! What QEMU may do with files, sockets and other processes, where the kernel has Landlock: nothing but read what it consists of
//! and what it was given.
//!
//! It needs no right to be set up, and is what keeps a user's files from a QEMU that a guest has conquered where that runs as the
//! same user. What is open already is not its business: descriptors stay as good as they are.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, AddRuleError, AddRulesError, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use sandbox_schemas::accelerator::Accelerator;

use crate::qemu::child::not_given;
use crate::qemu::command::KVM_DEVICE;
use crate::qemu::program::Program;

/// All that this was written for; of it, the kernel does what it can.
const NEWEST: ABI = ABI::V10;

/// Where systems keep libraries, and QEMU's firmware, for anybody to read. Neither `/usr` as a whole nor `/etc`: what an
/// administrator has put there need not be for everybody.
const LIBRARIES: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/share",
    "/nix/store",
    "/gnu/store",
    "/home/linuxbrew/.linuxbrew",
];

/// What a loader and a C library look at.
const LOADERS_FILES: &[&str] = &["/etc/ld.so.cache", "/etc/ld.so.preload"];

/// What GLib looks at in every QEMU.
const DEVICES: &[&str] = &["/dev/null", "/dev/urandom"];

/// The same of a QEMU that lies elsewhere: beside the folder that it is in. Not all of that, which may be `~/.local`.
const BESIDE: &[&str] = &["lib", "lib64", "share/qemu", "share/seabios", "share/qemu-firmware"];

/// Rules for one process, which has yet to submit to them.
#[derive(Debug)]
pub(crate) struct Landlock(OwnedFd);

/// Why there are no rules although the kernel has Landlock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LandlockError {
    /// The kernel has refused one.
    #[error("Landlock: {0}")]
    Rules(#[from] RulesetError),
    /// There is no descriptor for them.
    #[error("a descriptor for Landlock's rules: {0}")]
    Descriptor(#[from] std::io::Error),
}

/// The version of Landlock that the kernel has, as far as it is made use of here; `None` where there is none, or it is off.
pub(crate) fn abi() -> Option<u32> {
    const ASK_FOR_VERSION: libc::c_uint = 1;
    #[allow(unsafe_code, reason = "the crate tells only who is restricted")]
    // SAFETY: without attributes it makes nothing, and touches no memory.
    let version = unsafe {
        let nothing = std::ptr::null::<libc::c_void>();
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, ASK_FOR_VERSION)
    };
    u32::try_from(version).ok().filter(|version| *version > 0).map(|version| version.min(NEWEST as u32))
}

impl Landlock {
    /// For a process that will be `program`, which is at `path` and open as `binary`, and gets `files`. `None` where the kernel has no
    /// Landlock, and for a script.
    pub(crate) fn new<'a>(
        program: &Program,
        path: &Path,
        binary: &File,
        files: impl IntoIterator<Item = BorrowedFd<'a>>,
        accelerator: Accelerator,
    ) -> Result<Option<Landlock>, LandlockError> {
        let loader = match program {
            Program::Script => return Ok(None),
            Program::Static => None,
            Program::Dynamic { loader } => Some(loader),
        };
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        allow(&mut rules, binary, AccessFs::Execute | AccessFs::ReadFile)?;
        for device in DEVICES {
            allow_path(&mut rules, Path::new(device), AccessFs::ReadFile.into())?;
        }
        if let Some(loader) = loader {
            allow_path(&mut rules, loader, AccessFs::Execute | AccessFs::ReadFile)?;
            let systems = LIBRARIES.iter().chain(LOADERS_FILES).map(PathBuf::from);
            for place in systems.chain(beside(path)) {
                allow_path(&mut rules, &place, AccessFs::ReadFile | AccessFs::ReadDir)?;
            }
        }
        if accelerator == Accelerator::Kvm {
            let access = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
            allow_path(&mut rules, Path::new(KVM_DEVICE), access)?;
        }
        for file in files {
            // It opens them once more by their descriptors: for no more than the server has.
            let access = match fcntl(file, FcntlArg::F_GETFL).map(|flags| flags & libc::O_ACCMODE) {
                Ok(libc::O_RDWR) => AccessFs::ReadFile | AccessFs::WriteFile,
                _ => AccessFs::ReadFile.into(),
            };
            allow(&mut rules, file, access)?;
        }
        let Some(rules) = Option::<OwnedFd>::from(rules) else { return Ok(None) };
        Ok(Some(Landlock(not_given(rules)?)))
    }

    /// Runs in the child: a system call only. The process must have no_new_privs.
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        #[allow(unsafe_code, reason = "the crate's own wrapper would do it to the server")]
        // SAFETY: it takes a descriptor, which is open, and a number, and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        Errno::result(result).map(drop)
    }
}

/// Where a QEMU that is not the system's has what it needs.
fn beside(path: &Path) -> Vec<PathBuf> {
    // Links are what it is found by, and not where it is.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match path.parent() {
        Some(folder) if folder.ends_with("bin") => {
            folder.parent().map_or(Vec::new(), |prefix| BESIDE.iter().map(|name| prefix.join(name)).collect())
        }
        _ => Vec::new(),
    }
}

/// What is not there, or cannot be looked at, need not be allowed.
fn allow_path(rules: &mut RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<(), RulesetError> {
    match PathFd::new(path) {
        Ok(place) => allow(rules, place, access),
        Err(_) => Ok(()),
    }
}

fn allow(rules: &mut RulesetCreated, file: impl AsFd, access: BitFlags<AccessFs>) -> Result<(), RulesetError> {
    match rules.add_rule(PathBeneath::new(file, access)) {
        // It is in memory alone, where Landlock has nothing to say: nobody else can reach it by a path.
        Err(RulesetError::AddRules(AddRulesError::Fs(AddRuleError::AddRuleCall { source, .. })))
            if source.raw_os_error() == Some(libc::EBADFD) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "what system calls come to is seen by making them")]
mod tests {
    use super::*;
    use crate::qemu::held::held_by;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::WaitStatus;
    use nix::unistd::{Pid, getpid};
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    /// What a system call comes to in a process that has submitted: 0, or an error's number.
    fn held(landlock: &Landlock, act: impl FnOnce() -> libc::c_long) -> i32 {
        match held_by(|| landlock.apply(), act) {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn open(landlock: &Landlock, path: &Path, flags: libc::c_int) -> i32 {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends with a null.
        held(landlock, || unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) })
    }

    /// Rules, where the kernel has any.
    fn rules(program: &Program, path: &Path, files: &[&dyn AsFd]) -> Option<Landlock> {
        let binary = File::open("/proc/self/exe").unwrap();
        let files = files.iter().map(|file| file.as_fd());
        let landlock = Landlock::new(program, path, &binary, files, Accelerator::Tcg).unwrap();
        assert_eq!(landlock.is_some(), abi().is_some(), "rules are there where Landlock is");
        if landlock.is_none() {
            eprintln!("SKIPPED: this kernel has no Landlock");
        }
        landlock
    }

    const REFUSED: i32 = libc::EACCES;

    #[test]
    fn what_was_given_may_be_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (given, lent, secret) = (file("given"), file("lent"), file("secret"));
        let reads = File::open(&given).unwrap();
        let writes = File::options().read(true).write(true).open(&lent).unwrap();
        let memory = memfd_create(c"memory", MFdFlags::empty()).unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let files: [&dyn AsFd; 4] = [&reads, &writes, &memory, &socket];
        let Some(landlock) = rules(&Program::Static, Path::new("/qemu"), &files) else { return };

        let by_descriptor = |file: &dyn AsRawFd| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(open(&landlock, &by_descriptor(&reads), libc::O_RDONLY), 0);
        assert_eq!(open(&landlock, &by_descriptor(&reads), libc::O_RDWR), REFUSED);
        assert_eq!(open(&landlock, &by_descriptor(&writes), libc::O_RDWR), 0, "the server has it like that");
        assert_eq!(open(&landlock, &by_descriptor(&memory), libc::O_RDWR), 0, "memory has no place to be forbidden");
        assert_eq!(open(&landlock, &secret, libc::O_RDONLY), REFUSED);
        assert_eq!(open(&landlock, &folder.path().join("new"), libc::O_WRONLY | libc::O_CREAT), REFUSED);
        for path in ["/etc/passwd", "/proc/self/mem", "/dev/zero", "/usr/lib", "/", "/tmp"] {
            assert_eq!(open(&landlock, Path::new(path), libc::O_RDONLY), REFUSED, "{path}");
        }
    }

    #[test]
    fn libraries_are_there_for_who_has_a_loader() {
        let prefix = tempfile::tempdir().unwrap();
        for name in ["bin", "lib", "share/qemu", "share/keyrings"] {
            std::fs::create_dir_all(prefix.path().join(name)).unwrap();
        }
        let loader = PathBuf::from("/lib64/ld-linux-x86-64.so.2");
        let path = prefix.path().join("bin/qemu");
        std::fs::write(&path, "").unwrap();
        let Some(landlock) = rules(&Program::Dynamic { loader: loader.clone() }, &path, &[]) else { return };
        for (path, expected) in [
            (Path::new("/usr/lib"), 0),
            (&loader, 0),
            (&prefix.path().join("lib"), 0),
            (&prefix.path().join("share/qemu"), 0),
            (&prefix.path().join("share/keyrings"), REFUSED),
            (prefix.path(), REFUSED),
            (Path::new("/etc/passwd"), REFUSED),
            (Path::new("/usr/bin/env"), REFUSED),
        ] {
            assert_eq!(open(&landlock, path, libc::O_RDONLY), expected, "{}", path.display());
        }
        // The loader may be executed, and what is read may not.
        let arguments = [std::ptr::null::<libc::c_char>()];
        // SAFETY: lists that end with a null.
        let executed = held(&landlock, || unsafe {
            libc::syscall(libc::SYS_execve, c"/usr/bin/env".as_ptr(), arguments.as_ptr(), arguments.as_ptr())
        });
        assert_eq!(executed, REFUSED);
    }

    #[test]
    fn no_other_process_is_reached() {
        let Some(landlock) = rules(&Program::Static, Path::new("/qemu"), &[]) else { return };
        let (test, version) = (getpid().as_raw(), abi().unwrap());
        let memory = PathBuf::from(format!("/proc/{test}/mem"));
        assert_eq!(open(&landlock, &memory, libc::O_RDONLY), REFUSED);
        // SAFETY: it takes numbers.
        let traced = held(&landlock, || unsafe { libc::ptrace(libc::PTRACE_SEIZE, test, 0, 0) });
        assert_eq!(traced, libc::EPERM);
        if version >= 6 {
            assert_eq!(kill(Pid::from_raw(test), None::<Signal>), Ok(()), "who has not submitted may");
            // SAFETY: signal 0 is none.
            assert_eq!(held(&landlock, || libc::c_long::from(unsafe { libc::kill(test, 0) })), libc::EPERM);
        }
        if version >= 4 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port().to_be_bytes();
            let address: [u8; 16] = [2, 0, port[0], port[1], 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: an address of IPv4, as long as it says.
            let connected = held(&landlock, || unsafe {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                libc::c_long::from(libc::connect(socket, address.as_ptr().cast(), 16))
            });
            assert_eq!(connected, REFUSED);
        }
    }

    #[test]
    fn a_script_reads_what_it_likes() {
        let binary = File::open("/proc/self/exe").unwrap();
        let rules = Landlock::new(&Program::Script, Path::new("/qemu"), &binary, [], Accelerator::Tcg);
        assert!(rules.unwrap().is_none());
    }
}
