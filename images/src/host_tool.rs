//! The host's build tools: whether they are there.

use std::env;
use std::ffi::OsString;

/// Something that a recipe needs on the host.
#[derive(Debug)]
pub(crate) struct HostTool {
    /// A program that is looked for in `PATH`, or the absolute path of a file.
    pub(crate) name: &'static str,
    /// Debian's package that has it.
    pub(crate) package: &'static str,
}

/// Checks that the host has `tools`, so that a build does not fail after minutes.
pub(crate) fn require(tools: impl Iterator<Item = &'static HostTool>) -> Result<(), MissingTools> {
    let path = search_path();
    let mut missing = MissingTools { names: Vec::new(), packages: Vec::new() };
    for tool in tools {
        // An absolute name replaces the directory that it is joined to.
        let found = env::split_paths(&path).any(|directory| directory.join(tool.name).is_file());
        if !found && !missing.names.contains(&tool.name) {
            missing.names.push(tool.name);
            missing.packages.push(tool.package);
        }
    }
    missing.packages.sort_unstable();
    missing.packages.dedup();
    if missing.names.is_empty() { Ok(()) } else { Err(missing) }
}

/// Where tools are looked for: some are the administrator's, whose directory is not in every user's `PATH`.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").filter(|path| !path.is_empty());
    let mut path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":/usr/sbin");
    path
}

/// What the host lacks.
#[derive(Debug, thiserror::Error)]
#[error(
    "building a VM image needs {}, which this host does not have.\n\
     Run `make setup` in the project's directory, or: apt-get install --no-install-recommends {}",
    .names.join(", "), .packages.join(" ")
)]
pub struct MissingTools {
    /// Programs and files.
    names: Vec<&'static str>,
    /// Debian's packages that have them.
    packages: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tools_are_all_named_with_their_packages() {
        static TOOLS: [HostTool; 4] = [
            HostTool { name: "sh", package: "dash" },
            HostTool { name: "no-such-tool", package: "b" },
            HostTool { name: "/no/such/header.h", package: "a" },
            HostTool { name: "nor-this", package: "b" },
        ];
        let message = require(TOOLS.iter()).unwrap_err().to_string();
        assert!(message.contains("needs no-such-tool, /no/such/header.h, nor-this, which"), "{message}");
        assert!(message.ends_with("recommends a b"), "{message}");
        assert!(require(TOOLS[..1].iter()).is_ok());
    }
}
