//! From the kernel's hand-over to a guest that can run programs: mounts, devices, loopback.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use sandbox_schemas::limits;

use crate::cgroup;
use crate::confine::{USER_GID, USER_UID};
use crate::error::{Context, Error, Result};
use crate::partition;
use crate::port::Port;
use crate::settings;

/// Where a program and its environment lie while it runs. The user may write here: a runner gives the file the ending
/// that its interpreter wants.
pub(crate) const PROGRAM_DIR: &str = "/run/program";

/// Where the calls of a session lie. The user cannot write here: a disk that is full must not keep the call from running that would
/// remove something.
pub(crate) const CALL_DIR: &str = "/run/calls";

/// The working directory of a program.
pub(crate) const WORKSPACE_DIR: &str = "/workspace";

/// Where the commands of Python's packages are, from whichever part of the layer: in `PATH`.
pub(crate) const COMMAND_DIR: &str = "/run/commands";

/// Where the runners' source lies.
pub(crate) const RUNNER_DIR: &str = "/run/runners";

/// What a program may write to, all on one tmpfs with one quota.
const WRITABLE: [(&str, &str, u32); 6] = [
    ("workspace", WORKSPACE_DIR, 0o755),
    ("home", "/home/user", 0o755),
    ("program", PROGRAM_DIR, 0o755),
    ("tmp", "/tmp", 0o1777),
    ("var-tmp", "/var/tmp", 0o1777),
    ("shm", "/dev/shm", 0o1777),
];

/// The port's driver finds it in a work queue of its own; on a busy host under TCG that took up to 50 ms.
const PORT_WAIT: Duration = Duration::from_secs(10);

/// What has the quota of [`WRITABLE`].
const WRITABLE_DIR: &str = "/run/writable";
const WRITABLE_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// The quota of a run that is given the usual memory.
pub(crate) const WRITABLE_DEFAULT_MB: u64 = limits::writable_mb(limits::MEMORY_DEFAULT_MB);

/// The disk that packages are on, or are installed to.
const SECOND_DISK: &str = "/dev/vdb";

/// One of its parts, counted from 0, and where interpreters look for what is in it: in the first, and in what was added to that.
fn part(index: usize) -> Option<(String, String)> {
    let target = if index == 0 { "/packages".into() } else { format!("/packages-{}", index + 1) };
    (index < limits::LAYER_PARTS_MAX).then(|| (format!("{SECOND_DISK}{}", index + 1), target))
}

/// Brings the guest up and opens the port.
pub(crate) fn bring_up() -> Result<Port> {
    enter_root()?;
    mount_system()?;
    mount_writable()?;
    settings::apply()?;
    bring_up_loopback()?;
    let added = std::iter::repeat_n(limits::LAYER_ADDED_PART_BYTES, limits::LAYER_PARTS_MAX - 1);
    partition::divide(SECOND_DISK, std::iter::once(limits::LAYER_FIRST_PART_BYTES).chain(added))?;
    cgroup::set_up()?;
    come_first()?;
    open_port()
}

/// Puts the parts of a package layer, which is the second disk, where interpreters look for them: as many as are to be there, of
/// which so many are there already.
pub(crate) fn mount_packages(mounted: usize, wanted: usize) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let mut missing = (mounted..wanted).map_while(part);
    missing.try_for_each(|(part, target)| {
        attach(&part, &target, "erofs", flags, "")?;
        offer_commands(&format!("{target}/python/bin"))
    })
}

