//! Which accelerator to use. A `/dev/kvm` that opens proves nothing: some hosts expose one on which an ordinary guest
//! never gets past its first second. So a trial VM boots on it, once, and the verdict is remembered.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::Digest;
use sandbox_schemas::wire::PROTOCOL_VERSION;
use sandbox_store::{FileError, KeyHasher, create_private_directory, read_regular, write_json};
use serde::{Deserialize, Serialize};

use crate::error::{Fault, StartError, VmError};
use crate::qemu::{KVM_DEVICE, LaunchSpec, Qemu};
use crate::vm::{Booting, hello};

/// Which accelerator a user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where a trial VM works on it, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG, also where KVM would work.
    Tcg,
}

/// A guest on working KVM is ready in well under a second; one that is not by then hangs.
const TRIAL_DEADLINE: Duration = Duration::from_secs(5);

/// The file in the cache directory.
const VERDICT: &str = "kvm-verdict.json";

/// Largest verdict that is read, in bytes.
const VERDICT_MAX_BYTES: u64 = 64 * 1024;

/// What was found, and for which machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    /// SHA-256 of all that the verdict depends on.
    key: Digest,
    works: bool,
    reason: String,
    /// When it was found, in seconds since 1970.
    unix_seconds: u64,
}

/// KVM is tried again after so long: what looked like a guest that hangs may have been a host that was busy.
const NEGATIVE_VERDICT_HOLDS: Duration = Duration::from_secs(24 * 3600);

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
    File::options().read(true).write(true).open(KVM_DEVICE).map_err(|error| format!("{KVM_DEVICE}: {error}"))?;
    let key = key(qemu, spec);
    let file = cache_dir.join(VERDICT);
    if let Some(verdict) = recall(&file, key) {
        return if verdict.works {
            Ok(())
        } else {
            Err(format!("{} (remembered in {})", verdict.reason, file.display()))
        };
    }
    let trial = trial(qemu, spec).await;
    let trial = match trial {
        // That says nothing of KVM, and is not remembered.
        Err(error) if error.fault() == Fault::Host => return Err(failed(&error)),
        trial => trial.map_err(|error| failed(&error)),
    };
    let verdict =
        Verdict { key, works: trial.is_ok(), reason: trial.clone().err().unwrap_or_default(), unix_seconds: now() };
    if let Err(error) = remember(cache_dir, &verdict) {
        tracing::warn!(%error, "the KVM verdict is not remembered");
    }
    trial
}

/// What was found out may not be so any more, on another hypervisor, or with its module loaded anew: the next server tries again.
pub(crate) fn forget(cache_dir: &Path) {
    let file = cache_dir.join(VERDICT);
    match std::fs::remove_file(&file) {
        Ok(()) => tracing::warn!(
            "a VM did not boot on KVM, which had worked: it is tried anew when this server is started again"
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, file = %file.display(), "the KVM verdict cannot be forgotten"),
    }
}

fn failed(error: &VmError) -> String {
    format!("a trial VM failed: {error}")
}

async fn trial(qemu: &Qemu, spec: &LaunchSpec) -> Result<(), VmError> {
    let attempt = async { Booting::launch(qemu, spec, hello(Vec::new())?, ()).await?.ready(TRIAL_DEADLINE).await };
    attempt.await.map(drop)
}

/// A verdict holds for one QEMU and one guest, until the host boots: then it may be another kernel, or another machine.
fn key(qemu: &Qemu, spec: &LaunchSpec) -> Digest {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // QEMU may run as another user than the server: a permission that is granted later is tried anew.
    let device = std::fs::metadata(KVM_DEVICE).map_or_else(
        |error| error.to_string(),
        |device| format!("{:o} {} {}", device.mode(), device.uid(), device.gid()),
    );
    KeyHasher::new("kvm-verdict")
        .field("device", device.as_bytes())
        .field("user", nix::unistd::Uid::effective().to_string().as_bytes())
        .field("QEMU is another", &[qemu.isolation().is_another_user().into()])
        .field("host kernel", read("/proc/sys/kernel/version").as_bytes())
        .field("its release", read("/proc/sys/kernel/osrelease").as_bytes())
        .field("its boot", read("/proc/sys/kernel/random/boot_id").as_bytes())
        .field("qemu", qemu.path().as_os_str().as_bytes())
        .field("its version", qemu.version().to_string().as_bytes())
        .field("kernel", &spec.image.kernel_sha256.0)
        .field("initrd", &spec.image.initrd_sha256.0)
        .field("protocol", &PROTOCOL_VERSION.to_le_bytes())
        .finish()
}

fn recall(file: &Path, key: Digest) -> Option<Verdict> {
    let text = read_regular(file, VERDICT_MAX_BYTES).ok()?;
    let verdict = serde_json::from_slice::<Verdict>(&text).ok()?;
    let age = now().saturating_sub(verdict.unix_seconds);
    let holds = verdict.works || age < NEGATIVE_VERDICT_HOLDS.as_secs();
    (verdict.key == key && holds).then_some(verdict)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn remember(cache_dir: &Path, verdict: &Verdict) -> Result<(), FileError> {
    create_private_directory(cache_dir)?;
    write_json(cache_dir, VERDICT, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_recalled_for_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache_dir = folder.path().join("new");
        let file = cache_dir.join(VERDICT);
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let verdict = |unix_seconds| Verdict { key: a, works: false, reason: "hung".into(), unix_seconds };
        remember(&cache_dir, &verdict(now())).unwrap();
        assert_eq!(recall(&file, a).map(|verdict| verdict.reason), Some("hung".into()));
        assert_eq!(recall(&file, b), None);
        remember(&cache_dir, &verdict(now() - 25 * 3600)).unwrap();
        assert_eq!(recall(&file, a), None, "a day is long enough");
        remember(&cache_dir, &verdict(now())).unwrap();
        forget(&cache_dir);
        assert_eq!(recall(&file, a), None, "a failed boot is a reason to try again");
        forget(&cache_dir);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, a), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
    }
}
