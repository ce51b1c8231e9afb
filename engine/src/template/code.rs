//! The translated code of a template: what its clones would each have to translate again before they run anything.
//!
//! It is not what the template's own VM has translated, most of which was for booting. A clone does what clones do, and what
//! QEMU has translated for that is kept. Clones use of it what is still so in their memory; see `images/qemu/code-cache.patch`.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::language::Language;
use tokio::sync::oneshot;

use crate::admission::Place;
use crate::error::{Fault, VmError};
use crate::qemu::{Code, LaunchSpec, Qemu, Start};
use crate::template::build::{REST, SAVE_DEADLINE, copy_of, no_memory, share};
use crate::template::{ram, rehearsal};
use crate::vm::{Booting, hello};

/// Room for the code, in bytes: QEMU has a buffer of 256 MiB, half of which may come from here, and 100 bytes beside it for each
/// block.
const ROOM_BYTES: u64 = 512 * 1024 * 1024;

/// How often each language is rehearsed: an interpreter does other things the second time, and V8 the third. Six times left a
/// file that is larger by an eighth, and no VM faster.
const TIMES: usize = 3;

/// A clone is there within 0.1 s, a rehearsal takes 0.1-3 s.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether templates of such VMs have translated code.
fn is_kept(qemu: &Qemu, spec: &LaunchSpec) -> bool {
    qemu.keeps_code() && spec.accelerator == Accelerator::Tcg
}

/// What clones of `built`, whose memory lies in `ram` by now, will execute. Without it they are slower, and no worse: only what the
/// host has done is a reason to make no template now.
pub(crate) async fn of(qemu: &Qemu, built: &Making<'_>) -> Result<Option<File>, VmError> {
    if !is_kept(qemu, built.spec) {
        return Ok(None);
    }
    match translate(qemu, built).await {
        Ok(code) => Ok(Some(code)),
        Err(error) if error.fault() == Fault::Host => Err(error),
        Err(error) => {
            tracing::warn!(%error, "a template will have no translated code");
            Ok(None)
        }
    }
}

/// A template without code.
pub(crate) struct Making<'a> {
    /// Its memory, which is only read.
    pub(crate) ram: &'a File,
    pub(crate) state: &'a Arc<[u8]>,
    pub(crate) spec: &'a LaunchSpec,
    /// What its clones will do most of all.
    pub(crate) languages: &'a [Language],
    /// What its VM takes, if that was admitted.
    pub(crate) place: Option<Arc<Place>>,
}

async fn translate(qemu: &Qemu, built: &Making<'_>) -> Result<File, VmError> {
    let Making { ram, state, spec, languages, place } = built;
    // A VM that is saved has its memory in a file that it may write to, or would save that as well.
    let memory = copy_of(ram).await?;
    let code = ram::create(ROOM_BYTES).map_err(no_memory)?;
    let spec = LaunchSpec {
        start: Start::RestoreIn { ram: share(&memory)?, state: Arc::clone(state) },
        code: Code { save: Some(share(&code)?), ..spec.code.clone() },
        ..(*spec).clone()
    };
    let (keep, gone) = oneshot::channel::<()>();
    let vm = Booting::launch(qemu, &spec, hello(Vec::new())?, (keep, place.clone())).await?;
    let mut vm = vm.ready(DEADLINE).await?;
    for program in (0..TIMES).flat_map(|round| rehearsal::in_clone(&Language::ALL, round)) {
        vm = vm.rehearse(&program?, DEADLINE).await?;
    }
    // What every clone executes lies close together, and brings nothing else along.
    vm = vm.rest(REST).await?.pause(SAVE_DEADLINE).await?;
    for program in rehearsal::exercises(languages) {
        vm = vm.rehearse(&program?, DEADLINE).await?;
    }
    vm.rest(REST).await?.save(SAVE_DEADLINE).await?;
    let _ = gone.await;
    // QEMU cuts it to its size when it is complete.
    match code.metadata().map_err(no_memory)?.len() {
        ROOM_BYTES => Err(VmError::Spawn("QEMU has saved none".into())),
        _ => Ok(code),
    }
}
