//! mmdebstrap: Debian's packages through Debian's signed index, as root or as an ordinary user.

use std::path::Path;

use crate::error::BuildError;
use crate::progress::Stage;
use crate::recipe::Workshop;
use crate::tool::{HostTool, Tool};

/// Debian's release. The guest's Python is the one of this release, and its kernel is made of this release's source.
pub(crate) const SUITE: &str = "trixie";

/// What [`mmdebstrap`] needs.
pub(crate) const MMDEBSTRAP: HostTool = HostTool { name: "mmdebstrap", package: "mmdebstrap" };
/// The keys that Debian's index is signed with.
pub(crate) const KEYRING: HostTool =
    HostTool { name: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" };

/// Runs mmdebstrap in `work` on a temporary tree. Hooks hand files in and out over a pipe, since users that are root
/// only in a namespace of theirs have no access to their own files there. Because of these namespaces nothing stays
/// mounted either, whatever ends it.
pub(crate) fn mmdebstrap(
    work: &Path,
    log: &Path,
    workshop: &Workshop<'_>,
    stage: &mut dyn Stage,
    configure: impl FnOnce(Tool) -> Tool,
) -> Result<(), BuildError> {
    configure(mmdebstrap_tool(work)).args([SUITE, "-"]).run(log, workshop, |line| {
        if let Some(step) = step(line) {
            stage.message(step);
        }
    })
}

/// mmdebstrap as [`mmdebstrap`] runs it, for who listens to its output otherwise. The suite and `-` are its last arguments.
pub(crate) fn mmdebstrap_tool(work: &Path) -> Tool {
    let tool = Tool::new("mmdebstrap", work).args(["--format=null", "--mode=unshare", "--skip=cleanup"]);
    // Root can work where the next build sweeps.
    if nix::unistd::geteuid().is_root() { tool.env("TMPDIR", work) } else { tool }
}

/// The packages of a list: one a line, `#` starts a comment.
pub(crate) fn package_names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|name| !name.is_empty())
}

/// What a line of output tells a person: steps of our own scripts and of mmdebstrap, but not where its files are.
pub(crate) fn step(line: &str) -> Option<&str> {
    let of_mmdebstrap = || line.strip_prefix("I: ")?.strip_suffix("...").filter(|step| !step.contains('/'));
    line.strip_prefix("step: ").or_else(of_mmdebstrap)
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn steps_are_told_and_paths_are_not() {
        assert_eq!(step("step: packing"), Some("packing"));
        assert_eq!(step("I: extracting archives..."), Some("extracting archives"));
        assert_eq!(step("I: removing tempdir /tmp/mmdebstrap.x..."), None);
        assert_eq!(step("I: success in 6.2 seconds"), None);
        assert_eq!(step("Get:1 extracting archives..."), None);
    }
}
