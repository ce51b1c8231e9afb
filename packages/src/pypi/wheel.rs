//! Which wheels the guest can install, as their names tell. What it cannot is left out of the pages that it gets: of the
//! 4,400 files of numpy some 40 remain, and an installer under TCG need not read the others.

use sandbox_schemas::language::Language;

use crate::name::normalise;

/// What wheels are for: CPython on Linux with glibc, on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PythonTarget {
    /// `13` is CPython 3.13.
    pub python_minor: u32,
    /// `41` is glibc 2.41.
    pub glibc_minor: u32,
}

impl Default for PythonTarget {
    /// What the image has: Debian trixie.
    fn default() -> PythonTarget {
        PythonTarget { python_minor: 13, glibc_minor: 41 }
    }
}

impl PythonTarget {
    /// Whether a wheel with these tags can be installed: after PEP 425, and PEP 600 for `manylinux`.
    fn accepts(self, name: &WheelName<'_>) -> bool {
        let platform = |tag: &str| tag == "any" || self.is_linux(tag);
        let python = |tag: &str| name.abi.split('.').any(|abi| self.is_python(tag, abi));
        name.platform.split('.').any(platform) && name.python.split('.').any(python)
    }

    fn is_linux(self, tag: &str) -> bool {
        let Some(system) = tag.strip_suffix("_x86_64") else { return false };
        match system {
            "linux" | "manylinux1" | "manylinux2010" | "manylinux2014" => true,
            _ => system
                .strip_prefix("manylinux_2_")
                .and_then(|minor| minor.parse::<u32>().ok())
                .is_some_and(|minor| minor <= self.glibc_minor),
        }
    }

    fn is_python(self, tag: &str, abi: &str) -> bool {
        let minor = |prefix: &str| tag.strip_prefix(prefix).and_then(|minor| minor.parse::<u32>().ok());
        let own_abi = abi.strip_prefix("cp3").is_some_and(|minor| minor.parse() == Ok(self.python_minor));
        match (minor("cp3"), abi) {
            (Some(minor), "abi3") => minor <= self.python_minor,
            (Some(minor), "none") => minor == self.python_minor,
            (Some(minor), _) => minor == self.python_minor && own_abi,
            (None, "none") => tag == "py3" || minor("py3").is_some_and(|minor| minor <= self.python_minor),
            (None, _) => false,
        }
    }
}

/// The parts of a wheel's file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WheelName<'n> {
    pub(crate) distribution: &'n str,
    pub(crate) version: &'n str,
    python: &'n str,
    abi: &'n str,
    platform: &'n str,
}

impl<'n> WheelName<'n> {
    pub(crate) fn parse(file: &'n str) -> Option<WheelName<'n>> {
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'+' | b'!');
        let parts: Vec<_> = file.strip_suffix(".whl").filter(|name| name.bytes().all(is_allowed))?.split('-').collect();
        let [distribution, version, ref tags @ ..] = parts[..] else { return None };
        let (python, abi, platform) = match *tags {
            [python, abi, platform] | [_, python, abi, platform] => (python, abi, platform),
            _ => return None,
        };
        Some(WheelName { distribution, version, python, abi, platform })
    }
}

/// What a file of a project is to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A wheel that it can install.
    Wheel { version: String },
    /// A wheel for another Python or another machine.
    OtherWheel { version: String },
    /// Source, which would have to be built.
    Source { version: String },
    /// Nothing to install, or not of this project.
    Other,
}

/// What `file` is, on the page of `project`.
pub(crate) fn classify(file: &str, project: &str, target: PythonTarget) -> Kind {
    let is_project = |name: &str| normalise(Language::Python, name).is_ok_and(|name| name == project);
    if file.ends_with(".whl") {
        let Some(name) = WheelName::parse(file).filter(|name| is_project(name.distribution)) else {
            return Kind::Other;
        };
        let version = name.version.to_owned();
        return if target.accepts(&name) { Kind::Wheel { version } } else { Kind::OtherWheel { version } };
    }
    let stem = [".tar.gz", ".zip", ".tar.bz2", ".tgz"].iter().find_map(|ending| file.strip_suffix(ending));
    // Names may have `-` in them, and so may the versions of old ones.
    let cuts =
        stem.into_iter().flat_map(|stem| stem.match_indices('-').map(move |(at, _)| (&stem[..at], &stem[at + 1..])));
    match cuts.into_iter().find(|(name, _)| is_project(name)) {
        Some((_, version)) => Kind::Source { version: version.to_owned() },
        None => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, project: &str, expected: &str) {
        let kind = match classify(file, project, PythonTarget::default()) {
            Kind::Wheel { version } => format!("wheel {version}"),
            Kind::OtherWheel { version } => format!("other {version}"),
            Kind::Source { version } => format!("source {version}"),
            Kind::Other => "none".into(),
        };
        assert_eq!(kind, expected, "{file}");
    }

    #[test]
    fn wheels_are_told_by_their_tags() {
        for file in [
            "a-1.0-py3-none-any.whl",
            "A-1.0-py2.py3-none-any.whl",
            "a-1.0-1-py3-none-any.whl",
            "a-1.0-py311-none-any.whl",
            "a-1.0-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "a-1.0-cp313-cp313-manylinux_2_41_x86_64.whl",
            "a-1.0-cp39-abi3-manylinux_2_28_x86_64.whl",
            "a-1.0-cp313-none-linux_x86_64.whl",
            "a-1.0-py3-none-manylinux1_x86_64.whl",
        ] {
            check(file, "a", "wheel 1.0");
        }
        for file in [
            "a-1.0-cp312-cp312-manylinux_2_17_x86_64.whl",
            "a-1.0-cp313-cp313t-manylinux_2_17_x86_64.whl",
            "a-1.0-cp314-abi3-manylinux_2_17_x86_64.whl",
            "a-1.0-cp313-cp313-manylinux_2_42_x86_64.whl",
            "a-1.0-cp313-cp313-musllinux_1_2_x86_64.whl",
            "a-1.0-cp313-cp313-manylinux_2_17_aarch64.whl",
            "a-1.0-cp313-cp313-win_amd64.whl",
            "a-1.0-cp313-cp313-macosx_11_0_arm64.whl",
            "a-1.0-py2-none-any.whl",
            "a-1.0-pp310-pypy310_pp73-manylinux_2_17_x86_64.whl",
        ] {
            check(file, "a", "other 1.0");
        }
    }

    #[test]
    fn files_of_others_are_nothing() {
        check("evil-1.0-py3-none-any.whl", "a", "none");
        check("a-1.0-py3-none-any.exe", "a", "none");
        check("a-1.0-py3-any.whl", "a", "none");
        check("../a-1.0-py3-none-any.whl", "a", "none");
        check("a-1.0-py3-none-any?.whl", "a", "none");
        check("my_tools-1.0.tar.gz", "my-tools", "source 1.0");
        check("my-tools-1.0-1.zip", "my-tools", "source 1.0-1");
        check("my-1.0.tar.gz", "my-tools", "none");
    }
}
