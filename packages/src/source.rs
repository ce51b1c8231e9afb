//! Where a package comes from: the registry of its language, or one that has names of its own. Those come from there and from
//! nowhere else, so that nobody can publish a package of the same name elsewhere and be preferred.

use sandbox_download::without_credentials;
use sandbox_schemas::language::Language;
use url::Url;

use crate::name::{InvalidName, normalise};

/// Which names: one, all that begin alike, or a scope of npm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    beginning: String,
    is_whole: bool,
}

impl Pattern {
    /// `name`, `beginning*`, or `@scope` for all that is in it.
    pub(crate) fn parse(language: Language, text: &str) -> Result<Pattern, InvalidName> {
        let is_scope = language == Language::Javascript && text.starts_with('@') && !text.contains('/');
        let beginning = if is_scope { Some(format!("{text}/")) } else { text.strip_suffix('*').map(str::to_owned) };
        let Some(beginning) = beginning else {
            return Ok(Pattern { beginning: normalise(language, text)?.into(), is_whole: true });
        };
        if beginning.is_empty() {
            return Err(InvalidName("it stands for every name"));
        }
        // What it begins is a name, of which any letter is a possible rest.
        let mut name = normalise(language, &format!("{beginning}x"))?.into_owned();
        name.pop();
        Ok(Pattern { beginning: name, is_whole: false })
    }

    /// Whether a normalised name is one of them.
    pub(crate) fn matches(&self, name: &str) -> bool {
        if self.is_whole { name == self.beginning } else { name.starts_with(&self.beginning) }
    }

    /// As it was written, but normalised.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.beginning, if self.is_whole { "" } else { "*" })
    }
}

/// A registry that has names of its own.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) language: Language,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) url: Url,
}

impl Source {
    pub(crate) fn has(&self, language: Language, name: &str) -> bool {
        self.language == language && self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

/// What is no source of packages.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A registry's URL is none.
    #[error("{url:?} is no URL of a registry: {reason}")]
    Url {
        /// What it is, without a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name is none.
    #[error("{name:?} is no {language} package's name: {reason}")]
    Name {
        /// What was given.
        name: String,
        /// Whose package it was to be.
        language: Language,
        /// What is wrong with it.
        reason: InvalidName,
    },
}

/// A registry's URL, which ends with `/` so that names come after it rather than in place of its last part.
pub(crate) fn base_url(text: &str) -> Result<Url, SourceError> {
    let wrong = |reason: String| SourceError::Url { url: without_credentials(text), reason };
    let mut url = Url::parse(text.trim()).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err(wrong("it begins with https:// or http://".into()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has no ? and no # in it".into()));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Language::{Javascript, Python};

    #[test]
    fn a_registry_is_a_url_that_names_are_put_after() {
        let url = |text| base_url(text).map(String::from).map_err(|error| error.to_string());
        assert_eq!(url("https://example.com/simple").as_deref(), Ok("https://example.com/simple/"));
        assert_eq!(url(" http://u:p@localhost:1/ ").as_deref(), Ok("http://u:p@localhost:1/"));
        for wrong in ["", "example.com", "ftp://example.com/", "file:///x", "https://example.com/?x"] {
            assert!(url(wrong).unwrap_err().contains("is no URL of a registry"), "{wrong}");
        }
        assert!(!url("ftp://u:secret@example.com/").unwrap_err().contains("secret"));
    }

    #[test]
    fn a_pattern_is_a_name_a_beginning_or_a_scope() {
        let matches = |language, text, name| Pattern::parse(language, text).unwrap().matches(name);
        assert!(matches(Python, "Torch", "torch") && !matches(Python, "torch", "torchvision"));
        assert!(matches(Python, "Acme_*", "acme-tools") && !matches(Python, "acme-*", "acme"));
        assert!(matches(Javascript, "@acme", "@acme/ui") && !matches(Javascript, "@acme", "@acmex/ui"));
        assert!(matches(Javascript, "@acme/ui", "@acme/ui") && !matches(Javascript, "@acme/ui", "@acme/uis"));
        assert!(matches(Javascript, "@acme/ui-*", "@acme/ui-core"));
        for (language, wrong) in [(Python, "*"), (Python, "a*b*"), (Python, ""), (Python, "@acme"), (Javascript, "@")] {
            assert!(Pattern::parse(language, wrong).is_err(), "{wrong}");
        }
    }
}
