//! The QEMU that is there: found, new enough, and the one to spawn from.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_store::{create_private_directory, read_regular, write_json};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::error::{StartError, VmError};
use crate::qemu::command::{self, LaunchSpec};
use crate::qemu::isolation::Isolation;
use crate::qemu::process::{self, QemuProcess};
use crate::qemu::version::{Version, parse_version};

const NAME: &str = "qemu-system-x86_64";

/// Where to look besides PATH: editors and desktop clients spawn servers without a login shell's PATH.
const USUAL_PLACES: [&str; 5] =
    ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/opt/qemu/bin", "/home/linuxbrew/.linuxbrew/bin"];

/// The oldest QEMU on which templates were seen to work; Debian 12's own.
const OLDEST: Version = Version { major: 7, minor: 2 };

/// What a QEMU of our own says of its version if it can begin with code that another has translated.
const KEEPS_CODE: &str = "keeps code";

/// Asking for the version takes some 30 ms; a binary that hangs is none.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// A usable QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    path: PathBuf,
    version: Version,
    /// What it says of its version, the distribution's words included.
    words: String,
    /// What holds its processes.
    isolation: Isolation,
    /// Counts the processes that are not reaped yet.
    processes: TaskTracker,
    ids: Arc<Mutex<HashSet<u32>>>,
}

