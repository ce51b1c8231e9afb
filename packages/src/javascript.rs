//! Specifiers of npm packages: a name, and after it a version, a range or a tag.

use nodejs_semver::{Range, Version};
use sandbox_schemas::language::Language;

use crate::name::normalise;
use crate::reason::{Reason, is_file_name};

/// Longest tag, in bytes; they are words such as `latest`.
const TAG_MAX_BYTES: usize = 64;

/// Which versions of an npm package will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever the registry calls the latest.
    Any,
    /// This one.
    Exactly(Version),
    /// One in this range.
    Within(Range),
    /// The one that the registry gives this name to.
    Tag(String),
}

impl Wanted {
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self, Wanted::Exactly(_))
    }
}

/// A package's name, and which versions of it will do.
pub(crate) struct Specifier {
    pub(crate) name: String,
    /// Both, as npm is to be told.
    pub(crate) text: String,
    pub(crate) wanted: Wanted,
}

pub(crate) fn read(text: &str) -> Result<Specifier, Reason> {
    // The first character may be the @ of a scope.
    let (name, versions) = match text.get(1..).and_then(|rest| rest.split_once('@')) {
        Some((rest, versions)) => (&text[..rest.len() + 1], Some(versions.trim())),
        None => (text, None),
    };
    let name = name.trim();
    if is_file_name(name) || (name.contains('/') && !name.starts_with('@')) {
        return Err(Reason::Path);
    }
    if name.contains(':') {
        return Err(Reason::Alias);
    }
    normalise(Language::Javascript, name).map_err(|error| Reason::Name { detail: error.0 })?;
    let Some(versions) = versions else {
        return Ok(Specifier { name: name.to_owned(), text: name.to_owned(), wanted: Wanted::Any });
    };
    // npm itself decides by such characters that something is a URL, an alias, a path or a repository.
    if versions.contains(':') {
        return Err(Reason::Alias);
    }
    if versions.contains('/') || versions.starts_with('.') || is_file_name(versions) {
        return Err(Reason::Path);
    }
    let wanted = wanted(versions).ok_or_else(|| Reason::Version { version: versions.to_owned() })?;
    let shown = match &wanted {
        Wanted::Any => return read(name),
        Wanted::Exactly(version) => version.to_string(),
        // As it came, since a reader knows `^4.17` better than the bounds that it means.
        Wanted::Within(_) | Wanted::Tag(_) => versions.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    Ok(Specifier { text: format!("{name}@{shown}"), name: name.to_owned(), wanted })
}

fn wanted(text: &str) -> Option<Wanted> {
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b".*^~<>=|+-_ ".contains(&c);
    if text.is_empty() || !text.bytes().all(is_allowed) {
        return None;
    }
    if matches!(text, "*" | "latest") {
        return Some(Wanted::Any);
    }
    if let Ok(version) = Version::parse(text) {
        return Some(Wanted::Exactly(version));
    }
    if let Ok(range) = Range::parse(text) {
        return Some(Wanted::Within(range));
    }
    let is_tag = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let is_tag =
        text.len() <= TAG_MAX_BYTES && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(is_tag);
    is_tag.then(|| Wanted::Tag(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirement;

    #[track_caller]
    fn check(specifiers: &[&str], expected: Result<&[&str], &str>) {
        requirement::tests::check(Language::Javascript, specifiers, expected);
    }

    #[test]
    fn specifiers_are_normalised_sorted_and_each_once() {
        check(&["moment@v2.30.1", "lodash@latest", "lodash"], Ok(&["lodash", "moment@2.30.1"]));
        check(&["@types/node@^22", "@types/node@ ^22 "], Ok(&["@types/node@^22"]));
        check(&["a@>=1  <2 || ~3.1"], Ok(&["a@>=1 <2 || ~3.1"]));
        check(&["a@1.x", "b@next", "c@1 - 2", "d@1.2.3-beta.1", "e@v3-legacy"], {
            Ok(&["a@1.x", "b@next", "c@1 - 2", "d@1.2.3-beta.1", "e@v3-legacy"])
        });
    }

    #[test]
    fn what_is_not_of_the_registry_is_refused() {
        for alias in ["a@npm:b@1", "a@workspace:*", "npm:b", "a@catalog:x", "a@file:x"] {
            check(&[alias], Err("another name or another source"));
        }
        for path in ["user/repository", "a@user/repository", "a@./x", "a@../x", "a@x.tgz", "x.tgz", "a@x.tar"] {
            check(&[path], Err("is a file"));
        }
        check(&["a@https://example.com/x.tgz"], Err("is a URL"));
        check(&["a@git+ssh://x/y"], Err("is a URL"));
        check(&["a@github:x/y"], Err("another name or another source"));
        for (version, expected) in
            [("a@", "asks for \"\""), ("a@1@2", "asks for \"1@2\""), ("a@x#y", "asks for \"x#y\"")]
        {
            check(&[version], Err(expected));
        }
        check(&["@types"], Err("has no javascript package's name: a scoped one is written as @scope/name"));
        check(&["$(id)"], Err("has no javascript package's name"));
    }

    #[test]
    fn npm_has_one_version_for_a_name() {
        check(&["a@1.0.0", "a@2.0.0"], Err("a@1.0.0 and a@2.0.0 contradict each other"));
        check(&["a@^1", "a@next"], Err("contradict"));
    }
}
