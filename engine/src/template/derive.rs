//! The making of a template of another: a clone of the base is given packages, imports them, and is saved.

use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::language::Language;
use sandbox_schemas::wire::Hello;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::admission::Place;
use crate::environment::Environment;
use crate::error::{Fault, VmError};
use crate::qemu::{LaunchSpec, Qemu, Start};
use crate::template::build::{Built, REST, SAVE_DEADLINE, Saved, copy_of, share, template_hello};
use crate::template::rehearsal;
use crate::vm::{Booting, Ready};

/// A clone under TCG is there within 0.1 s.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Importing numpy, pandas and matplotlib for the first time takes 15-30 s under TCG.
const IMPORT_DEADLINE: Duration = Duration::from_secs(300);

/// What the imports may take, in MiB: the largest usual ones, of torch or tensorflow, take some 500. A package that takes more is left
/// to the programs.
pub(crate) const IMPORT_MEMORY_MB: u64 = 1024;

/// How often the import is begun anew without those packages that turned out to be better left to the programs.
const ATTEMPTS: usize = 3;

/// Imports what it is told to, and tells what that did.
fn importer(language: Language) -> Option<&'static str> {
    match language {
        Language::Python => Some(include_str!("import.py")),
        Language::Javascript => Some(include_str!("import.cjs")),
        Language::Shell => None,
    }
}

/// What decides, besides the packages, what is in a template of them.
pub(crate) fn programs() -> impl Iterator<Item = String> {
    Language::ALL.into_iter().filter_map(importer).map(String::from)
}

/// What an importer says in its last line of output.
#[derive(Debug, Deserialize)]
struct Report {
    /// Packages whose import failed, or left something behind that a saved VM should not have, with the reason.
    unfit: Vec<(String, String)>,
}

/// Makes a template with `environment` of the one that `base` restores, in which what the environment's packages were added to may
/// be imported already.
pub(crate) async fn derive(
    qemu: &Qemu,
    base: &LaunchSpec,
    base_has: Option<&Environment>,
    environment: &Environment,
    place: Arc<Place>,
) -> Result<Built, VmError> {
    let spec = LaunchSpec { slot: environment.slot(), ..base.clone() };
    let saved = saved(qemu, &spec, base_has, environment, &place).await?;
    Ok(Built { saved, spec, languages: vec![environment.language], place: Some(place) })
}

/// The memory and the devices of that template.
async fn saved(
    qemu: &Qemu,
    base: &LaunchSpec,
    base_has: Option<&Environment>,
    environment: &Environment,
    place: &Arc<Place>,
) -> Result<Saved, VmError> {
    // What is imported already, and what was left out there.
    let mut left_out = base_has.map_or(Vec::new(), |parent| parent.requested.clone());
    for attempt in 1..=ATTEMPTS {
        let made = make(qemu, base, environment, &left_out, place).await;
        match made {
            Ok((saved, report)) if report.unfit.is_empty() => return Ok(saved),
            Ok((_, report)) => {
                for (package, reason) in report.unfit {
                    tracing::info!(package, reason, "a package is left to the programs that import it");
                    left_out.push(package);
                }
            }
            // That says nothing of the packages.
            Err(error) if error.fault() == Fault::Host => return Err(error),
            Err(error) => {
                tracing::info!(%error, attempt, "importing the packages failed; they are left to the programs");
                break;
            }
        }
    }
    // The packages are there all the same, and none is loaded.
    let (saved, _) = make(qemu, base, environment, &environment.requested, place).await?;
    Ok(saved)
}

async fn make(
    qemu: &Qemu,
    base: &LaunchSpec,
    environment: &Environment,
    left_out: &[String],
    place: &Arc<Place>,
) -> Result<(Saved, Report), VmError> {
    let Start::Restore { ram, state } = &base.start else {
        return Err(VmError::Spawn("a template is made of one that is restored".into()));
    };
    let memory = copy_of(ram).await?;
    let spec = LaunchSpec { start: Start::RestoreIn { ram: share(&memory)?, state: state.clone() }, ..base.clone() };
    let (keep, gone) = oneshot::channel::<()>();
    let hello = Hello { layers: environment.layers(), ..template_hello(Vec::new())? };
    let vm = Booting::launch(qemu, &spec, hello, (keep, place.clone())).await?.ready(READY_DEADLINE).await?;
    let (vm, report) = import(vm, environment, left_out).await?;
    let state = vm.rest(REST).await?.save(SAVE_DEADLINE).await?;
    // Its end is the end of its mapping; only then is the memory what it will stay.
    let _ = gone.await;
    Ok((Saved { ram: memory, state: state.into() }, report))
}

async fn import(vm: Ready, environment: &Environment, left_out: &[String]) -> Result<(Ready, Report), VmError> {
    let Some(importer) = importer(environment.language) else { return Ok((vm, Report { unfit: Vec::new() })) };
    let wanted: Vec<&String> = environment.requested.iter().filter(|package| !left_out.contains(package)).collect();
    // A list of strings is written alike in JSON, Python and JavaScript.
    let list = serde_json::to_string(&wanted).unwrap_or_default();
    let program =
        rehearsal::program_within(IMPORT_MEMORY_MB, environment.language, importer.replace("[\"PACKAGES\"]", &list))?;
    let (vm, said) = vm.rehearse_to_hear(&program, IMPORT_DEADLINE).await?;
    let last = said.trim_end().lines().next_back().unwrap_or_default();
    let report = serde_json::from_str(last)
        .map_err(|error| VmError::Guest(format!("the importer said {last:?}, which is no report: {error}")))?;
    Ok((vm, report))
}
