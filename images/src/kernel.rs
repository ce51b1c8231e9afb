//! The guest kernel: Debian's source, a patch, configured with `kernel/config.fragment`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use sandbox_schemas::image::{Component, Digest};
use sandbox_store::{At, KeyHasher, create_anew};

use crate::debian::{KEYRING, MMDEBSTRAP, SUITE, mmdebstrap};
use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::progress::Unit;
use crate::recipe::{Ingredients, Recipe, Workshop};
use crate::room::Room;
use crate::tool::{self, Tool};

/// Changes when the code below does something else with the same inputs.
const RECIPE_VERSION: &[u8] = b"1";
/// Debian's package with the source.
const SOURCE: &str = "linux-source-6.12";
/// What is built, beyond `allnoconfig`.
const FRAGMENT: &str = include_str!("../kernel/config.fragment");
/// What a guest's programs are told of its memory.
const PATCH: &str = include_str!("../kernel/meminfo.patch");
/// How many objects the fragment compiles to, for the progress bar.
const OBJECTS: u64 = 900;

const TOOLS: &[HostTool] = &[
    MMDEBSTRAP,
    HostTool { name: "dpkg-deb", package: "dpkg" },
    KEYRING,
    HostTool { name: "tar", package: "tar" },
    HostTool { name: "xz", package: "xz-utils" },
    HostTool { name: "make", package: "make" },
    HostTool { name: "gcc", package: "gcc" },
    HostTool { name: "/usr/include/stdio.h", package: "libc6-dev" },
    HostTool { name: "/usr/include/gelf.h", package: "libelf-dev" },
    HostTool { name: "ld", package: "binutils" },
    HostTool { name: "strip", package: "binutils" },
    HostTool { name: "flex", package: "flex" },
    HostTool { name: "bison", package: "bison" },
    HostTool { name: "patch", package: "patch" },
    HostTool { name: "bc", package: "bc" },
    HostTool { name: "perl", package: "perl-base" },
];

/// How `vmlinux` is built.
pub(crate) struct Kernel {
    fragment: &'static str,
}

impl Kernel {
    /// The kernel that this binary's fragment describes.
    pub(crate) fn new() -> Kernel {
        Kernel { fragment: FRAGMENT }
    }
}

impl Recipe for Kernel {
    fn component(&self) -> Component {
        Component::Kernel
    }

    fn key(&self) -> Digest {
        key(RECIPE_VERSION, SUITE, SOURCE, PATCH, self.fragment)
    }

    fn tools(&self) -> &'static [HostTool] {
        TOOLS
    }

    fn room(&self) -> Room {
        Room { tree_bytes: 520_000_000, cache_bytes: 2_100_000_000 }
    }

    fn make(&self, work: &Path, artefact: &Path, workshop: &Workshop<'_>) -> Result<Ingredients, BuildError> {
        let log = workshop.logs.join("kernel.log");
        create_anew(&log).at("write", &log)?;
        let (source, version) = fetch_source(work, &log, workshop)?;
        apply(PATCH, &source, &log, workshop)?;
        configure(self.fragment, &source, &log, workshop)?;

        let mut stage = workshop.progress.stage("kernel: compiling", Some(OBJECTS), Unit::Objects);
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        make(&source, [format!("-j{jobs}"), "vmlinux".to_owned()]).run(&log, workshop, |line| {
            if line.starts_with("  CC ") || line.starts_with("  AS ") {
                stage.advance(1);
            }
        })?;
        // Symbols are of no use to a guest without a debugger. The ELF note that names the PVH entry point stays.
        Tool::new("strip", &source).arg("-s").arg("-o").args([artefact, Path::new("vmlinux")]).run(
            &log,
            workshop,
            |_| (),
        )?;
        stage.finish();

        Ok(Ingredients {
            packages: [(SOURCE.to_owned(), version)].into(),
            tools: ["gcc", "ld", "mmdebstrap"].map(|name| (name.to_owned(), tool::version(name))).into(),
        })
    }
}

fn key(recipe_version: &[u8], suite: &str, source: &str, patch: &str, fragment: &str) -> Digest {
    KeyHasher::new("kernel")
        .field("recipe", recipe_version)
        .field("suite", suite.as_bytes())
        .field("source", source.as_bytes())
        .field("patch", patch.as_bytes())
        .field("fragment", fragment.as_bytes())
        .finish()
}

