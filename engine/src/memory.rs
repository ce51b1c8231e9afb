//! The memory that this process can have: the machine's and that of the control groups it is in, as both are now.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What has a bounded amount of memory for us and for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Domain {
    /// What it is, for people.
    pub(crate) name: &'static str,
    /// All that it has, in MiB.
    pub(crate) total_mb: u64,
    /// What can be had without taking it from anybody, in MiB: free, or a cache that is read again when it is needed.
    pub(crate) available_mb: u64,
}

impl Domain {
    /// What is never given to VMs, in MiB: others grow too, and a machine without a cache reads its programs from disk
    /// again and again.
    pub(crate) fn reserve_mb(self) -> u64 {
        (self.total_mb / 10).clamp(128, 1024)
    }

    /// Whether so much can be had now.
    pub(crate) fn can_spare(self, memory_mb: u64) -> bool {
        self.available_mb >= memory_mb + self.reserve_mb()
    }

    /// Whether so much could be had if nobody else had any.
    pub(crate) fn can_ever_spare(self, memory_mb: u64) -> bool {
        self.total_mb >= memory_mb + self.reserve_mb()
    }
}

/// Every domain that this process draws on. Empty where the kernel says nothing: then only the configured limits hold.
pub(crate) fn survey() -> Vec<Domain> {
    // Some ten small files that the kernel makes up: no disk, 0.1 ms.
    survey_with(&|path| fs::read_to_string(path).ok())
}

/// Reads a file, if there is one.
type Reader<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn survey_with(read: Reader) -> Vec<Domain> {
    let Some(machine) = read(Path::new("/proc/meminfo")).and_then(|text| machine(&text)) else { return Vec::new() };
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mut domains = vec![machine];
    for line in groups.lines() {
        // `4:cpu,memory:/path`; version 2 has no controllers there: `0::/path`.
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let version = match id {
            "0" if controllers.is_empty() => &VERSION_2,
            _ if controllers.split(',').any(|name| name == "memory") => &VERSION_1,
            _ => continue,
        };
        let folders = folders(version.mount, Path::new(path));
        let bounds = folders.iter().filter_map(|folder| version.group(folder, read));
        // What has more than the machine bounds nothing; version 1 writes "no limit" as a number.
        domains.extend(bounds.filter(|group| group.total_mb < machine.total_mb));
    }
    domains
}

/// What `/proc/meminfo` says.
fn machine(meminfo: &str) -> Option<Domain> {
    let mb = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
    };
    Some(Domain { name: "this machine", total_mb: mb("MemTotal")?, available_mb: mb("MemAvailable")? })
}

/// How a version of control groups writes what we read.
struct Version {
    mount: &'static str,
    limits: &'static [&'static str],
    usage: &'static str,
    inactive_file: &'static str,
    active_file: &'static str,
}

const VERSION_1: Version = Version {
    mount: "/sys/fs/cgroup/memory",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file ",
    active_file: "total_active_file ",
};

const VERSION_2: Version = Version {
    mount: "/sys/fs/cgroup",
    // Over `high` nobody is killed, but everybody is slowed down until nothing moves.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    inactive_file: "inactive_file ",
    active_file: "active_file ",
};

impl Version {
    /// A group, if it has a limit.
    fn group(&self, folder: &Path, read: Reader) -> Option<Domain> {
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|name| number(name)).min()?;
        let usage = number(self.usage)?;
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let field =
            |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0);
        // Files that were read once can go; half of those that are in use, as a guess.
        let cache = field(self.inactive_file) + field(self.active_file) / 2;
        let available = limit.saturating_sub(usage.saturating_sub(cache));
        let name = "the control group of this server";
        Some(Domain { name, total_mb: limit >> 20, available_mb: available >> 20 })
    }
}

/// A group's folder and those above it, which bound it as well. In a container the path may be that of another view: then only
/// the mount itself is there, and it is the container's group.
fn folders(mount: &str, path: &Path) -> Vec<PathBuf> {
    let inner: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    inner.ancestors().map(|folder| Path::new(mount).join(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        8388608 kB\nMemFree:   1 kB\nMemAvailable:    4194304 kB\n";
    const GIB: u64 = 1 << 30;

    /// What is found where the kernel has these files, by name, total and available.
    fn found(files: &[(&str, &str)]) -> Vec<(u64, u64)> {
        let read = |path: &Path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| text.to_string())
        };
        survey_with(&read).iter().map(|domain| (domain.total_mb, domain.available_mb)).collect()
    }

    #[test]
    fn without_groups_the_machine_counts() {
        assert_eq!(found(&[("/proc/meminfo", MEMINFO)]), [(8192, 4096)]);
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[("/proc/meminfo", "MemTotal: many kB")]), []);
    }

    #[test]
    fn version_2_bounds_a_group_and_all_below_it() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/user.slice/app\n"),
            ("/sys/fs/cgroup/user.slice/app/memory.max", "max\n"),
            ("/sys/fs/cgroup/user.slice/app/memory.high", "max\n"),
            ("/sys/fs/cgroup/user.slice/app/memory.current", "5\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", &(4 * GIB).to_string()),
            ("/sys/fs/cgroup/user.slice/memory.high", &(2 * GIB).to_string()),
            ("/sys/fs/cgroup/user.slice/memory.current", &(GIB + GIB / 2).to_string()),
            ("/sys/fs/cgroup/user.slice/memory.stat", "anon 1\ninactive_file 268435456\nactive_file 536870912\n"),
        ];
        assert_eq!(found(&files), [(8192, 4096), (2048, 512 + 256 + 256)]);
    }

    #[test]
    fn version_1_has_other_names_and_a_number_for_no_limit() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"),
            // A container: its own group is what it sees as the root.
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "2147483648\n"),
        ];
        assert_eq!(found(&files), [(8192, 4096), (1024, 0)]);
        let mut files = files;
        files[2].1 = "9223372036854771712\n";
        assert_eq!(found(&files), [(8192, 4096)]);
    }

    #[test]
    fn a_reserve_is_kept() {
        let domain = |total_mb, available_mb| Domain { name: "this machine", total_mb, available_mb };
        assert!(domain(8000, 1568).can_spare(768) && !domain(8000, 1567).can_spare(768));
        assert!(domain(64_000, 1792).can_spare(768) && !domain(64_000, 1791).can_spare(768));
        assert!(domain(1024, 0).can_ever_spare(768) && !domain(1024, 1024).can_ever_spare(1000));
    }

    #[test]
    fn this_machine_has_memory() {
        let machine = survey()[0];
        assert!(machine.total_mb > 100 && machine.available_mb <= machine.total_mb, "{machine:?}");
    }
}
