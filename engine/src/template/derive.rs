//! The making of a template of another: a clone of the base is given packages, imports them, and is saved.

use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::environment::Omitted;
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

/// Importing numpy, pandas and matplotlib for the first time takes 15-30 s under TCG; what takes longer than this is left to the
/// programs. Nobody's program waits meanwhile for longer than it would have to import them itself.
const IMPORT_DEADLINE: Duration = Duration::from_secs(300);

/// What each package has beyond that.
const IMPORT_DEADLINE_EACH: Duration = Duration::from_secs(60);

/// What the imports may take, in MiB: the largest usual ones, of torch or tensorflow, take some 500. A package that takes more is left
/// to the programs.
pub(crate) const IMPORT_MEMORY_MB: u64 = 1024;

/// How often the import is begun anew without those packages that turned out to be better left to the programs.
const ATTEMPTS: usize = 6;

/// Imports what it is told to, and tells what that did, a line of JSON for each thing ([`Said`]).
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

/// A line of an importer's output.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// It begins with this package.
    Importing(String),
    /// Its import failed, or left something behind that a saved VM should not have.
    Unfit(Omitted),
    /// What is imported already has looked for these in vain, which are there now: it would go on without them.
    Missed(Vec<String>),
    /// It has come to its end.
    Done,
}

/// What was imported already, in the VM that a template is made of.
pub(crate) struct Imported<'a> {
    pub(crate) environment: &'a Environment,
    /// What was left out there.
    pub(crate) left_out: &'a [Omitted],
}

/// What came of making a template of another.
pub(crate) enum Derived {
    Built(Box<Built>),
    /// What is imported there is not as it would be with what was added: these names were looked for in vain.
    Stale(Vec<String>),
}

/// Makes a template with `environment` of the one that `base` restores, in which what the environment's packages were added to may
/// be imported already.
pub(crate) async fn derive(
    qemu: &Qemu,
    base: &LaunchSpec,
    imported: Option<Imported<'_>>,
    environment: &Environment,
    place: Arc<Place>,
) -> Result<Derived, VmError> {
    let spec = LaunchSpec { slot: environment.slot(), ..base.clone() };
    let making = Making { qemu, base: &spec, environment, place: &place };
    let (there, mut left_out) = match imported {
        Some(Imported { environment, left_out }) => (environment.requested.as_slice(), left_out.to_vec()),
        None => (&[][..], Vec::new()),
    };
    let mut wanted: Vec<&String> = environment.requested.iter().filter(|package| !there.contains(package)).collect();
    let mut attempts = 0;
    loop {
        attempts += 1;
        if attempts > ATTEMPTS {
            let reason = format!("{ATTEMPTS} attempts to import the packages failed");
            left_out.extend(wanted.drain(..).map(|name| Omitted { name: name.clone(), reason: reason.clone() }));
        }
        let mut said = String::new();
        let made = making.make(&wanted, &mut said).await;
        let Report { importing, mut unfit, missed } = Report::read(&said);
        if !missed.is_empty() {
            return Ok(Derived::Stale(missed));
        }
        match made {
            Ok(saved) if unfit.is_empty() || wanted.is_empty() => {
                let languages = vec![environment.language];
                let built = Built { saved, spec, languages, place: Some(place), left_out };
                return Ok(Derived::Built(Box::new(built)));
            }
            Ok(_) => {}
            // That says nothing of the packages.
            Err(error) if error.fault() == Fault::Host => return Err(error),
            Err(error) => match importing {
                Some(name) => unfit.push(Omitted { name, reason: format!("its import failed: {error}") }),
                None => return Err(error),
            },
        }
        for Omitted { name, reason } in &unfit {
            tracing::info!(package = name, reason, "a package is left to the programs that import it");
        }
        wanted.retain(|package| !unfit.iter().any(|unfit| unfit.name == **package));
        left_out.append(&mut unfit);
    }
}

/// What an importer has said.
#[derive(Debug, Default, PartialEq)]
struct Report {
    /// The package that it was at when it had no more to say; `None` when it has come to its end, or has not begun.
    importing: Option<String>,
    unfit: Vec<Omitted>,
    missed: Vec<String>,
}

impl Report {
    /// Among its lines are those of the packages.
    fn read(said: &str) -> Report {
        let mut report = Report::default();
        for line in said.lines() {
            match serde_json::from_str(line) {
                Ok(Said::Importing(package)) => report.importing = Some(package),
                Ok(Said::Unfit(package)) => report.unfit.push(package),
                Ok(Said::Missed(names)) => report.missed = names,
                Ok(Said::Done) => report.importing = None,
                Err(_) => {}
            }
        }
        report
    }
}

/// What is made, and of what.
struct Making<'a> {
    qemu: &'a Qemu,
    base: &'a LaunchSpec,
    environment: &'a Environment,
    place: &'a Arc<Place>,
}

impl Making<'_> {
    /// Saves a VM in which these packages were imported.
    async fn make(&self, wanted: &[&String], said: &mut String) -> Result<Saved, VmError> {
        let Making { qemu, base, environment, place } = *self;
        let Start::Restore { ram, state } = &base.start else {
            return Err(VmError::Spawn("a template is made of one that is restored".into()));
        };
        let memory = copy_of(ram).await?;
        let spec =
            LaunchSpec { start: Start::RestoreIn { ram: share(&memory)?, state: state.clone() }, ..base.clone() };
        let (keep, gone) = oneshot::channel::<()>();
        let hello = Hello { parts: environment.parts, ..template_hello(Vec::new())? };
        let vm = Booting::launch(qemu, &spec, hello, (keep, place.clone())).await?.ready(READY_DEADLINE).await?;
        let vm = import(vm, environment.language, wanted, said).await?;
        let state = vm.rest(REST).await?.save(SAVE_DEADLINE).await?;
        // Its end is the end of its mapping; only then is the memory what it will stay.
        let _ = gone.await;
        Ok(Saved { ram: memory, state: state.into() })
    }
}

async fn import(vm: Ready, language: Language, wanted: &[&String], said: &mut String) -> Result<Ready, VmError> {
    let Some(importer) = importer(language) else { return Ok(vm) };
    // A list of strings is written alike in JSON, Python and JavaScript.
    let list = serde_json::to_string(wanted).unwrap_or_default();
    let program = rehearsal::program_within(IMPORT_MEMORY_MB, language, importer.replace("[\"PACKAGES\"]", &list))?;
    let deadline = IMPORT_DEADLINE + IMPORT_DEADLINE_EACH * wanted.len() as u32;
    vm.rehearse_to_hear(&program, deadline, said).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_being_imported_at_the_end_is_known() {
        let said = "words\n{\"importing\":\"a\"}\n{\"unfit\":{\"name\":\"a\",\"reason\":\"ImportError: x\"}}\n\n\
                    {\"importing\":\"b\"}\nof b, {\"importing\":\"c\"}\n";
        let unfit = vec![Omitted { name: "a".into(), reason: "ImportError: x".into() }];
        let report = Report { importing: Some("b".into()), unfit, missed: Vec::new() };
        assert_eq!(Report::read(said), report);
        assert_eq!(Report::read(&format!("{said}\"done\"\n")), Report { importing: None, ..report });
        assert_eq!(Report::read("{\"missed\":[\"lxml\"]}\n").missed, ["lxml"]);
    }
}
