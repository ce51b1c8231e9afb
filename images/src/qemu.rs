//! A QEMU for these VMs and nothing else: Debian's source, the devices of `qemu/devices.mak`, one static program. It is
//! compiled in a tree of the same release, so that the host needs no tool for it that the root does not need.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sandbox_schemas::image::{Component, Digest};
use sandbox_store::{At, KeyHasher, create_anew};

use crate::debian::{KEYRING, MMDEBSTRAP, SUITE, mmdebstrap_tool, package_names, step};
use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::progress::Unit;
use crate::recipe::{Ingredients, Recipe, Workshop};
use crate::room::Room;
use crate::tool::{self, Tool};

/// Changes when the code below does something else with the same inputs.
const RECIPE_VERSION: &[u8] = b"1";
/// What it is compiled with.
const PACKAGES: &str = include_str!("../qemu/packages.list");
/// How it is compiled.
const SCRIPT: &str = include_str!("../qemu/build.sh");
/// What the compiling finds in the tree, by name.
const INPUTS: [(&str, &str); 5] = [
    ("devices.mak", include_str!("../qemu/devices.mak")),
    ("code-cache.patch", include_str!("../qemu/code-cache.patch")),
    ("device-tree.patch", include_str!("../qemu/device-tree.patch")),
    ("firmware.patch", include_str!("../qemu/firmware.patch")),
    ("memory-map.patch", include_str!("../qemu/memory-map.patch")),
];
/// How many steps ninja takes, for the progress bar.
const OBJECTS: u64 = 1290;

const TOOLS: &[HostTool] = &[MMDEBSTRAP, KEYRING, HostTool { name: "apt-get", package: "apt" }];

/// How `qemu-system-x86_64` is built.
pub(crate) struct Qemu;

impl Recipe for Qemu {
    fn component(&self) -> Component {
        Component::Qemu
    }

    fn key(&self) -> Digest {
        key(RECIPE_VERSION, SUITE, PACKAGES, SCRIPT, &INPUTS)
    }

    fn tools(&self) -> &'static [HostTool] {
        TOOLS
    }

    fn room(&self) -> Room {
        Room { tree_bytes: 1_400_000_000, cache_bytes: 30_000_000 }
    }

    fn make(&self, work: &Path, artefact: &Path, workshop: &Workshop<'_>) -> Result<Ingredients, BuildError> {
        let log = workshop.logs.join("qemu.log");
        create_anew(&log).at("write", &log)?;
        for (name, text) in INPUTS.into_iter().chain([("build.sh", SCRIPT)]) {
            let path = work.join(name);
            fs::write(&path, text).at("write", &path)?;
        }

        let mut installing =
            Some(workshop.progress.stage("qemu: installing what it is compiled with", None, Unit::None));
        let mut compiling = None;
        let mut done = 0;
        let tool = with_options(mmdebstrap_tool(work)?, &self.key());
        tool.args([SUITE, "-"]).run(&log, workshop, |line| {
            if step(line) == Some(COMPILING) {
                if let Some(stage) = installing.take() {
                    stage.finish();
                }
                compiling = Some(workshop.progress.stage("qemu: compiling", Some(OBJECTS), Unit::Objects));
            }
            match (&mut installing, &mut compiling) {
                (_, Some(stage)) => {
                    if let Some(now) = steps_done(line).filter(|now| *now > done) {
                        stage.advance(now - done);
                        done = now;
                    }
                }
                (Some(stage), None) => {
                    if let Some(step) = step(line) {
                        stage.message(step);
                    }
                }
                (None, None) => {}
            }
        })?;
        for stage in installing.into_iter().chain(compiling) {
            stage.finish();
        }

        let made = work.join(Component::Qemu.file_name());
        fs::rename(&made, artefact).at("rename", &made)?;
        let versions = work.join("versions");
        Ok(Ingredients {
            packages: versions_of(&fs::read_to_string(&versions).at("read", &versions)?),
            tools: [("mmdebstrap".to_owned(), tool::version("mmdebstrap"))].into(),
        })
    }
}

/// The step of build.sh at which ninja begins to count.
const COMPILING: &str = "compiling";

fn key(recipe_version: &[u8], suite: &str, packages: &str, script: &str, inputs: &[(&str, &str)]) -> Digest {
    let hasher = KeyHasher::new("qemu")
        .field("recipe", recipe_version)
        .field("suite", suite.as_bytes())
        .field("packages", packages.as_bytes())
        .field("script", script.as_bytes());
    inputs.iter().fold(hasher, |hasher, (name, text)| hasher.field(name, text.as_bytes())).finish()
}

