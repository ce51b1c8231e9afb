//! Names by which programs import something, where packages are asked for: often no project's, or another one's than is meant.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::LazyLock;

use sandbox_schemas::language::Language;

use crate::allowlist;
use crate::name::normalise;

/// Python's modules whose project has another name: a module and its project a line.
static MODULES: LazyLock<HashMap<String, &str>> = LazyLock::new(|| {
    let lines = include_str!("../catalogs/python-modules.txt").lines();
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(module, project)| (module.to_ascii_lowercase(), project))
        .collect()
});

/// What comes with the interpreters.
static BUILT_INTO_PYTHON: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("../catalogs/python-builtin.txt").lines().collect());
static BUILT_INTO_NODE: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("../catalogs/node-builtin.txt").lines().collect());

/// What is likely to be meant where the project of that name is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    what: What,
    /// How to say that the project is meant, if there is one.
    versions: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    BuiltInto(&'static str),
    ModuleOf(String),
}

impl fmt::Display for Meant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::BuiltInto(interpreter) => write!(f, "is built into {interpreter}: there is nothing to install")?,
            What::ModuleOf(project) => write!(f, "is a module of {project}: name that")?,
        }
        match self.versions {
            Some(any) => write!(f, "; if the project of this name is meant, add a version, such as {any}"),
            None => Ok(()),
        }
    }
}

/// What else than the project of its name a specifier is likely to mean. One that says a version means the project.
pub(crate) fn something_else(language: Language, specifier: &str) -> Option<Meant> {
    match language {
        Language::Python => python(specifier),
        Language::Javascript => javascript(specifier),
        Language::Shell => None,
    }
}

/// The project that has a module, where that is known: of its name, or another.
pub fn project_of(language: Language, module: &str) -> Option<String> {
    if language == Language::Python
        && let Some(project) = MODULES.get(&module.to_ascii_lowercase())
    {
        return Some((*project).to_owned());
    }
    let name = normalise(language, module).ok()?;
    allowlist::is_known(language, &name).then(|| name.to_string())
}

fn python(specifier: &str) -> Option<Meant> {
    let name = normalise(Language::Python, specifier).ok()?;
    let is_project = allowlist::is_known(Language::Python, &name);
    let meant = |what| Some(Meant { what, versions: is_project.then_some(">=0") });
    let top = specifier.split('.').next()?;
    if BUILT_INTO_PYTHON.contains(top) && (top == specifier || !is_project) {
        return meant(What::BuiltInto("Python"));
    }
    if let Some(found) = MODULES.get(&specifier.to_ascii_lowercase()) {
        return meant(What::ModuleOf((*found).into()));
    }
    if top == specifier || is_project {
        return None;
    }
    let of_top = MODULES.get(&top.to_ascii_lowercase()).map(|found| (*found).to_owned());
    let top = normalise(Language::Python, top).ok()?;
    let known = || allowlist::is_known(Language::Python, &top).then(|| top.to_string());
    meant(What::ModuleOf(of_top.or_else(known)?))
}

fn javascript(specifier: &str) -> Option<Meant> {
    let bare = specifier.strip_prefix("node:").unwrap_or(specifier);
    let parts: Vec<&str> = bare.split('/').collect();
    let is_project = bare == specifier && allowlist::is_known(Language::Javascript, bare);
    if BUILT_INTO_NODE.contains(parts[0]) {
        return Some(Meant { what: What::BuiltInto("Node.js"), versions: is_project.then_some("@*") });
    }
    // A path within a package; a scope is a part of the name.
    let length = if bare.starts_with('@') { 2 } else { 1 };
    let project = parts.get(..length)?.join("/");
    let is_within = parts.len() > length && allowlist::is_known(Language::Javascript, &project);
    is_within.then_some(Meant { what: What::ModuleOf(project), versions: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Language::{Javascript, Python};

    #[track_caller]
    fn check(language: Language, specifier: &str, expected: &str) {
        let reason = something_else(language, specifier).map(|meant| meant.to_string()).unwrap_or_default();
        assert_eq!(reason, expected, "{specifier}");
    }

    #[test]
    fn modules_are_told_their_project() {
        check(Python, "cv2", "is a module of opencv-python-headless: name that");
        check(Python, "PIL", "is a module of pillow: name that");
        check(Python, "PIL.Image", "is a module of pillow: name that");
        check(Python, "matplotlib.pyplot", "is a module of matplotlib: name that");
        check(
            Python,
            "Crypto",
            "is a module of pycryptodome: name that; if the project of this name is meant, add a version, such as >=0",
        );
        check(Python, "os", "is built into Python: there is nothing to install");
        check(Python, "os.path", "is built into Python: there is nothing to install");
        for fine in
            ["numpy", "jwt>=0", "pyjwt", "ruamel.yaml", "discord.py", "zope.interface", "Flask", "requests[socks]"]
        {
            check(Python, fine, "");
        }
    }

    #[test]
    fn what_is_within_a_package_or_node_is_told() {
        check(Javascript, "lodash/fp", "is a module of lodash: name that");
        check(Javascript, "@babel/core/lib", "is a module of @babel/core: name that");
        check(Javascript, "node:fs", "is built into Node.js: there is nothing to install");
        check(Javascript, "fs/promises", "is built into Node.js: there is nothing to install");
        check(
            Javascript,
            "events",
            "is built into Node.js: there is nothing to install; if the project of this name is meant, add a version, such as @*",
        );
        for fine in ["lodash", "@types/node", "events@*", "user/repository"] {
            check(Javascript, fine, "");
        }
    }

    #[test]
    fn every_module_is_another_than_its_project_which_is_known() {
        for (module, project) in MODULES.iter() {
            assert!(allowlist::is_known(Python, project), "{project}");
            assert_ne!(normalise(Python, module).unwrap(), *project);
        }
        assert!(MODULES.len() > 50 && BUILT_INTO_PYTHON.len() > 150 && BUILT_INTO_NODE.contains("fs"));
    }
}
