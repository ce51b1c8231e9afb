//! The QEMU that is there: found, new enough, and the one to spawn from.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::error::{StartError, VmError};
use crate::qemu::command::{self, LaunchSpec};
use crate::qemu::process::{self, QemuProcess};

const NAME: &str = "qemu-system-x86_64";

/// Where to look besides PATH: editors and desktop clients spawn servers without a login shell's PATH.
const USUAL_PLACES: [&str; 5] =
    ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/opt/qemu/bin", "/home/linuxbrew/.linuxbrew/bin"];

/// The oldest QEMU on which templates were seen to work; Debian 12's own.
const OLDEST: Version = Version { major: 7, minor: 2 };

/// Asking for the version takes some 30 ms; a binary that hangs is none.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// A usable QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    path: PathBuf,
    version: Version,
    /// What it says of its version, the distribution's words included.
    words: String,
    /// Counts the processes that are not reaped yet.
    processes: TaskTracker,
    ids: Arc<Mutex<HashSet<u32>>>,
}

/// As `7.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Qemu {
    /// The named binary, or the first in PATH and the usual places.
    pub(crate) async fn find(named: Option<&Path>) -> Result<Qemu, StartError> {
        let path = match named {
            Some(path) => path.to_path_buf(),
            None => search(std::env::var_os("PATH").as_deref())
                .ok_or_else(|| StartError::QemuMissing { name: NAME, searched: USUAL_PLACES.join(", ") })?,
        };
        let (version, words) = ask_version(&path).await?;
        if version < OLDEST {
            let (found, needed) = (version.to_string(), OLDEST.to_string());
            return Err(StartError::QemuTooOld { path, found, needed });
        }
        Ok(Qemu { path, version, words, processes: TaskTracker::new(), ids: Arc::default() })
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

    /// Starts a VM whose wire is `guest_end`. `keep` is dropped once its process is gone.
    pub(crate) fn spawn(
        &self,
        spec: &LaunchSpec,
        guest_end: UnixStream,
        monitor_end: Option<UnixStream>,
        keep: impl Send + 'static,
    ) -> Result<QemuProcess, VmError> {
        let (process, reaping) =
            process::spawn(&self.path, command::arguments(spec, self.version), spec, guest_end, monitor_end)?;
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

async fn ask_version(path: &Path) -> Result<(Version, String), StartError> {
    let unusable = |reason: String| StartError::QemuUnusable { path: path.to_path_buf(), reason };
    #[allow(clippy::disallowed_methods, reason = "this folder is the one that starts QEMU")]
    let output = tokio::process::Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(VERSION_DEADLINE, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(unusable(error.to_string())),
        Err(_) => return Err(unusable(format!("`--version` took longer than {VERSION_DEADLINE:?}"))),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().next().unwrap_or_default().to_string();
    match parse_version(&said) {
        Some(version) => Ok((version, said)),
        None => Err(unusable(format!("`--version` says {said:?} ({})", output.status))),
    }
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.strip_prefix("QEMU emulator version ")?.split([' ', '\n']).next()?;
    let mut parts = numbers.split('.').map(str::parse);
    Some(Version { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
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
        Qemu::find(Some(&path)).await
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
        let error = Qemu::find(Some(Path::new("/nowhere/qemu"))).await.unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/qemu: cannot be used as QEMU"), "{error}");
    }

    #[test]
    fn a_path_without_qemu_still_finds_the_usual_places() {
        let folder = tempfile::tempdir().unwrap();
        let found = search(Some(folder.path().as_os_str()));
        assert!(found.is_none_or(|path| USUAL_PLACES.iter().any(|place| path.starts_with(place))));
    }
}
