//! What a user asks for, read without trust. An installer gets the text that we write from what we understood, never the
//! text that came: what we do not understand reaches no command line.

use std::fmt;

use sandbox_schemas::language::Language;

use crate::reason::{Reason, SPECIFIER_MAX_BYTES};
use crate::{javascript, meant, python};

/// Most specifiers of one request. A project's own requirements are 10 or 20; what they pull in is not counted.
pub(crate) const SPECIFIERS_MAX: usize = 50;

/// What of a specifier a message shows, in bytes: enough to find it in the request.
const SHOWN_MAX_BYTES: usize = 80;

/// A package that is asked for, and which versions of it will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) specifier: Specifier,
}

/// Which versions will do, in the language's own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Specifier {
    /// A specifier after PEP 508, with extras and markers.
    Python(Box<pep508_rs::Requirement>),
    /// Versions of npm.
    Javascript(javascript::Wanted),
}

impl Requirement {
    fn read(language: Language, text: &str) -> Result<Requirement, Reason> {
        if language == Language::Javascript {
            let javascript::Specifier { name, text, wanted } = javascript::read(text)?;
            return Ok(Requirement { name, text, specifier: Specifier::Javascript(wanted) });
        }
        let requirement = python::read(text)?;
        let (name, text) = (requirement.name.to_string(), requirement.to_string());
        Ok(Requirement { name, text, specifier: Specifier::Python(Box::new(requirement)) })
    }

    /// Whether no version of a package can be both.
    fn contradicts(&self, other: &Requirement) -> bool {
        match (&self.specifier, &other.specifier) {
            (Specifier::Python(one), Specifier::Python(other)) => python::contradict(one, other),
            // npm installs one version for a name.
            (Specifier::Javascript(one), Specifier::Javascript(other)) => one != other,
            _ => false,
        }
    }

    /// The package's name, normalised.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What an installer is to be given, as one argument.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Which versions will do.
    pub fn specifier(&self) -> &Specifier {
        &self.specifier
    }

    /// Whether this version will do. What is no version will not, nor what is not known to.
    pub fn allows(&self, version: &str) -> bool {
        match &self.specifier {
            Specifier::Python(requirement) => python::allows(requirement, version),
            Specifier::Javascript(_) => false,
        }
    }

