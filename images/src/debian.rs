//! mmdebstrap: Debian's packages through Debian's signed index, as root or as an ordinary user.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use crate::error::BuildError;
use crate::failure::Forbidden;
use crate::host_tool::HostTool;
use crate::progress::Stage;
use crate::recipe::Workshop;
use crate::room::Place;
use crate::tool::{self, Tool};

/// Debian's release. The guest's Python is the one of this release, and its kernel is made of this release's source.
pub(crate) const SUITE: &str = "trixie";

/// What [`mmdebstrap`] needs.
pub(crate) const MMDEBSTRAP: HostTool = HostTool { name: "mmdebstrap", package: "mmdebstrap" };
/// The keys that Debian's index is signed with.
pub(crate) const KEYRING: HostTool =
    HostTool { name: "/usr/share/keyrings/debian-archive-keyring.gpg", package: "debian-archive-keyring" };

/// How mmdebstrap works on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In namespaces of its own, which take along whatever was mounted there.
    Unshare,
    /// As root where the host forbids namespaces, as containers do. Nothing is mounted in the tree, so that nothing stays mounted on the
    /// host; what is installed and done with it does without `/proc`.
    Root,
}

impl Mode {
    /// The mode that works. Asks mmdebstrap itself, since what a host forbids it can depend on the program (AppArmor's profiles).
    pub(crate) fn find() -> Result<Mode, Forbidden> {
        let is_root = geteuid().is_root();
        // Mounting can be forbidden where namespaces are not; with that `unshare` begins. Who is root in a namespace only, may.
        let trial: &[&str] = if is_root { &["unshare", "--mount", "true"] } else { &["true"] };
        match tool::attempt(MMDEBSTRAP.name, ["--unshare-helper"].iter().chain(trial)) {
            Ok(()) => Ok(Mode::Unshare),
            Err(_) if is_root => Ok(Mode::Root),
            Err(said) => Err(Forbidden { said }),
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Mode::Unshare => &["--mode=unshare"],
            Mode::Root => &["--mode=root", "--skip=chroot/mount"],
        }
    }
}

/// Where trees lie while mmdebstrap works on them. Root can work where the next build sweeps. Others are root in a namespace only, whose
/// users have no way into a cache that is their user's alone. They work where `TMPDIR` says, or where large files belong: `/tmp` is often
/// memory.
pub(crate) fn place_of_trees(work: &Path) -> Place {
    let given = || std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    let usual = || {
        let is_usable = |path: &&Path| access(*path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
        ["/var/tmp", "/tmp"].map(Path::new).into_iter().find(is_usable).unwrap_or(Path::new("/tmp")).to_owned()
    };
    if geteuid().is_root() { Place::cache(work) } else { Place::temporary(given().unwrap_or_else(usual)) }
}

/// Runs mmdebstrap in `work` on a temporary tree. Hooks hand files in and out over a pipe, since users that are root
/// only in a namespace of theirs have no access to their own files there.
pub(crate) fn mmdebstrap(
    work: &Path,
    log: &Path,
    workshop: &Workshop<'_>,
    stage: &mut dyn Stage,
    configure: impl FnOnce(Tool) -> Tool,
) -> Result<(), BuildError> {
    configure(mmdebstrap_tool(work)?).args([SUITE, "-"]).run(log, workshop, |line| {
        if let Some(step) = step(line) {
            stage.message(step);
        }
    })
}

/// mmdebstrap as [`mmdebstrap`] runs it, for who listens to its output otherwise. The suite and `-` are its last arguments.
pub(crate) fn mmdebstrap_tool(work: &Path) -> Result<Tool, Forbidden> {
    let tool = Tool::new(MMDEBSTRAP.name, work).temporary(place_of_trees(work));
    Ok(tool.args(["--format=null", "--skip=cleanup"]).args(Mode::find()?.options()))
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
