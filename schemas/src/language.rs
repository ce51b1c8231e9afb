//! The languages that a VM runs. A new language is one row here, one runner in the guest and one recipe line.

use serde::{Deserialize, Serialize};

/// A language of `execute_code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Python 3.13.
    Python,
    /// JavaScript or TypeScript on Node.js (an LTS release), as a script or as a module.
    Javascript,
    /// Bash with the usual tools. `raw` is accepted as an alias.
    #[serde(alias = "raw")]
    Shell,
}

impl Language {
    /// Every language, in the order in which documents list them.
    pub const ALL: [Language; 3] = [Language::Python, Language::Javascript, Language::Shell];

    /// The name on the wire and in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Javascript => "javascript",
            Language::Shell => "shell",
        }
    }

    /// The language of a name or an alias, in upper or lower case. TypeScript is what the runner of JavaScript takes too.
    pub fn from_name(name: &str) -> Option<Language> {
        match name.to_ascii_lowercase().as_str() {
            "python" | "python3" | "py" => Some(Language::Python),
            "javascript" | "js" | "node" | "nodejs" | "typescript" | "ts" => Some(Language::Javascript),
            "shell" | "bash" | "sh" | "raw" => Some(Language::Shell),
            _ => None,
        }
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
