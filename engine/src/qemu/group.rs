//! A cgroup (v2) for each QEMU, where the host lets a server make some: what a conquered QEMU can take of the host is bounded then.
//!
//! A cgroup that bounds its children has no processes of its own. So there are three places that a server may have: within its
//! own cgroup, if it is alone there and moves into a part of it; beside it, if it has no bounds of its own that VMs would escape; and the root.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

/// The part of its cgroup that a server has moved into.
const SERVER: &str = "sandbox-mcp-server";

/// What the names of the VMs' cgroups begin with; the server's id and a number follow.
const PREFIX: &str = "sandbox-mcp-vm-";

/// Without the first there is no use in one; the others are welcome.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// What a QEMU takes besides its guest's memory, in bytes: the buffer for translated code (1 GiB at most), what it maps of a
/// template's code, and itself.
const OVERHEAD_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// QEMU's own pool has 64 threads at most.
const PROCESSES: &str = "128";

/// A virtual CPU, and what is done beside it.
const PROCESSORS: &str = "200000 100000";

/// Where a server's VMs have their cgroups.
#[derive(Debug)]
pub(crate) struct Groups {
    folder: PathBuf,
}

/// The number of the next cgroup: no two of a process have the same name, whichever of its engines made them.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The cgroup of one VM. Removed when dropped, which must not be before its process is reaped.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    /// Open for being named to the kernel.
    pub(crate) directory: OwnedFd,
}

impl Groups {
    /// A place for cgroups; an error says why there is none. May move this process into another cgroup.
    pub(crate) fn find() -> Result<Groups, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let (mounted, own) = place(&mounts, &own)?;
        Groups::below(&mounted, &own, std::process::id())
    }

    /// The same for a server in the cgroup `own`, below `mounted`.
    fn below(mounted: &Path, own: &Path, id: u32) -> Result<Groups, String> {
        let folder = if own.file_name().is_some_and(|name| name == SERVER) {
            // It was moved there by an engine that was started before.
            own.parent().unwrap_or(own).to_owned()
        } else if !own.join("cgroup.events").exists() {
            // The root, which may have processes.
            own.to_owned()
        } else if is_alone(own, id) {
            move_into(&own.join(SERVER), id).map_err(|error| format!("moving into {SERVER}: {error}"))?;
            own.to_owned()
        } else if own == mounted {
            return Err(format!("other processes are in the server's cgroup ({})", own.display()));
        } else if is_bounded(own) {
            return Err(format!("the server shares a cgroup that has bounds of its own ({})", own.display()));
        } else {
            own.parent().unwrap_or(own).to_owned()
        };
        enable(&folder)?;
        sweep(&folder);
        let groups = Groups { folder };
        // Whether it is allowed is found out by doing it.
        match groups.make(0) {
            Ok(_) => Ok(groups),
            Err(error) => Err(format!("making one in {}: {error}", groups.folder.display())),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// One for a VM of so much memory.
    pub(crate) fn make(&self, memory_mb: u64) -> io::Result<Group> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
        let group = match directory {
            Ok(directory) => Group { path, directory: directory.into() },
            Err(error) => {
                let _ = fs::remove_dir(&path);
                return Err(error);
            }
        };
        let memory_bytes = memory_mb * 1024 * 1024 + OVERHEAD_BYTES;
        fs::write(group.path.join("memory.max"), memory_bytes.to_string())?;
        for (file, value) in [("memory.oom.group", "1"), ("pids.max", PROCESSES), ("cpu.max", PROCESSORS)] {
            // Not all controllers are there, nor all files in older kernels.
            let _ = fs::write(group.path.join(file), value);
        }
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "a cgroup stays; the next server removes it");
        }
    }
}

/// Where cgroups are mounted, and the folder of this process's.
fn place(mounts: &str, own: &str) -> Result<(PathBuf, PathBuf), String> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("the host has no cgroup v2")?;
    let mount = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then(|| (PathBuf::from(root), PathBuf::from(point)))
    };
    let (root, point) = mounts.lines().find_map(mount).ok_or("cgroup v2 is not mounted")?;
    match Path::new(own).strip_prefix(&root) {
        // Else a folder that is named by nothing, at the end.
        Ok(below) if below.as_os_str().is_empty() => Ok((point.clone(), point)),
        Ok(below) if below.components().all(|part| matches!(part, std::path::Component::Normal(_))) => {
            Ok((point.clone(), point.join(below)))
        }
        _ => Err(format!("the server's cgroup ({own}) is outside of what is mounted")),
    }
}

fn is_alone(own: &Path, id: u32) -> bool {
    let processes = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    processes.lines().all(|line| line == id.to_string()) && !processes.is_empty()
}

/// Whether somebody has bounded what is in it.
fn is_bounded(own: &Path) -> bool {
    // Not of processes: systemd bounds those of all that it starts, by some thousands.
    let files = ["memory.max", "memory.high", "memory.swap.max", "cpu.max"];
    files.iter().any(|file| fs::read_to_string(own.join(file)).is_ok_and(|value| !value.starts_with("max")))
}

fn move_into(folder: &Path, id: u32) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(folder.join("cgroup.procs"), id.to_string())
}