    /// Whether only one version will do.
    pub fn is_pinned(&self) -> bool {
        match &self.specifier {
            Specifier::Python(requirement) => python::is_pinned(requirement),
            Specifier::Javascript(wanted) => wanted.is_pinned(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads the specifiers of a request: validated, normalised, sorted, each once. Two requests for the same have the same.
pub fn parse(language: Language, specifiers: &[String]) -> Result<Vec<Requirement>, RequirementError> {
    if language == Language::Shell {
        return Err(RequirementError::Language { language });
    }
    match specifiers.len() {
        0 => return Err(RequirementError::None),
        count if count > SPECIFIERS_MAX => return Err(RequirementError::TooMany { count }),
        _ => {}
    }
    let mut requirements = Vec::with_capacity(specifiers.len());
    for specifier in specifiers {
        let requirement = look(specifier).and_then(|text| match meant::something_else(language, text) {
            Some(meant) => Err(Reason::Meant(meant)),
            None => Requirement::read(language, text),
        });
        let refused = |reason| RequirementError::Refused { specifier: Quoted::new(specifier), language, reason };
        requirements.push(requirement.map_err(refused)?);
    }
    requirements.sort_by(|one, other| (&one.name, &one.text).cmp(&(&other.name, &other.text)));
    requirements.dedup();
    for (index, one) in requirements.iter().enumerate() {
        let of_same_name = requirements[index + 1..].iter().take_while(|other| other.name == one.name);
        if let Some(other) = of_same_name.into_iter().find(|other| one.contradicts(other)) {
            return Err(RequirementError::Contradiction { one: one.text.clone(), other: other.text.clone() });
        }
    }
    Ok(requirements)
}

/// What is refused in every language. The text without the space around it.
fn look(specifier: &str) -> Result<&str, Reason> {
    if specifier.len() > SPECIFIER_MAX_BYTES {
        return Err(Reason::TooLong);
    }
    if let Some(character) = specifier.chars().find(|character| character.is_control()) {
        return Err(Reason::Control { character });
    }
    if let Some(character) = specifier.chars().find(|character| !character.is_ascii()) {
        return Err(Reason::NotAscii { character });
    }
    let specifier = specifier.trim();
    let is_one_of = |prefixes: &[&str]| prefixes.iter().any(|prefix| starts_with_ignoring_case(specifier, prefix));
    if specifier.is_empty() {
        Err(Reason::Empty)
    } else if specifier.starts_with('-') {
        Err(Reason::Option)
    } else if is_one_of(&["git+", "hg+", "svn+", "bzr+", "git:", "git@", "ssh:", "github:", "gitlab:", "bitbucket:"]) {
        Err(Reason::Repository)
    } else if specifier.contains("://") {
        Err(Reason::Url)
    } else if is_one_of(&[".", "/", "~", "file:", "link:"]) || specifier.contains('\\') {
        Err(Reason::Path)
    } else {
        Ok(specifier)
    }
}

pub(crate) fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Why a request cannot be taken. Nothing was asked of a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementError {
    /// Nothing was asked for.
    #[error("no package is named")]
    None,
    /// More than anybody needs.
    #[error("{count} packages are named, more than {SPECIFIERS_MAX}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// There is nothing to install for this language.
    #[error("packages are installed for python and javascript, not for {language}")]
    Language {
        /// Which one.
        language: Language,
    },
    /// One of them is not a package of a registry.
    #[error("{specifier} {reason}", reason = reason.of(*language))]
    Refused {
        /// Which one.
        specifier: Quoted,
        /// Whose package it was to be.
        language: Language,
        /// What is wrong with it.
        reason: Reason,
    },
    /// No version can be both.
    #[error("{one} and {other} contradict each other")]
    Contradiction {
        /// The one.
        one: String,
        /// The other.
        other: String,
    },
}

/// A specifier as a message shows it: quoted, so that it cannot pass for a part of the message, and not too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    fn new(specifier: &str) -> Quoted {
        let is_end = |end: &usize| specifier.is_char_boundary(*end);
        let end = (0..=SHOWN_MAX_BYTES.min(specifier.len())).rev().find(is_end).unwrap_or(0);
        let dots = if end < specifier.len() { "..." } else { "" };
        Quoted(format!("{:?}{dots}", &specifier[..end]))
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[track_caller]
    pub(crate) fn check(language: Language, specifiers: &[&str], expected: Result<&[&str], &str>) {
        let specifiers: Vec<_> = specifiers.iter().map(|text| text.to_string()).collect();
        match (parse(language, &specifiers), expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.iter().map(|found| found.text()).collect::<Vec<_>>(), expected);
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
            }
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_names_no_package_is_refused_in_both_languages() {
        for language in [Language::Python, Language::Javascript] {
            for (specifier, reason) in [
                ("", "is empty"),
                ("  ", "is empty"),
                ("--index-url", "is an option"),
                ("-e .", "is an option"),
                ("-r requirements.txt", "is an option"),
                ("https://example.com/a.whl", "is a URL"),
                ("git+https://github.com/psf/requests", "is a repository"),
                ("GIT+ssh://git@github.com/psf/requests", "is a repository"),
                ("git@github.com:a/b", "is a repository"),
                ("github:a/b", "is a repository"),
                (".", "is a file"),
                ("./here", "is a file"),
                ("../there", "is a file"),
                ("/etc/passwd", "is a file"),
                ("~/x", "is a file"),
                ("a\\b", "is a file"),
                ("file:///x", "is a URL"),
                ("file:x", "is a file"),
                ("requests-2.0.tar.gz", "is a file"),
                ("a/b/c", "is a file"),
                ("requests\n--index-url=x", "has a control character in it (U+000A)"),
                ("requests\0", "has a control character in it (U+0000)"),
                ("requests\u{85}", "has a control character in it (U+0085)"),
                ("r\u{435}quests", "has the character 'е' (U+0435) in it"),
                ("lodash\u{200b}", "(U+200B)"),
                ("lodash@npm:evil", "another"),
                (&"a".repeat(513), "is longer than 512 bytes"),
                ("a b", "is not a"),
                ("_", "name"),
                ("$(id)", "name"),
            ] {
                let expected = match reason {
                    // The languages say these in their own way.
                    "another" if language == Language::Python => "says where to get",
                    "is not a" | "name" => "package",
                    reason => reason,
                };
                check(language, &[specifier], Err(expected));
            }
        }
    }

    #[test]
    fn a_long_specifier_is_shown_in_part_and_quoted() {
        let text = parse(Language::Python, &[format!("--{}\"", "é".repeat(300))]).unwrap_err().to_string();
        assert!(text.starts_with("\"--éé") && text.contains("é\"... is longer"), "{text}");
    }

    #[test]
    fn number_is_bounded() {
        let names = |count| (0..count).map(|number| format!("a{number}")).collect::<Vec<_>>();
        assert_eq!(parse(Language::Python, &[]), Err(RequirementError::None));
        assert_eq!(parse(Language::Python, &names(50)).unwrap().len(), 50);
        assert_eq!(parse(Language::Python, &names(51)), Err(RequirementError::TooMany { count: 51 }));
        check(Language::Shell, &["curl"], Err("not for shell"));
    }
}
