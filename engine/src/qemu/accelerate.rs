//! Which accelerator to use. A `/dev/kvm` that opens proves nothing: some hosts expose one on which an ordinary guest
//! never gets past its first second. So a trial VM boots on it, once, and the verdict is remembered.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::wire::PROTOCOL_VERSION;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::AcceleratorChoice;
use crate::error::StartError;
use crate::qemu::binary::Qemu;
use crate::qemu::command::LaunchSpec;
use crate::vm::Booting;

/// KVM's device.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// A guest on working KVM is ready in well under a second; one that is not by then hangs.
const TRIAL_DEADLINE: Duration = Duration::from_secs(5);

/// What was found, and for which machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    /// SHA-256 of all that the verdict depends on, in hexadecimal digits.
    key: String,
    works: bool,
    reason: String,
}

/// The accelerator for this choice on this machine.
pub(crate) async fn decide(
    qemu: &Qemu,
    choice: AcceleratorChoice,
    cache_dir: &Path,
    spec: impl Fn(Accelerator) -> LaunchSpec,
) -> Result<Accelerator, StartError> {
    if choice == AcceleratorChoice::Tcg {
        return Ok(Accelerator::Tcg);
    }
    match try_kvm(qemu, cache_dir, &spec(Accelerator::Kvm)).await {
        Ok(()) => Ok(Accelerator::Kvm),
        Err(reason) if choice == AcceleratorChoice::Kvm => Err(StartError::KvmUnusable { reason }),
        Err(reason) => {
            tracing::warn!(
                reason,
                "no KVM: running under TCG, which is slower and not a security boundary by QEMU's own word"
            );
            Ok(Accelerator::Tcg)
        }
    }
}

async fn try_kvm(qemu: &Qemu, cache_dir: &Path, spec: &LaunchSpec) -> Result<(), String> {
    // As cheap as it is, this is asked each time: a permission can be granted between two starts.
    File::options().read(true).write(true).open(DEVICE).map_err(|error| format!("{DEVICE}: {error}"))?;
    let key = key(qemu, spec);
    let file = cache_dir.join("kvm-verdict.json");
    if let Some(verdict) = recall(&file, &key) {
        return if verdict.works {
            Ok(())
        } else {
            Err(format!("{} (remembered in {})", verdict.reason, file.display()))
        };
    }
    let trial = trial(qemu, spec).await;
    let verdict = Verdict { key, works: trial.is_ok(), reason: trial.clone().err().unwrap_or_default() };
    if let Err(error) = remember(&file, &verdict) {
        tracing::warn!(%error, file = %file.display(), "the KVM verdict is not remembered");
    }
    trial
}

async fn trial(qemu: &Qemu, spec: &LaunchSpec) -> Result<(), String> {
    let attempt = async { Booting::launch(qemu, spec, Vec::new()).await?.ready(TRIAL_DEADLINE).await };
    attempt.await.map(drop).map_err(|error| format!("a trial VM failed: {error}"))
}

/// A verdict holds for one host kernel, one QEMU and one guest. The boot id is part of it, so that a wrong verdict of a
/// busy minute lasts no longer than until the next boot.
fn key(qemu: &Qemu, spec: &LaunchSpec) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // QEMU may run as another user than the server: a permission that is granted later is tried anew.
    let device = std::fs::metadata(DEVICE).map_or_else(
        |error| error.to_string(),
        |device| format!("{:o} {} {}", device.mode(), device.uid(), device.gid()),
    );
    let fields = [
        device,
        nix::unistd::Uid::effective().to_string(),
        read("/proc/sys/kernel/version"),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/sys/kernel/random/boot_id"),
        qemu.path().display().to_string(),
        qemu.version().to_string(),
        spec.image.kernel_sha256.to_string(),
        spec.image.initrd_sha256.to_string(),
        PROTOCOL_VERSION.to_string(),
    ];
    let mut hash = Sha256::new();
    for field in fields {
        // With its length before it, so that no two lists of fields read alike.
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn recall(file: &Path, key: &str) -> Option<Verdict> {
    let text = std::fs::read_to_string(file).ok()?;
    serde_json::from_str::<Verdict>(&text).ok().filter(|verdict| verdict.key == key)
}

fn remember(file: &Path, verdict: &Verdict) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Renamed into place: two servers that start at once must not leave half of each.
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, serde_json::to_string(verdict)?)?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_recalled_for_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new").join("kvm-verdict.json");
        let verdict = Verdict { key: "a".into(), works: false, reason: "hung".into() };
        remember(&file, &verdict).unwrap();
        assert_eq!(recall(&file, "a"), Some(verdict));
        assert_eq!(recall(&file, "b"), None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, "a"), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
    }
}
