//! Specifiers of Python packages: PEP 508 without direct references.

use std::str::FromStr;

use pep440_rs::{Operator, Version, VersionSpecifiers};
use pep508_rs::{Requirement, VersionOrUrl};
use sandbox_schemas::language::Language;
use version_ranges::Ranges;

use crate::name::normalise;
use crate::reason::{Reason, is_file_name};

pub(crate) fn read(text: &str) -> Result<Requirement, Reason> {
    // A marker may hold what is refused before it, in quotes.
    let package = text.split(';').next().unwrap_or(text).trim();
    if package.contains('@') {
        return Err(Reason::DirectReference);
    }
    if package.contains('/') || is_file_name(package) {
        return Err(Reason::Path);
    }
    let end = package.find(|c: char| "[(<>=!~ ".contains(c)).unwrap_or(package.len());
    normalise(Language::Python, &package[..end]).map_err(|error| Reason::Name { detail: error.0 })?;
    let mut requirement = Requirement::from_str(text).map_err(|error| {
        // The lines after the first draw arrows at it.
        Reason::Syntax { detail: error.to_string().lines().next().unwrap_or_default().to_owned() }
    })?;
    if matches!(requirement.version_or_url, Some(VersionOrUrl::Url(_))) {
        return Err(Reason::DirectReference);
    }
    requirement.extras.sort();
    requirement.extras.dedup();
    Ok(requirement)
}

/// The versions that will do, as far as they are bounded.
pub(crate) fn versions(requirement: &Requirement) -> Option<&VersionSpecifiers> {
    match requirement.version_or_url.as_ref()? {
        VersionOrUrl::VersionSpecifier(specifiers) => Some(specifiers),
        VersionOrUrl::Url(_) => None,
    }
}

pub(crate) fn allows(requirement: &Requirement, version: &str) -> bool {
    let allows = |version: Version| versions(requirement).is_none_or(|versions| versions.contains(&version));
    version.parse().is_ok_and(allows)
}

pub(crate) fn is_pinned(requirement: &Requirement) -> bool {
    let is_exact = |operator: &Operator| matches!(operator, Operator::Equal | Operator::ExactEqual);
    versions(requirement).is_some_and(|specifiers| specifiers.iter().any(|one| is_exact(one.operator())))
}

/// Whether no version can be both. Under different markers they may be meant for different machines.
pub(crate) fn contradict(one: &Requirement, other: &Requirement) -> bool {
    let range = |requirement| versions(requirement).map_or_else(Ranges::full, |some| Ranges::from(some.clone()));
    let both: Ranges<Version> = range(one).intersection(&range(other));
    one.marker == other.marker && both.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirement;

    #[track_caller]
    fn check(specifiers: &[&str], expected: Result<&[&str], &str>) {
        requirement::tests::check(Language::Python, specifiers, expected);
    }

    #[test]
    fn specifiers_are_normalised_sorted_and_each_once() {
        let specifiers = ["Requests == 2.32.3", "flask", "requests==2.32.3", " Foo_Bar[B,a,b] >=1, <2 "];
        check(&specifiers, Ok(&["flask", "foo-bar[a,b]>=1,<2", "requests==2.32.3"]));
        check(&["a (>=1)"], Ok(&["a>=1"]));
        check(&["a~=1.4.2", "b===1.0", "c!=1.*"], Ok(&["a~=1.4.2", "b===1.0", "c!=1.*"]));
    }

    #[test]
    fn markers_are_left_to_the_installer() {
        let marker = "tomli>=1; python_version < '3.11' and platform_release == '/@'";
        check(&[marker], Ok(&["tomli>=1 ; python_full_version < '3.11' and platform_release == '/@'"]));
        check(&["a==1; sys_platform == 'linux'", "a==2; sys_platform == 'win32'"], {
            Ok(&["a==1 ; sys_platform == 'linux'", "a==2 ; sys_platform == 'win32'"])
        });
    }

    #[test]
    fn what_pep_508_does_not_know_is_refused() {
        check(&["requests @ https://example.com/x.whl"], Err("is a URL"));
        check(&["requests @ x"], Err("says where to get the package"));
        check(&["requests==2.32.3 --hash=sha256:0"], Err("is not a python package with versions"));
        check(&["requests 2.32"], Err("is not a python package with versions"));
        check(&["requests==not.a.version"], Err("is not a python package with versions"));
        check(&["requests[evil"], Err("is not a python package with versions"));
        check(&["requests~=2"], Err("is not a python package with versions"));
        check(&["requests; evil == '1'"], Err("is not a python package with versions"));
        check(&["-requests"], Err("is an option"));
        check(&["requests-1.0-py3-none-any.whl"], Err("is a file"));
        check(&["$(touch x)"], Err("has no python package's name"));
    }

    #[test]
    fn what_cannot_both_be_is_a_contradiction() {
        check(&["requests==2.32.3", "Requests==2.31.0"], Err("requests==2.31.0 and requests==2.32.3 contradict"));
        check(&["a<2", "a>=2"], Err("a<2 and a>=2 contradict each other"));
        check(&["a<2", "a>=1", "a[x]"], Ok(&["a<2", "a>=1", "a[x]"]));
    }

    #[test]
    fn a_version_is_held_against_what_is_asked_for() {
        let allows = |text: &str, version: &str| super::allows(&read(text).unwrap(), version);
        assert!(allows("a", "1.0") && allows("a[x]>=1,<2", "1.5.post1") && allows("a==1.0", "1"));
        assert!(!allows("a>=1,<2", "2") && !allows("a==1.0", "1.0.1") && !allows("a", "one"));
    }

    #[test]
    fn pinned_is_what_has_one_version() {
        let is_pinned = |text: &str| super::is_pinned(&read(text).unwrap());
        assert!(is_pinned("a==1") && is_pinned("a===1") && is_pinned("a[b]==1;python_version>'3'"));
        assert!(!is_pinned("a") && !is_pinned("a>=1") && !is_pinned("a==1.*") && !is_pinned("a~=1.0"));
    }
}
