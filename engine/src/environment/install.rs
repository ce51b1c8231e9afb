//! One installation: a VM that boots for it, a disk that it writes, and the registry at the end of its tunnel.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_packages::{Refusal, Requirement, Session, SessionReport};
use sandbox_schemas::environment::{LockedPackage, Omitted, PackageLock};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{
    INSTALL_MEMORY_MB, INSTALL_MEMORY_MIN_MB, INSTALL_PROGRAM_MB, INSTALL_TIMEOUT_SECONDS, STDOUT_MAX_BYTES,
    VM_OVERHEAD_MB,
};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::tunnel::{REGISTRY_PORT, Target};
use sandbox_schemas::wire::Role;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::environment::layer::{self, Installed};
use crate::environment::{Environment, InstallError};
use crate::error::VmError;
use crate::host::Host;
use crate::qemu::{LaunchSpec, Slot};
use crate::run::{OutputSink, Preparation, Terms, program, run};
use crate::tunnel::{TunnelHandler, TunnelStream};
use crate::vm::{Booting, hello};

/// What a VM that installs has beyond what others have.
#[derive(Clone)]
pub struct Installation {
    /// Size of its writable space, in MiB. It is memory, and counts against the program's too.
    pub writable_mb: u64,
    /// How many parts of the disk have packages already.
    pub parts: u8,
    /// What it writes its result to, behind those parts.
    pub disk: Option<Arc<OwnedFd>>,
    /// Serves its connections to the registry.
    pub handler: Arc<dyn TunnelHandler>,
}

/// What of an installer's words an error has, in lines: enough to see what it was about.
const LOG_LINES: usize = 20;

/// How a language's packages are installed.
struct Installer {
    script: &'static str,
    /// The same where a layer is there already, to which the rest is added.
    adds: Option<&'static str>,
    /// The packages that are there, as the script has told them.
    read: fn(&str) -> Result<Vec<LockedPackage>, String>,
}

fn installer(language: Language) -> Option<Installer> {
    match language {
        Language::Python => Some(Installer {
            script: concat!(include_str!("python-names.sh"), include_str!("python.sh")),
            adds: Some(concat!(include_str!("python-names.sh"), include_str!("python-add.sh"))),
            read: read_python,
        }),
        Language::Javascript => {
            Some(Installer { script: include_str!("javascript.sh"), adds: None, read: read_javascript })
        }
        Language::Shell => None,
    }
}

/// What decides, beside the packages, what is in a layer.
pub(crate) fn scripts(language: Language) -> impl Iterator<Item = &'static str> {
    let installer = installer(language);
    installer.into_iter().flat_map(|installer| [Some(installer.script), installer.adds]).flatten()
}

/// Whether packages of this language can be added to a layer.
pub(crate) fn can_add(language: Language) -> bool {
    installer(language).is_some_and(|installer| installer.adds.is_some())
}

/// How a script says that what is wanted cannot be added to what is there.
const DOES_NOT_FIT: i32 = 75;

/// What a script puts before a package that it has added to a layer.
const ADDED: char = '+';

/// Installs `requirements` in a VM of its own. `folder` has room for the disk. With a `parent`, only what that has not is
/// installed, behind it; `None` when that cannot be.
pub(crate) async fn install(
    host: &Host,
    folder: &Path,
    language: Language,
    requirements: &[Requirement],
    parent: Option<&Arc<Environment>>,
    session: &Session,
    words: &mut dyn OutputSink,
) -> Result<Option<Installed>, InstallError> {
    let Some(installer) = installer(language) else {
        return Err(InstallError::internal(format!("there is no installer for {language}")));
    };
    let memory_mb = memory_mb(host.most_mb());
    let writable_mb = memory_mb - INSTALL_PROGRAM_MB;
    let place = host.enter(memory_mb + VM_OVERHEAD_MB).await?;
    let (owned_folder, owned_parent) = (folder.to_owned(), parent.cloned());
    let blank = tokio::task::spawn_blocking(move || layer::blank(&owned_folder, owned_parent.as_deref())).await;
    let image = blank.map_err(InstallError::internal)?.map_err(InstallError::internal)?;
    let disk = Arc::new(image.try_clone().map_err(InstallError::internal)?.into());
    let session_too = session.clone();
    let serve = move |_: Target, stream: TunnelStream| {
        let session = session_too.clone();
        async move {
            // What the installer was not sent, the session knows of.
            if let Err(error) = session.serve(stream).await {
                tracing::debug!(%error, "an installer's connection broke");
            }
        }
    };
    let parts_before = parent.map_or(0, |parent| parent.parts);
    let installation = Installation { writable_mb, parts: parts_before, disk: Some(disk), handler: Arc::new(serve) };
    let (gone, is_gone) = oneshot::channel::<()>();
    let script = parent.and(installer.adds).unwrap_or(installer.script);
    let request = request(script, requirements, memory_mb);
    let outcome = run_installer(host, installation, request, (place, gone), words).await;
    let outcome = outcome?;
    // Whoever could still write to the disk is gone.
    let _ = is_gone.await;
    if parent.is_some() && outcome.exit_code == DOES_NOT_FIT {
        return Ok(None);
    }
    let report = session.report();
    if outcome.exit_code != 0 || refusal(&report).is_some() {
        return Err(failure(&outcome, &report, writable_mb));
    }
    check_whole(outcome.stdout_bytes).map_err(|reason| InstallError::Failed { reason, log: log_of(&outcome) })?;
    let mut packages = (installer.read)(&outcome.stdout).map_err(InstallError::internal)?;
    for package in &mut packages {
        let whole = || report.parts.get(&package.name).cloned();
        package.comes_with = package.comes_with.take().or_else(whole);
    }
    if packages.is_empty() {
        return Err(InstallError::Failed { reason: "nothing was installed".into(), log: log_of(&outcome) });
    }
    let was_added = outcome.stdout.lines().any(|line| line.starts_with(ADDED));
    // What adds nothing is on its parent's disk as it is.
    let parts = parts_before + u8::from(was_added || parent.is_none());
    let added_to = parent.filter(|_| was_added).map(|parent| parent.reference());
    let skipped =
        report.refusals.into_iter().map(|refusal| Omitted { reason: refusal.to_string(), name: refusal.refused.name });
    Ok(Some(Installed {
        image,
        lock: PackageLock::new(language, packages),
        parts,
        added_to,
        skipped: skipped.collect(),
    }))
}

