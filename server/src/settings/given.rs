//! What somebody has written for a setting, and where.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::settings::value::Value;

/// The variable that names the file.
pub(super) const CONFIG_VARIABLE: &str = "SANDBOX_MCP_CONFIG";

/// Who has set a setting.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Flag(String),
    Variable(String),
    File { path: Arc<Path>, line: usize },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => formatter.write_str(flag),
            Origin::Variable(name) => write!(formatter, "the environment variable {name}"),
            Origin::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Origin::Default => formatter.write_str("default"),
        }
    }
}

/// A value that somebody has written for a setting.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) key: &'static str,
    /// What is meant, and what it looks like where it stands.
    pub(crate) text: OsString,
    pub(crate) written: String,
    /// What TOML takes it for; elsewhere all is text.
    pub(crate) toml_type: Option<&'static str>,
    pub(crate) origin: Origin,
}

impl Given {
    /// A value from where all is text.
    pub(crate) fn text(key: &'static str, text: OsString, origin: Origin) -> Given {
        Given { key, written: text.to_string_lossy().into_owned(), text, toml_type: None, origin }
    }

    /// What is meant, if it is a value of that type.
    pub(crate) fn parse<T: Value>(&self) -> Result<T, SettingError> {
        let folder = match &self.origin {
            Origin::File { path, .. } => path.parent(),
            Origin::Flag(_) | Origin::Variable(_) | Origin::Default => None,
        };
        let has_type = self.toml_type.is_none_or(|toml_type| toml_type == T::TOML_TYPE);
        let value = if has_type { T::parse(&self.text, folder.unwrap_or(Path::new(""))) } else { None };
        value.ok_or_else(|| SettingError::NotAllowed {
            key: self.key,
            origin: self.origin.clone(),
            written: self.written.clone(),
            allowed: T::allowed(),
        })
    }
}

/// Why the settings cannot be had. Each names its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("{origin}: {key} is `{written}`, and must be {allowed}")]
    NotAllowed { key: &'static str, origin: Origin, written: String, allowed: String },
    #[error("{origin}: there is no setting `{key}`, but {known}")]
    Unknown { key: String, origin: Origin, known: String },
    #[error("{origin}: is not TOML: {reason}")]
    Syntax { origin: Origin, reason: String },
    #[error("{path}: the settings cannot be read: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
}
