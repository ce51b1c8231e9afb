//! What holds QEMU's processes on this host, as it is told: in `pool_status`, and in the log when the engine starts.

use std::fs::File;
use std::path::Path;

use sandbox_schemas::status::{Confinement, ProcessUser, SystemCalls};

use crate::qemu::isolation::{Facts, UserFact};
use crate::qemu::landlock;
use crate::qemu::program::Program;

/// What a process of this QEMU will be held by. What is said to be there is there: a VM without it is not started.
pub(crate) fn confinement(qemu: &Path, facts: &Facts) -> Confinement {
    // One that cannot be read cannot be started either.
    let program = File::open(qemu).and_then(|file| Program::of(&file)).unwrap_or(Program::Script);
    let is_script = program == Program::Script;
    Confinement {
        user: match facts.user {
            UserFact::OwnUid { .. } => ProcessUser::Own,
            UserFact::Servers { .. } => ProcessUser::Server,
        },
        namespaces: facts.namespaces().into_iter().map(|name| name.to_lowercase()).collect(),
        seccomp: if is_script { SystemCalls::Qemu } else { SystemCalls::Allowlist },
        landlock: landlock::abi().filter(|_| !is_script),
        cgroup: facts.cgroup.is_ok(),
    }
}

/// Says it once, and warns of what somebody can do something about.
pub(crate) fn tell(qemu: &Path, confinement: &Confinement, facts: &Facts) {
    let system_calls = match confinement.seccomp {
        SystemCalls::Allowlist => "a list of what is allowed, and QEMU's own filter",
        SystemCalls::Qemu => "QEMU's own filter alone",
    };
    let files = match confinement.landlock {
        Some(version) => format!("Landlock, version {version}"),
        None => "permissions alone, without Landlock".to_string(),
    };
    tracing::info!("{facts}; system calls: {system_calls}; files: {files}");
    match confinement {
        Confinement { seccomp: SystemCalls::Qemu, .. } => tracing::warn!(
            path = %qemu.display(),
            "QEMU is a script: neither the list of system calls nor Landlock holds what it starts; name the program itself"
        ),
        Confinement { user: ProcessUser::Server, landlock: None, .. } => tracing::warn!(
            "QEMU runs as this user and the kernel has no Landlock: a guest that has conquered its QEMU could read this user's \
             files. Linux 5.13 or later has it, where `lsm=` of the kernel's command line does not leave it out"
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::isolation::Isolation;

    #[test]
    fn a_script_is_held_by_less() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("qemu");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let facts = Isolation::find_out().unwrap().facts;
        let of = |path: &Path| confinement(path, &facts);
        let (of_script, of_program) = (of(&script), of(Path::new("/proc/self/exe")));
        assert_eq!((of_script.seccomp, of_script.landlock), (SystemCalls::Qemu, None));
        assert_eq!((of_program.seccomp, of_program.landlock), (SystemCalls::Allowlist, landlock::abi()));
        assert_eq!(of(Path::new("/nowhere")).seccomp, SystemCalls::Qemu);
        assert_eq!(of_program.cgroup, facts.cgroup.is_ok());
        assert_eq!(of_program.namespaces.contains(&"pid".to_string()), facts.pid_namespace);
    }
}
