//! The making of a template: a VM boots, its interpreters become warm and rehearse, then it is saved.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::environment::Omitted;
use sandbox_schemas::language::Language;
use sandbox_schemas::wire::Hello;
use tokio::sync::oneshot;

use crate::admission::Place;
use crate::error::{Fault, VmError};
use crate::qemu::{LaunchSpec, Qemu, Start};
use crate::template::{ram, rehearsal};
use crate::vm::{Booting, hello};

/// What a template's VM has in its clock, less than what it is. Generators that are seeded anew after so much time (OpenSSL's
/// in Node.js after an hour or two) are then due for it in every clone, whose clock is right.
const CLOCK_LAG: Duration = Duration::from_secs(24 * 3600);

/// A rehearsal takes 0.1-3 s under TCG.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(60);

/// Saving takes some 20 ms.
pub(crate) const SAVE_DEADLINE: Duration = Duration::from_secs(30);

/// Time for a VM to finish what nobody waits for, such as V8's compiling in the background: whatever is left when it is saved is
/// left to be done in every clone.
pub(crate) const REST: Duration = Duration::from_millis(300);

/// What a saved VM is.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Its memory; nobody uses it any more.
    pub(crate) ram: File,
    /// The state of its devices.
    pub(crate) state: Arc<[u8]>,
}

/// A template in the making, whose clones have nothing translated yet.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) saved: Saved,
    /// What its clones are launched by, but for what they start with.
    pub(crate) spec: LaunchSpec,
    /// What its clones will do most of all.
    pub(crate) languages: Vec<Language>,
    /// What the VMs take that are started for it, if they were admitted.
    pub(crate) place: Option<Arc<Place>>,
    /// The packages that are not imported.
    pub(crate) left_out: Vec<Omitted>,
}

/// Boots a VM by `spec`, whose memory it shall have, and saves it.
pub(crate) async fn build(qemu: &Qemu, spec: &LaunchSpec) -> Result<Built, VmError> {
    let mut languages = Language::ALL.to_vec();
    let saved = match try_build(qemu, spec, &languages).await {
        // What was done to it is no reason to make a worse one, which is kept.
        Err(error) if error.fault() == Fault::Host => return Err(error),
        // Programs would be slower without the exercises, and much slower without a template.
        Err(error) => {
            tracing::warn!(%error, "a template could not be built; another is tried that does fewer rehearsals");
            languages.clear();
            try_build(qemu, spec, &[]).await?
        }
        Ok(saved) => saved,
    };
    Ok(Built { saved, spec: spec.clone(), languages, place: None, left_out: Vec::new() })
}

async fn try_build(qemu: &Qemu, spec: &LaunchSpec, exercised: &[Language]) -> Result<Saved, VmError> {
    let memory = ram::create(spec.memory_mb * 1024 * 1024).map_err(no_memory)?;
    let spec = LaunchSpec { start: Start::BootIn(share(&memory)?), ..spec.clone() };

    let hello = template_hello(Language::ALL.to_vec())?;
    let (keep, gone) = oneshot::channel::<()>();
    let deadline = spec.boot_deadline();
    let mut vm = Booting::launch(qemu, &spec, hello, keep).await?.ready(deadline).await?;
    if !exercised.is_empty() {
        let (frames, transfers) = rehearsal::files()?;
        vm = vm.rehearse_files(&frames, transfers, REHEARSAL_DEADLINE).await?;
    }
    // The short ones come last, so that an interpreter is left as it is found by programs that do little.
    for program in rehearsal::exercises(exercised).chain(rehearsal::before_saving()) {
        vm = vm.rehearse(&program?, REHEARSAL_DEADLINE).await?;
    }
    let state = vm.rest(REST).await?.save(SAVE_DEADLINE).await?;
    // Its end is the end of its mapping; only then is the memory what it will stay.
    let _ = gone.await;
    Ok(Saved { ram: memory, state: state.into() })
}

/// A copy of a template's memory, for a VM that will write to it.
pub(crate) async fn copy_of(memory: &impl AsFd) -> Result<File, VmError> {
    let memory = File::from(memory.as_fd().try_clone_to_owned().map_err(no_memory)?);
    let copy = tokio::task::spawn_blocking(move || ram::copy(&memory)).await;
    copy.map_err(|error| VmError::Spawn(error.to_string()))?.map_err(no_memory)
}

/// The same file, as a VM is given it.
pub(crate) fn share(file: &File) -> Result<Arc<OwnedFd>, VmError> {
    file.try_clone().map(|file| Arc::new(file.into())).map_err(no_memory)
}

pub(crate) fn no_memory(error: std::io::Error) -> VmError {
    VmError::Spawn(format!("memory for a template: {error}"))
}

/// What a VM that will be saved is told.
pub(crate) fn template_hello(warm: Vec<Language>) -> Result<Hello, VmError> {
    let mut hello = hello(warm)?;
    hello.realtime_ns = hello.realtime_ns.saturating_sub(CLOCK_LAG.as_nanos() as u64);
    Ok(hello)
}