impl Qemu {
    /// The named binary, or the first in PATH and the usual places. What it says of its version is remembered in `cache_dir`.
    pub(crate) async fn find(named: Option<&Path>, cache_dir: &Path) -> Result<Qemu, StartError> {
        // Before there is a child of ours, which would be in a cgroup that could be had otherwise.
        let isolation = tokio::task::spawn_blocking(Isolation::find_out).await;
        let isolation = isolation.map_err(|error| StartError::Internal { reason: error.to_string() })?;
        let isolation = isolation.map_err(|reason| StartError::NoConfinement { reason })?;
        let path = match named {
            Some(path) => path.to_path_buf(),
            None => search(std::env::var_os("PATH").as_deref())
                .ok_or_else(|| StartError::QemuMissing { name: NAME, searched: USUAL_PLACES.join(", ") })?,
        };
        let words = match VersionFile::new(cache_dir, &path) {
            Some(file) => match file.recall() {
                Some(words) => words,
                None => {
                    let words = ask_version(&path).await?;
                    file.remember(&words);
                    words
                }
            },
            None => ask_version(&path).await?,
        };
        let Some(version) = parse_version(&words) else {
            return Err(StartError::QemuUnusable { path, reason: format!("`--version` says {words:?}") });
        };
        if version < OLDEST {
            let (found, needed) = (version.to_string(), OLDEST.to_string());
            return Err(StartError::QemuTooOld { path, found, needed });
        }
        Ok(Qemu { path, version, words, isolation, processes: TaskTracker::new(), ids: Arc::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn words(&self) -> &str {
        &self.words
    }

    /// Whether it can save what it has translated, and begin with what was saved.
    pub(crate) fn keeps_code(&self) -> bool {
        self.words.contains(KEEPS_CODE)
    }

    /// What holds its processes on this host.
    pub(crate) fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Starts a VM whose wire is `guest_end`. `keep` is dropped once its process is gone.
    pub(crate) fn spawn(
        &self,
        spec: &LaunchSpec,
        guest_end: UnixStream,
        monitor_end: Option<UnixStream>,
        keep: impl Send + 'static,
    ) -> Result<QemuProcess, VmError> {
        let arguments = command::arguments(spec, self.version);
        let (process, reaping) = process::spawn(&self.path, arguments, spec, &self.isolation, guest_end, monitor_end)?;
        let (ids, id) = (self.ids.clone(), process.id);
        lock(&ids).insert(id);
        self.processes.spawn(async move {
            reaping.await;
            lock(&ids).remove(&id);
            drop(keep);
        });
        Ok(process)
    }

    /// Memory that the VMs have for themselves, in bytes: theirs alone, not what they share with a template.
    pub(crate) fn private_memory_bytes(&self) -> u64 {
        lock(&self.ids).iter().map(|&id| process::private_memory_bytes(id)).sum()
    }

    /// Waits until no process is left.
    pub(crate) async fn wait_for_all(&self) {
        self.processes.close();
        self.processes.wait().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn search(path: Option<&OsStr>) -> Option<PathBuf> {
    let in_path = path.into_iter().flat_map(std::env::split_paths);
    in_path.chain(USUAL_PLACES.iter().map(PathBuf::from)).map(|folder| folder.join(NAME)).find(|file| file.is_file())
}

/// What QEMU says of its version, on one line.
async fn ask_version(path: &Path) -> Result<String, StartError> {
    let unusable = |reason: String| StartError::QemuUnusable { path: path.to_path_buf(), reason };
    #[allow(clippy::disallowed_methods, reason = "this folder is the one that starts QEMU")]
    let output = tokio::process::Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(VERSION_DEADLINE, output).await {
        Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string()),
        Ok(Err(error)) => Err(unusable(error.to_string())),
        Err(_) => Err(unusable(format!("`--version` took longer than {VERSION_DEADLINE:?}"))),
    }
}

/// Where the words of a binary are remembered. Asking for them takes some 40 ms, which every first call would wait for.
struct VersionFile {
    file: PathBuf,
    key: String,
}

/// A binary's words, and which binary it was.
#[derive(Debug, Serialize, Deserialize)]
struct RememberedVersion {
    key: String,
    words: String,
}

impl VersionFile {
    /// `None` for a binary that cannot be looked at.
    fn new(cache_dir: &Path, binary: &Path) -> Option<VersionFile> {
        let metadata = std::fs::metadata(binary).ok()?;
        // The same file by all that changes with its content: an upgrade is another one.
        let identity = [metadata.dev(), metadata.ino(), metadata.size()];
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let key = format!("{} {identity:?} {times:?}", binary.display());
        Some(VersionFile { file: cache_dir.join("qemu-version.json"), key })
    }

    fn recall(&self) -> Option<String> {
        let remembered: RememberedVersion = serde_json::from_slice(&read_regular(&self.file, 64 * 1024).ok()?).ok()?;
        (remembered.key == self.key && parse_version(&remembered.words).is_some()).then_some(remembered.words)
    }

    /// Without it the binary is asked again the next time, which costs time and nothing else.
    fn remember(&self, words: &str) {
        if parse_version(words).is_some()
            && let Some(folder) = self.file.parent()
            && create_private_directory(folder).is_ok()
        {
            let remembered = RememberedVersion { key: self.key.clone(), words: words.to_string() };
            let _ = write_json(folder, "qemu-version.json", &remembered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in that says `words` when asked for its version.
    async fn find_saying(words: &str) -> Result<Qemu, StartError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        std::fs::write(&path, format!("#!/bin/sh\necho '{words}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Qemu::find(Some(&path), folder.path()).await
    }

    #[tokio::test]
    async fn the_floor_is_held_and_named() {
        let found = find_saying("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)").await.unwrap();
        assert_eq!(found.version().to_string(), "7.2");
        assert!(find_saying("QEMU emulator version 10.0.2").await.is_ok());
        let error = find_saying("QEMU emulator version 7.1.0").await.unwrap_err().to_string();
        assert!(error.contains("is QEMU 7.1; 7.2 or later is needed"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_qemu_is_said_to_be_unusable() {
        let error = find_saying("hello").await.unwrap_err().to_string();
        assert!(error.contains("`--version` says \"hello\""), "{error}");
        let error = Qemu::find(Some(Path::new("/nowhere/qemu")), Path::new("/nowhere")).await.unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/qemu: cannot be used as QEMU"), "{error}");
    }

    #[tokio::test]
    async fn a_version_is_remembered_until_the_binary_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let write = |version: &str| {
            // Counts how often it is asked.
            let text = format!(
                "#!/bin/sh\necho asked >> {}/asked\necho 'QEMU emulator version {version}'\n",
                folder.path().display()
            );
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        for (version, asked) in [("9.0.0", 1), ("9.0.0 ", 2), ("10.1.0", 3)] {
            write(version);
            for _ in 0..2 {
                let found = Qemu::find(Some(&path), folder.path()).await.unwrap();
                assert!(version.starts_with(&found.version().to_string()));
                assert_eq!(std::fs::read_to_string(folder.path().join("asked")).unwrap().lines().count(), asked);
            }
        }
        std::fs::write(folder.path().join("qemu-version.json"), "{").unwrap();
        Qemu::find(Some(&path), folder.path()).await.unwrap();
    }

    #[test]
    fn a_path_without_qemu_still_finds_the_usual_places() {
        let folder = tempfile::tempdir().unwrap();
        let found = search(Some(folder.path().as_os_str()));
        assert!(found.is_none_or(|path| USUAL_PLACES.iter().any(|place| path.starts_with(place))));
    }
}