/// What is installed, and the hooks that compile QEMU with it.
fn with_options(tool: Tool, key: &Digest) -> Tool {
    tool.arg("--variant=essential")
        .arg(format!("--include={}", package_names(PACKAGES).collect::<Vec<_>>().join(",")))
        .arg("--customize-hook=mkdir \"$1/inputs\"")
        .args(INPUTS.map(|(name, _)| format!("--customize-hook=upload {name} /inputs/{name}")))
        .arg("--customize-hook=upload build.sh /inputs/build.sh")
        .arg("--customize-hook=sh \"$1/inputs/build.sh\" \"$1\"")
        .args(
            [Component::Qemu.file_name(), "versions"]
                .map(|name| format!("--customize-hook=download /inputs/{name} {name}")),
        )
        // What QEMU says of its version is in a template's key: one that was configured otherwise says something else.
        .env("SANDBOX_QEMU_KEY", key.short())
}

/// How many steps ninja has done: `[12/1288] Compiling C object ...`.
fn steps_done(line: &str) -> Option<u64> {
    line.strip_prefix('[')?.split_once('/')?.0.parse().ok()
}

/// `name version` a line.
fn versions_of(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::{COMPILING, INPUTS, PACKAGES, Qemu, RECIPE_VERSION, SCRIPT, key, steps_done, versions_of};
    use crate::debian::{SUITE, package_names};
    use crate::recipe::Recipe;

    #[test]
    fn every_input_is_in_the_key() {
        let now = Qemu.key();
        assert_eq!(now, key(RECIPE_VERSION, SUITE, PACKAGES, SCRIPT, &INPUTS));
        let changed = |place: usize| {
            let mut inputs = INPUTS;
            inputs[place].1 = "other";
            key(RECIPE_VERSION, SUITE, PACKAGES, SCRIPT, &inputs)
        };
        let mut others = vec![
            key(b"0", SUITE, PACKAGES, SCRIPT, &INPUTS),
            key(RECIPE_VERSION, "sid", PACKAGES, SCRIPT, &INPUTS),
            key(RECIPE_VERSION, SUITE, "gcc", SCRIPT, &INPUTS),
            key(RECIPE_VERSION, SUITE, PACKAGES, "true", &INPUTS),
            key(RECIPE_VERSION, SUITE, PACKAGES, SCRIPT, &INPUTS[1..]),
        ];
        others.extend((0..INPUTS.len()).map(changed));
        assert!(!others.contains(&now));
    }

    #[test]
    fn what_the_script_takes_and_says_is_what_the_recipe_gives_and_hears() {
        for (name, _) in INPUTS {
            let taken = name.rsplit_once('.').map_or(name, |(_, ending)| ending);
            assert!(SCRIPT.contains(&format!(".{taken}")), "{name} is not used");
        }
        assert!(SCRIPT.contains(&format!("echo 'step: {COMPILING}'\nninja qemu-system-x86_64\n")));
        assert!(SCRIPT.contains("$SANDBOX_QEMU_KEY"));
        // By which the engine knows what it can ask for (engine/src/qemu/binary.rs).
        assert!(SCRIPT.contains("built by sandbox-mcp as $SANDBOX_QEMU_KEY, keeps code"));
        // What hosts that a guest attacks from within QEMU rely on.
        for hardening in ["--enable-pie", "--enable-stack-protector", "--enable-seccomp"] {
            assert!(SCRIPT.contains(hardening), "{hardening}");
        }
    }

    #[test]
    fn package_list_holds_names_only() {
        let names: Vec<_> = package_names(PACKAGES).collect();
        assert!(names.contains(&"gcc") && names.contains(&"libseccomp-dev"));
        for name in names {
            assert!(name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'+' | b'-')), "{name}");
        }
    }

    #[test]
    fn ninja_is_understood_and_so_are_versions() {
        assert_eq!(steps_done("[12/1288] Compiling C object a.o"), Some(12));
        for other in ["", "[x/2]", "12/1288", "[12]", "ninja: Entering directory `qboot'"] {
            assert_eq!(steps_done(other), None, "{other}");
        }
        let versions = versions_of("qemu 1:10.0.13+ds-0+deb13u1\ngcc 4:14.2.0-1\n");
        assert_eq!(versions["qemu"], "1:10.0.13+ds-0+deb13u1");
        assert_eq!(versions.len(), 2);
    }
}
