//! The root file system: Debian packages, Node.js, npm and uv, packed read-only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sandbox_schemas::image::{Component, Digest};
use sandbox_store::{At, KeyHasher, create_anew};

use crate::debian::{KEYRING, MMDEBSTRAP, SUITE, mmdebstrap, package_names};
use crate::download;
use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::pins;
use crate::progress::Unit;
use crate::recipe::{Ingredients, Recipe, Workshop};
use crate::room::Room;
use crate::tool::{self, Tool};

/// Changes when the code below does something else with the same inputs.
const RECIPE_VERSION: &[u8] = b"1";
/// What is installed beyond Debian's essential packages.
const PACKAGES: &str = include_str!("../root/packages.list");
/// What is done with it.
const SCRIPT: &str = include_str!("../root/customize.sh");
/// What it puts into it.
const FILES: [(&str, &str); 6] = [
    ("start.py", include_str!("../root/start.py")),
    ("typescript.cjs", include_str!("../root/typescript.cjs")),
    ("no_network.py", include_str!("../root/no_network.py")),
    ("node", include_str!("../root/bin/node")),
    ("npm", include_str!("../root/bin/npm")),
    ("uv", include_str!("../root/bin/uv")),
];
/// What of the packages is not unpacked.
const EXCLUDED: [&str; 4] = ["/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*"];
/// How the image is packed. lz4 makes 238 MB of 390 MB. Uncompressed, a cold start under TCG took 12 % less for Node.js
/// (2.0 s instead of 2.3 s), 4 % less for bash and 1 % less for Python (medians of 8); lz4hc in larger clusters (198 MB)
/// cost Python 5 %.
const EROFS_OPTIONS: &str = "-zlz4";

const TOOLS: &[HostTool] = &[
    MMDEBSTRAP,
    KEYRING,
    HostTool { name: "mkfs.erofs", package: "erofs-utils" },
    HostTool { name: "tar", package: "tar" },
    HostTool { name: "gzip", package: "gzip" },
    HostTool { name: "strip", package: "binutils" },
];

/// How `root.erofs` is built.
pub(crate) struct Root;

impl Recipe for Root {
    fn component(&self) -> Component {
        Component::Root
    }

    fn key(&self) -> Digest {
        key(
            [RECIPE_VERSION, SUITE.as_bytes(), PACKAGES.as_bytes(), SCRIPT.as_bytes(), pins::TEXT.as_bytes()],
            &FILES,
            EROFS_OPTIONS,
        )
    }

    fn tools(&self) -> &'static [HostTool] {
        TOOLS
    }

    fn room(&self) -> Room {
        Room { tree_bytes: 1_000_000_000, cache_bytes: 450_000_000 }
    }

    fn make(&self, work: &Path, artefact: &Path, workshop: &Workshop<'_>) -> Result<Ingredients, BuildError> {
        let log = workshop.logs.join("root.log");
        create_anew(&log).at("write", &log)?;
        let downloads = pins::parse(pins::TEXT)?;
        let mut inputs = Vec::new();
        for (name, text) in [("customize.sh", SCRIPT)].into_iter().chain(FILES) {
            let input = work.join(name);
            fs::write(&input, text).at("write", &input)?;
            inputs.push(name);
        }
        for pinned in &downloads {
            let kept = download::fetch(pinned, work, workshop)?;
            // mmdebstrap splits its arguments at spaces, so its inputs get names that have none.
            let input = work.join(&pinned.file);
            fs::copy(&kept, &input).at("copy", &kept)?;
            inputs.push(&pinned.file);
        }

        let mut stage = workshop.progress.stage("root: installing", None, Unit::None);
        mmdebstrap(work, &log, workshop, stage.as_mut(), |tool| with_options(tool, &inputs))?;
        stage.finish();

        let made = work.join("root.erofs");
        fs::rename(&made, artefact).at("rename", &made)?;
        let status = work.join("status");
        let mut packages = installed_packages(&fs::read_to_string(&status).at("read", &status)?);
        packages.extend(downloads.into_iter().map(|download| (download.name, download.version)));
        Ok(Ingredients {
            packages,
            tools: ["mmdebstrap", "mkfs.erofs"].map(|name| (name.to_owned(), tool::version(name))).into(),
        })
    }
}

fn key(inputs: [&[u8]; 5], files: &[(&str, &str)], erofs_options: &str) -> Digest {
    let hasher = ["recipe", "suite", "packages", "script", "lock"]
        .into_iter()
        .zip(inputs)
        .chain(files.iter().map(|(name, text)| (*name, text.as_bytes())))
        .fold(KeyHasher::new("root"), |hasher, (name, value)| hasher.field(name, value));
    hasher.field("excluded", EXCLUDED.join("\n").as_bytes()).field("erofs", erofs_options.as_bytes()).finish()
}

/// What is installed, and the hooks that make the image of it.
fn with_options(tool: Tool, inputs: &[&str]) -> Tool {
    tool.arg("--variant=essential")
        .arg(format!("--include={}", package_names(PACKAGES).collect::<Vec<_>>().join(",")))
        .args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg("--customize-hook=mkdir \"$1/inputs\"")
        .args(inputs.iter().map(|name| format!("--customize-hook=upload {name} /inputs/{name}")))
        .arg("--customize-hook=sh \"$1/inputs/customize.sh\" \"$1\"")
        .arg("--customize-hook=download /inputs/root.erofs root.erofs")
        .arg("--customize-hook=download /var/lib/dpkg/status status")
        .env("SANDBOX_EROFS_OPTIONS", EROFS_OPTIONS)
}

/// Names and versions out of dpkg's status file.
fn installed_packages(status: &str) -> BTreeMap<String, String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    status
        .split("\n\n")
        .filter(|paragraph| field(paragraph, "Status").is_some_and(|status| status.ends_with(" installed")))
        .filter_map(|paragraph| Some((field(paragraph, "Package")?, field(paragraph, "Version")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{EROFS_OPTIONS, PACKAGES, installed_packages, key};
    use crate::debian::package_names;

    #[test]
    fn every_input_is_in_the_key() {
        let inputs: [&[u8]; 5] = [b"1", b"trixie", b"packages", b"script", b"lock"];
        let files = [("a", "text"), ("b", "text")];
        let now = key(inputs, &files, EROFS_OPTIONS);
        for changed in 0..inputs.len() {
            let mut inputs = inputs;
            inputs[changed] = b"other";
            assert_ne!(key(inputs, &files, EROFS_OPTIONS), now);
        }
        assert_ne!(key(inputs, &[("a", "text"), ("b", "other")], EROFS_OPTIONS), now);
        assert_ne!(key(inputs, &files, "other"), now);
    }

    #[test]
    fn package_list_holds_names_only() {
        let names: Vec<_> = package_names(PACKAGES).collect();
        assert!(names.contains(&"python3") && names.contains(&"git"));
        for name in names {
            assert!(name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'+' | b'-')), "{name}");
        }
    }

    #[test]
    fn installed_packages_are_read_from_dpkgs_status() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n y\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: c\nVersion: 4\nStatus: install ok installed\n";
        let packages = [("a", "1:2-3"), ("c", "4")].map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(installed_packages(status), packages.into());
    }
}