/// Runs a program in a VM that boots for it, as an installer. `keep` is dropped once the VM is gone.
pub(crate) async fn run_installer(
    host: &Host,
    installation: Installation,
    request: ExecuteInput,
    keep: impl Send + 'static,
    words: &mut dyn OutputSink,
) -> Result<ExecuteOutcome, VmError> {
    let accepted = Instant::now();
    let timeout = Duration::from_secs(request.timeout_seconds());
    let Installation { writable_mb, parts, disk, handler } = installation;
    let mut spec = LaunchSpec { memory_mb: request.memory_mb + VM_OVERHEAD_MB, ..host.spec.clone() };
    let mut hello = hello(Vec::new())?;
    (hello.parts, hello.role) = (parts, Role::Installs { writable_mb, has_disk: disk.is_some() });
    if let Some(file) = disk {
        spec.slot = Slot { file: Some(file), is_writable: true };
    }
    let program = program(request)?;
    let vm = Booting::launch(&host.qemu, &spec, hello, keep).await?.with_tunnel(handler);
    let vm = vm.start(&program, spec.boot_deadline()).await?;
    let preparation = Preparation {
        accepted,
        setup: Duration::ZERO,
        boot: vm.ready - accepted,
        connect: vm.started - vm.ready,
        accelerator: spec.accelerator,
        warm_pool_hit: false,
        template_hit: false,
    };
    run(vm, Terms::of_call(timeout), preparation, words).await
}

/// What an installer is given where the largest VM has `most_mb`. Less than the least is for admission to refuse.
fn memory_mb(most_mb: u64) -> u64 {
    most_mb.saturating_sub(VM_OVERHEAD_MB).clamp(INSTALL_MEMORY_MIN_MB, INSTALL_MEMORY_MB)
}

/// The list of what is there is the lock: one that ends early would be another set's.
fn check_whole(stdout_bytes: u64) -> Result<(), String> {
    if stdout_bytes <= STDOUT_MAX_BYTES as u64 {
        return Ok(());
    }
    Err(format!(
        "the list of what was installed has {stdout_bytes} bytes, and is cut at {STDOUT_MAX_BYTES}: these are too many packages for \
         one set"
    ))
}

fn request(script: &str, requirements: &[Requirement], memory_mb: u64) -> ExecuteInput {
    ExecuteInput {
        timeout_seconds: Some(INSTALL_TIMEOUT_SECONDS),
        env: [("INSTALL_REGISTRY".into(), format!("http://127.0.0.1:{REGISTRY_PORT}"))].into(),
        stdin: requirements.iter().map(|requirement| format!("{requirement}\n")).collect(),
        memory_mb,
        ..ExecuteInput::new(Language::Shell, script)
    }
}

/// Why an installer has failed: what the gateway knows of it says more than the installer does.
fn failure(outcome: &ExecuteOutcome, report: &SessionReport, writable_mb: u64) -> InstallError {
    let log = log_of(outcome);
    if let Some(refusal) = refusal(report) {
        return InstallError::Refused { reason: refusal.to_string() };
    }
    let reason = if outcome.timed_out {
        format!("the installation took longer than {INSTALL_TIMEOUT_SECONDS} s")
    } else if outcome.out_of_memory || outcome.stderr.contains("No space left on device") {
        format!("the packages need more than the {writable_mb} MiB that an installation may write")
    } else if let Some(failure) = report.failures.first() {
        failure.to_string()
    } else if let Some(unavailable) = report.unavailable.first() {
        unavailable.to_string()
    } else {
        "the installer failed".into()
    };
    InstallError::Failed { reason, log }
}

