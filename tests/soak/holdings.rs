//! What a server holds when nothing goes on, and what it may hold.

use std::fs;
use std::path::Path;

use crate::harness::children;
use crate::traffic::POOL;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Holdings {
    memory_mb: usize,
    descriptors: usize,
    memory_files: usize,
    threads: usize,
    mappings: usize,
    processes: usize,
    cgroups: usize,
    available_mb: usize,
}

/// How much more there may be at the end than after the first runs: what an allocator keeps, and nothing that each run adds to.
/// All of it is less than 0.01 a run.
const MEMORY_MAX_MB: usize = 24;
const DESCRIPTORS_MAX: usize = 4;
const THREADS_MAX: usize = 16;
const MAPPINGS_MAX: usize = 96;

impl Holdings {
    pub(crate) const HEADER: &str =
        "  runs  seconds  RSS MB  fds  memfds  threads  maps  processes  cgroups  host MB free";

    /// Of the process with this id.
    pub(crate) fn of(server: u32) -> Holdings {
        let read = |name: &str| fs::read_to_string(format!("/proc/{server}/{name}")).unwrap_or_default();
        let links = fs::read_dir(format!("/proc/{server}/fd")).unwrap().flatten();
        let links: Vec<_> = links.map(|link| fs::read_link(link.path()).unwrap_or_default()).collect();
        Holdings {
            memory_mb: kib(&read("status"), "VmRSS:") / 1024,
            descriptors: links.len(),
            memory_files: links.iter().filter(|link| link.starts_with("/memfd:")).count(),
            threads: fs::read_dir(format!("/proc/{server}/task")).unwrap().count(),
            mappings: read("maps").lines().count(),
            processes: children(server).len(),
            cgroups: folders(Path::new("/sys/fs/cgroup"), "sandbox-mcp"),
            available_mb: kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:") / 1024,
        }
    }

    pub(crate) fn row(&self, runs: usize, seconds: f64) -> String {
        let Holdings { memory_mb, descriptors, memory_files, threads, mappings, .. } = self;
        let Holdings { processes, cgroups, available_mb, .. } = self;
        format!(
            "{runs:6}  {seconds:7.0}  {memory_mb:6}  {descriptors:3}  {memory_files:6}  {threads:7}  {mappings:4}  {processes:9}  \
             {cgroups:7}  {available_mb:12}"
        )
    }

    /// What has grown beyond what it may.
    pub(crate) fn beyond(&self, before: &Holdings) -> Vec<String> {
        let bounds = [
            ("MB of memory", self.memory_mb, before.memory_mb + MEMORY_MAX_MB),
            ("descriptors", self.descriptors, before.descriptors + DESCRIPTORS_MAX),
            ("files in memory", self.memory_files, before.memory_files),
            ("threads", self.threads, before.threads + THREADS_MAX),
            ("mappings", self.mappings, before.mappings + MAPPINGS_MAX),
            ("processes", self.processes, POOL),
            ("cgroups", self.cgroups, before.cgroups),
        ];
        let is_beyond = |(_, found, most): &(&str, usize, usize)| found > most;
        bounds.into_iter().filter(is_beyond).map(|(what, found, most)| format!("{found} {what}, not {most}")).collect()
    }
}

fn kib(text: &str, name: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Folders below `folder` whose name begins so. Other servers of this machine have some as well.
fn folders(folder: &Path, name: &str) -> usize {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = found.filter(|found| found.file_type().is_ok_and(|kind| kind.is_dir()));
    inside
        .map(|found| usize::from(found.file_name().to_string_lossy().starts_with(name)) + folders(&found.path(), name))
        .sum()
}
