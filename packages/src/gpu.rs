//! What is made for graphics processors, which no VM has.

use std::sync::LazyLock;

/// Beginnings of names of libraries that only such builds use. `packages/catalogs/README.md` says more.
static LIBRARIES: LazyLock<Vec<&str>> =
    LazyLock::new(|| lines(include_str!("../catalogs/pypi-gpu-libraries.txt")).collect());

/// Projects whose builds on PyPI are such, and what has the same modules without.
static BUILDS: LazyLock<Vec<(&str, Option<&str>)>> = LazyLock::new(|| {
    let pair = |line: &'static str| line.split_once(' ').map_or((line, None), |(name, other)| (name, Some(other)));
    lines(include_str!("../catalogs/pypi-gpu-builds.txt")).map(pair).collect()
});

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty())
}

/// Whether a project of PyPI is a library that is of use to such builds alone: what can use one can do without.
pub(crate) fn is_library(name: &str) -> bool {
    LIBRARIES.iter().any(|beginning| name.starts_with(beginning))
}

/// Whether PyPI's builds of a project are for graphics processors, and so do not run, or are many times as large.
pub(crate) fn is_build(name: &str) -> bool {
    BUILDS.iter().any(|(build, _)| *build == name)
}

/// Why it may not come, and what to do instead.
pub(crate) fn reason(name: &str) -> String {
    const WHY: &str = "is made for graphics processors, which no VM has";
    match BUILDS.iter().find(|(build, _)| *build == name) {
        None => WHY.into(),
        Some((_, Some(other))) => format!("on PyPI {WHY}: {other} has the same modules without"),
        Some((_, None)) => format!(
            "on PyPI {WHY}, and takes gigabytes: whoever runs this server can name an index of builds for CPUs in the setting pypi_sources"
        ),
    }
}