/// What was refused and is needed. An installer that goes on without it has found something else than what was asked for.
fn refusal(report: &SessionReport) -> Option<&Refusal> {
    report.refusals.iter().find(|refusal| !refusal.is_optional)
}

/// The end of what the installer has said.
fn log_of(outcome: &ExecuteOutcome) -> String {
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// `name==version` a line, as the metadata has them: what a distribution's directory is called need not be its name.
fn read_python(said: &str) -> Result<Vec<LockedPackage>, String> {
    let read = |line: &str| {
        let line = line.trim_start_matches(ADDED);
        let (name, version) = line.split_once("==").ok_or_else(|| format!("{line:?} is no distribution"))?;
        let name = sandbox_packages::normalise(Language::Python, name).map_err(|error| error.to_string())?;
        Ok(LockedPackage { name: name.into(), version: version.into(), place: None, hash: None, comes_with: None })
    };
    said.lines().map(read).collect()
}

/// An entry of npm's lock file.
#[derive(Deserialize)]
struct Placed {
    place: String,
    /// Where it lies by another.
    name: Option<String>,
    version: String,
    hash: Option<String>,
    /// It is within the file of the package that it lies below.
    bundled: Option<bool>,
}

impl Placed {
    fn name(&self) -> Result<String, String> {
        let name = self.name.as_deref().or(self.place.rsplit("node_modules/").next()).unwrap_or_default();
        let name = sandbox_packages::normalise(Language::Javascript, name).map_err(|error| error.to_string())?;
        Ok(name.into())
    }

    fn is_bundled(&self) -> bool {
        self.bundled == Some(true)
    }
}

fn read_javascript(said: &str) -> Result<Vec<LockedPackage>, String> {
    let read = |line: &str| serde_json::from_str(line).map_err(|error| format!("{line:?}: {error}"));
    let all: Vec<Placed> = said.lines().map(read).collect::<Result<_, _>>()?;
    // Whose file a bundled one is in: the nearest above it that has a file of its own.
    let bundler = |placed: &Placed| {
        let above =
            all.iter().filter(|other| !other.is_bundled() && placed.place.starts_with(&format!("{}/", other.place)));
        above.max_by_key(|other| other.place.len()).map(Placed::name).transpose()
    };
    let package = |placed: &Placed| {
        let comes_with = if placed.is_bundled() { bundler(placed)? } else { None };
        let Placed { place, version, hash, .. } = placed;
        let (place, version, hash) = (Some(place.clone()), version.clone(), hash.clone());
        Ok(LockedPackage { name: placed.name()?, version, place, hash, comes_with })
    };
    all.iter().map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installer_has_what_there_is_and_no_less_than_it_needs() {
        assert_eq!([10_000, 3328, 2304, 1280, 300, 0].map(memory_mb), [3072, 3072, 2048, 1024, 1024, 1024]);
        const { assert!(INSTALL_MEMORY_MIN_MB > INSTALL_PROGRAM_MB) };
    }

    #[test]
    fn a_list_that_ends_early_is_no_lock() {
        assert!(check_whole(STDOUT_MAX_BYTES as u64).is_ok());
        let reason = check_whole(STDOUT_MAX_BYTES as u64 + 1).unwrap_err();
        assert!(reason.contains("has 1000001 bytes, and is cut at 1000000"), "{reason}");
    }

    #[test]
    fn what_was_installed_is_read_from_what_the_installers_say() {
        let package = |name: &str, version: &str, place: Option<&str>, hash: Option<&str>| LockedPackage {
            name: name.into(),
            version: version.into(),
            place: place.map(Into::into),
            hash: hash.map(Into::into),
            comes_with: None,
        };
        assert_eq!(
            read_python("typing_extensions==4.12.2\n+Jinja2==3.1.6\n").unwrap(),
            [package("typing-extensions", "4.12.2", None, None), package("jinja2", "3.1.6", None, None)]
        );
        assert!(read_python("nothing").is_err());
        let said = r#"{"place":"node_modules/a/node_modules/@s/b","version":"1.0.0","hash":"sha512-x"}"#;
        let place = Some("node_modules/a/node_modules/@s/b");
        assert_eq!(read_javascript(said).unwrap(), [package("@s/b", "1.0.0", place, Some("sha512-x"))]);
        assert!(read_javascript("{}").is_err());
        let said = r#"{"place":"node_modules/cli","version":"1.0.0","hash":"sha512-x"}
{"place":"node_modules/width-cjs","name":"width","version":"4.2.3","hash":"sha512-y"}
{"place":"node_modules/cli/node_modules/inner","version":"2.0.0","bundled":true}
{"place":"node_modules/cli/node_modules/inner/node_modules/most","version":"3.0.0","bundled":true}"#;
        let read = read_javascript(said).unwrap();
        let told: Vec<_> = read.iter().map(|one| (&*one.name, one.answers_for_it())).collect();
        assert_eq!(told, [("cli", "cli"), ("width", "width"), ("inner", "cli"), ("most", "cli")]);
    }
}