/// Fetches the source through Debian's signed index and unpacks it. Answers with its directory and Debian's version.
fn fetch_source(work: &Path, log: &Path, workshop: &Workshop<'_>) -> Result<(PathBuf, String), BuildError> {
    let mut stage = workshop.progress.stage("kernel: fetching the source", None, Unit::None);
    let version = format!(
        "dpkg-deb --showformat='${{Version}}' --show \"$1\"/var/cache/apt/archives/{SOURCE}_*.deb >\"$1/version\""
    );
    mmdebstrap(work, log, workshop, stage.as_mut(), |tool| {
        tool.arg("--variant=extract")
            .arg(format!("--include={SOURCE}"))
            .arg(format!("--extract-hook={version}"))
            .arg("--extract-hook=download /version version")
            .arg(format!("--extract-hook=download /usr/src/{SOURCE}.tar.xz source.tar.xz"))
    })?;
    stage.message("unpacking");
    Tool::new("tar", work).args(["-I", "xz -T0", "-xf", "source.tar.xz"]).run(log, workshop, |_| ())?;
    stage.finish();
    let path = work.join("version");
    let version = fs::read_to_string(&path).at("read", &path)?;
    Ok((work.join(SOURCE), version.trim().to_owned()))
}

/// Changes the source by a patch, of which every line must fit.
fn apply(patch: &str, source: &Path, log: &Path, workshop: &Workshop<'_>) -> Result<(), BuildError> {
    let path = source.join("sandbox.patch");
    fs::write(&path, patch).at("write", &path)?;
    let tool = Tool::new("patch", source).args(["--strip=1", "--forward", "--fuzz=0", "--input=sandbox.patch"]);
    tool.run(log, workshop, |_| ())
}

/// Writes `.config` and checks that it holds what the fragment asks for.
fn configure(fragment: &str, source: &Path, log: &Path, workshop: &Workshop<'_>) -> Result<(), BuildError> {
    let path = source.join(".config");
    make(source, ["allnoconfig"]).run(log, workshop, |_| ())?;
    let mut config = fs::read_to_string(&path).at("read", &path)?;
    config.push_str(fragment);
    fs::write(&path, config).at("write", &path)?;
    make(source, ["olddefconfig"]).run(log, workshop, |_| ())?;
    let config = fs::read_to_string(&path).at("read", &path)?;
    let lost = lost_options(fragment, &config);
    if lost.is_empty() { Ok(()) } else { Err(BuildError::LostOptions(lost)) }
}

/// `make` with everything fixed that would otherwise put the host's name and the hour into the kernel.
fn make<S: AsRef<std::ffi::OsStr>>(source: &Path, args: impl IntoIterator<Item = S>) -> Tool {
    Tool::new("make", source)
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "sandbox")
        .env("KBUILD_BUILD_HOST", "sandbox")
        .args(args)
}

/// The options of `fragment` that `config` does not have as asked. `=n` is satisfied by absence.
fn lost_options(fragment: &str, config: &str) -> Vec<String> {
    let value = |name: &str| config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    fragment
        .lines()
        .filter_map(|line| line.trim().split_once('=').filter(|(name, _)| name.starts_with("CONFIG_")))
        .filter(|(name, wanted)| value(name).unwrap_or("n") != *wanted)
        .map(|(name, wanted)| format!("{name}={wanted} (it is {})", value(name).unwrap_or("n")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{FRAGMENT, Kernel, PATCH, RECIPE_VERSION, SOURCE, key, lost_options};
    use crate::debian::SUITE;
    use crate::recipe::Recipe;

    #[test]
    fn every_input_is_in_the_key() {
        let now = Kernel::new().key();
        assert_eq!(now, key(RECIPE_VERSION, SUITE, SOURCE, PATCH, FRAGMENT));
        let changed = FRAGMENT.replace("CONFIG_UNIX=y", "CONFIG_UNIX=n");
        for other in [
            key(b"0", SUITE, SOURCE, PATCH, FRAGMENT),
            key(RECIPE_VERSION, "sid", SOURCE, PATCH, FRAGMENT),
            key(RECIPE_VERSION, SUITE, "linux-source-6.1", PATCH, FRAGMENT),
            key(RECIPE_VERSION, SUITE, SOURCE, "", FRAGMENT),
            key(RECIPE_VERSION, SUITE, SOURCE, PATCH, &changed),
        ] {
            assert_ne!(now, other);
        }
    }

    #[test]
    fn every_lost_option_is_named() {
        let fragment =
            "# CONFIG_COMMENT=y\nCONFIG_KEPT=y\nCONFIG_GONE=y\nCONFIG_OFF=n\nCONFIG_NOT_OFF=n\nCONFIG_NUMBER=5\n";
        let config = "CONFIG_KEPT=y\n# CONFIG_GONE is not set\nCONFIG_NOT_OFF=y\nCONFIG_NUMBER=6\nCONFIG_GONE_TOO=y\n";
        let lost = ["CONFIG_GONE=y (it is n)", "CONFIG_NOT_OFF=n (it is y)", "CONFIG_NUMBER=5 (it is 6)"];
        assert_eq!(lost_options(fragment, config), lost);
        assert!(lost_options(FRAGMENT, "").len() > 50);
    }
}