/// Has the cgroups in `folder` bounded.
fn enable(folder: &Path) -> Result<(), String> {
    let offered = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    if !offered.split_whitespace().any(|controller| controller == CONTROLLERS[0]) {
        return Err(format!("cgroup v2 bounds no memory in {}: a hierarchy of version 1 may", folder.display()));
    }
    let file = folder.join("cgroup.subtree_control");
    let mut refused = None;
    for controller in CONTROLLERS {
        let is_enabled =
            || fs::read_to_string(&file).is_ok_and(|all| all.split_whitespace().any(|one| one == controller));
        if !is_enabled()
            && let Err(error) = fs::write(&file, format!("+{controller}"))
            && controller == CONTROLLERS[0]
        {
            refused = Some(error);
        }
    }
    match refused {
        Some(error) => Err(format!("memory cannot be bounded below {}: {error}", folder.display())),
        None => Ok(()),
    }
}

/// Removes what a server has left that was killed.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let server = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if server.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            // One that has processes stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "25 30 0:22 / /sys rw,nosuid - sysfs sysfs rw\n\
                          26 25 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_place_of_a_process_is_found_below_the_mount() {
        let find = |mounts: &str, own: &str| place(mounts, own).map(|(_, own)| own.display().to_string());
        assert_eq!(find(MOUNTS, "0::/user.slice/a.scope\n").unwrap(), "/sys/fs/cgroup/user.slice/a.scope");
        assert_eq!(find(MOUNTS, "9:memory:/x\n0::/\n").unwrap(), "/sys/fs/cgroup");
        // A container that is shown its own part alone.
        let part = MOUNTS.replace("0:23 / /sys", "0:23 /docker/1 /sys");
        assert_eq!(find(&part, "0::/docker/1/b\n").unwrap(), "/sys/fs/cgroup/b");
        assert!(find(&part, "0::/other\n").unwrap_err().contains("outside"));
        assert!(find(MOUNTS, "0::/../other\n").unwrap_err().contains("outside"));
        assert!(find(MOUNTS, "9:memory:/x\n").unwrap_err().contains("no cgroup v2"));
        assert!(find("25 30 0:22 / /sys rw - sysfs sysfs rw\n", "0::/\n").unwrap_err().contains("not mounted"));
    }

    /// Folders that look like cgroups: what is written is found again, and nothing is bounded by it.
    fn hierarchy(processes: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("slice/scope");
        fs::create_dir_all(&own).unwrap();
        for folder in [&own, &folder.path().join("slice")] {
            fs::write(folder.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        }
        for (file, content) in [("cgroup.events", ""), ("cgroup.procs", processes)].iter().chain(files) {
            fs::write(own.join(file), content).unwrap();
        }
        (folder, own)
    }

    /// Removes what the kernel would remove along with a cgroup.
    fn empty(group: &Group) {
        for file in fs::read_dir(&group.path).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }

    #[test]
    fn who_is_alone_moves_and_divides_its_own() {
        let (folder, own) = hierarchy("77\n", &[("memory.max", "1000000\n")]);
        let made = Groups::below(folder.path(), &own, 77);
        // A real one is removed as a whole; this one stays, and says so.
        let groups = made.unwrap();
        assert_eq!(groups.folder(), own);
        assert_eq!(fs::read_to_string(own.join(SERVER).join("cgroup.procs")).unwrap(), "77");
        assert!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap().starts_with('+'));
        let group = groups.make(256).unwrap();
        let read = |file: &str| fs::read_to_string(group.path.join(file)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ((2304u64 << 20).to_string(), "128".into()));
        empty(&group);
        let path = group.path.clone();
        drop(group);
        assert!(!path.exists());
        // Once more, by an engine that is started again.
        assert_eq!(Groups::below(folder.path(), &own.join(SERVER), 77).unwrap().folder(), own);
    }

    #[test]
    fn who_is_not_alone_has_its_vms_beside_it_unless_they_would_escape() {
        let (folder, own) =
            hierarchy("77\n78\n", &[("memory.max", "max\n"), ("pids.max", "4915\n"), ("cpu.max", "max 100000\n")]);
        assert_eq!(Groups::below(folder.path(), &own, 77).unwrap().folder(), own.parent().unwrap());
        for bound in [("memory.max", "1000000\n"), ("memory.high", "1000000\n"), ("cpu.max", "50000 100000\n")] {
            let (folder, own) = hierarchy("77\n78\n", &[bound]);
            let error = Groups::below(folder.path(), &own, 77).unwrap_err();
            assert!(error.contains("bounds of its own"), "{error}");
        }
        let error = Groups::below(&own, &own, 77).unwrap_err();
        assert!(error.contains("other processes"), "{error}");
        fs::write(own.parent().unwrap().join("cgroup.controllers"), "hugetlb\n").unwrap();
        let error = Groups::below(folder.path(), &own, 77).unwrap_err();
        assert!(error.contains("bounds no memory"), "{error}");
    }

    #[test]
    fn what_dead_servers_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        // No process has so high an id.
        let (dead, alive) = (format!("{PREFIX}4194999-3"), format!("{PREFIX}{}-3", std::process::id()));
        for name in [&dead, &alive, "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        sweep(folder.path());
        assert!(!folder.path().join(dead).exists());
        assert!(folder.path().join(alive).exists() && folder.path().join("other").exists());
    }
}
