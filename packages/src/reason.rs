//! What is wrong with a specifier, in any language.

use sandbox_schemas::language::Language;

use crate::meant::Meant;

/// Longest specifier, in bytes. The longest names are of some 200; markers and extras take the rest.
pub(crate) const SPECIFIER_MAX_BYTES: usize = 512;

/// What is wrong with a specifier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the texts below say what each is")]
pub enum Reason {
    Empty,
    TooLong,
    Control { character: char },
    NotAscii { character: char },
    Option,
    Url,
    Repository,
    Path,
    DirectReference,
    Alias,
    Name { detail: &'static str },
    Version { version: String },
    Syntax { detail: String },
    Meant(Meant),
}

impl Reason {
    /// What stands after the specifier in a message.
    pub(crate) fn of(&self, language: Language) -> String {
        let named = match language {
            Language::Javascript => "name the package, such as lodash, lodash@4.17.21 or @types/node",
            _ => "name the package, such as requests, requests==2.32.3 or requests[socks]>=2.30",
        };
        match self {
            Reason::Empty => "is empty".into(),
            Reason::TooLong => format!("is longer than {SPECIFIER_MAX_BYTES} bytes"),
            Reason::Control { character } => format!("has a control character in it (U+{:04X})", u32::from(*character)),
            Reason::NotAscii { character } => format!(
                "has the character {character:?} (U+{:04X}) in it, which no package's name has, though it may look like \
                 one that has",
                u32::from(*character)
            ),
            Reason::Option => format!("is an option of an installer, not a package; {named}"),
            Reason::Url => format!("is a URL, and packages come from the registry alone; {named}"),
            Reason::Repository => format!("is a repository, and packages come from the registry alone; {named}"),
            Reason::Path => format!("is a file, and packages come from the registry alone; {named}"),
            Reason::DirectReference => {
                format!("says where to get the package, which is the registry's to say; {named}")
            }
            Reason::Alias => format!("gives a package another name or another source; {named}"),
            Reason::Name { detail } => format!("has no {language} package's name: {detail}"),
            Reason::Version { version } => {
                format!("asks for {version:?}, which is neither a version, a range of versions nor a tag")
            }
            Reason::Meant(meant) => meant.to_string(),
            Reason::Syntax { detail } => format!("is not a {language} package with versions: {detail}"),
        }
    }
}

/// Whether an installer would take the text for a file rather than for a name.
pub(crate) fn is_file_name(text: &str) -> bool {
    const ENDINGS: [&str; 7] = [".whl", ".tgz", ".gz", ".tar", ".zip", ".txt", ".toml"];
    let text = text.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| text.ends_with(ending))
}