/// Puts the commands of a part where shells look for them. Of two by one name the first stays.
fn offer_commands(folder: &str) -> Result<()> {
    let commands = match fs::read_dir(folder) {
        Ok(commands) => commands,
        // Most packages have none.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("reading {folder}")),
    };
    for command in commands.flatten() {
        match symlink(command.path(), Path::new(COMMAND_DIR).join(command.file_name())) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).context(format!("linking {}", command.path().display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Stops the VM: the kernel command line makes a reboot a triple fault, at which QEMU (`-no-reboot`) exits.
pub(crate) fn stop_machine() {
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Not reached as PID 1 of a VM. Anywhere else, PID 1's end would be the machine's.
    std::process::exit(1);
}

/// Gives the writable space another size. What is in it stays.
pub(crate) fn resize_writable(size_mb: u64) -> Result<()> {
    if !(1..=limits::WRITABLE_MAX_MB).contains(&size_mb) {
        let message = format!("{size_mb} MiB are asked for, at most {} are allowed", limits::WRITABLE_MAX_MB);
        return Err(Error::new("resizing the writable space", message));
    }
    let flags = MsFlags::MS_REMOUNT | WRITABLE_FLAGS;
    mount(None::<&str>, WRITABLE_DIR, None::<&str>, flags, Some(quota(size_mb).as_str()))
        .context("resizing the writable space")
}

/// Lets the user write to the part of the second disk that comes after so many others.
pub(crate) fn give_disk(parts: usize) -> Result<()> {
    let (part, _) = part(parts).ok_or_else(|| Error::new("giving a disk to the user", "it has no further part"))?;
    give_to_user(&part)
}

/// Leaves the initramfs for the root image, read-only.
fn enter_root() -> Result<()> {
    attach("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;
    attach("/dev/vda", "/newroot", "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID, "")?;
    mount(Some("/dev"), "/newroot/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving /dev")?;
    nix::unistd::chdir("/newroot").context("entering the root image")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root image to /")?;
    nix::unistd::chroot(".").context("changing the root")?;
    nix::unistd::chdir("/").context("entering /")
}

fn mount_system() -> Result<()> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("proc", "/proc", "proc", hardened, settings::PROC_OPTIONS)?;
    attach("sysfs", "/sys", "sysfs", hardened, "")?;
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", hardened, "")?;
    attach("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=32m")?;
    make_directory("/dev/pts", 0o755)?;
    attach("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666")?;
    make_directory("/dev/shm", 0o1777)?;
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, name).context(format!("linking {name}"))?;
    }
    Ok(())
}

fn mount_writable() -> Result<()> {
    make_directory(WRITABLE_DIR, 0o755)?;
    attach("tmpfs", WRITABLE_DIR, "tmpfs", WRITABLE_FLAGS, &quota(WRITABLE_DEFAULT_MB))?;
    make_directory(PROGRAM_DIR, 0o755)?;
    for (name, target, mode) in WRITABLE {
        let source = format!("{WRITABLE_DIR}/{name}");
        make_directory(&source, mode)?;
        give_to_user(&source)?;
        mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context(format!("binding {target}"))?;
    }
    make_directory(COMMAND_DIR, 0o755)?;
    make_directory(CALL_DIR, 0o755)?;
    make_directory(RUNNER_DIR, 0o755)
}

/// As a mount option of the writable space.
fn quota(size_mb: u64) -> String {
    format!("mode=0755,size={size_mb}m,nr_inodes={}", limits::writable_inodes(size_mb))
}

/// 127.0.0.1 works; there is nothing else.
fn bring_up_loopback() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("a socket to configure loopback")?;
    let mut name = [0; libc::IFNAMSIZ];
    name[0] = b'l' as libc::c_char;
    name[1] = b'o' as libc::c_char;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short },
    };
    #[allow(unsafe_code, reason = "the one way to set an interface's flags without netlink")]
    // SAFETY: the socket is open and `request` is a whole ifreq that outlives the call.
    unsafe { set_interface_flags(socket.as_raw_fd(), &request) }.context("bringing up loopback")?;
    Ok(())
}

/// The agent runs as soon as it is woken: that a program has ended is told before the kernel takes its process apart. Its
/// children are scheduled as usual.
fn come_first() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    #[allow(unsafe_code, reason = "nix has no wrapper of sched_setscheduler")]
    // SAFETY: `parameters` outlives the call, which changes this process only.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &parameters) };
    Errno::result(result).map(drop).context("setting the priority")
}

fn open_port() -> Result<Port> {
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        if let Some(path) = Port::find() {
            return Port::open(&path);
        }
        if Instant::now() > deadline {
            return Err(Error::new("finding the port", "no virtio-serial port has the agent's name"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn attach(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data)).context(format!("mounting {kind} on {target}"))
}

fn make_directory(path: &str, mode: u32) -> Result<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    fs::create_dir(path).context(format!("creating {path}"))?;
    // Whatever the umask is.
    fs::set_permissions(path, Permissions::from_mode(mode)).context(format!("setting the mode of {path}"))
}

fn give_to_user(path: &str) -> Result<()> {
    chown(path, Some(USER_UID), Some(USER_GID)).context(format!("giving {path} to the user"))
}
