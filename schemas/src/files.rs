//! Files of a session: the inputs and results of `write_file`, `read_file` and `list_files`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::invalid::{InvalidInput, check_range, too_large};
use crate::lenient;
use crate::limits;

/// Where files can be that tools reach: what is the user's.
pub const PLACES: [&str; 4] = ["/workspace", "/tmp", "/var/tmp", "/home/user"];

/// Arguments of the tool `write_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WriteInput {
    /// What `open_session` has returned.
    pub session_id: String,

    /// Where, from `/workspace` on, or absolute. Folders are made. Example: `data/in.csv`
    pub path: String,

    /// What it shall hold, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub text: Option<String>,

    /// Instead of `text`: bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub base64: Option<String>,

    /// Instead of `text`: a file of the user's, in a folder that the server shares.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub host_path: Option<String>,

    /// Whether it may be executed.
    #[serde(default)]
    pub executable: bool,
}

impl WriteInput {
    /// Whose it is, and the file.
    pub fn into_parts(self) -> (String, FileInput) {
        let WriteInput { session_id, path, text, base64, host_path, executable } = self;
        (session_id, FileInput { path, text, base64, host_path, executable })
    }
}

/// As for `write_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "what is said of them is read by models, and said of `WriteInput`'s")]
pub struct FileInput {
    pub path: String,

    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub text: Option<String>,

    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub base64: Option<String>,

    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub host_path: Option<String>,

    #[serde(default, deserialize_with = "lenient::flag")]
    pub executable: bool,
}

impl FileInput {
    /// Checks what the types do not say.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_path(&self.path)?;
        if self.path.ends_with('/') {
            return Err(InvalidInput::new("path", "ends with `/`; a file has a name"));
        }
        // A model that may leave out nothing sends an empty text beside the one that it means.
        let others = usize::from(self.base64.is_some()) + usize::from(self.host_path.is_some());
        let has_text = self.text.as_ref().is_some_and(|text| others == 0 || !text.is_empty());
        if others + usize::from(has_text) != 1 {
            return Err(InvalidInput::new("text", "give one of text, base64 and host_path"));
        }
        let bytes = self.inline_bytes();
        if bytes > limits::FILE_INLINE_MAX_BYTES {
            let field = if has_text { "text" } else { "base64" };
            return Err(too_large(field, bytes, limits::FILE_INLINE_MAX_BYTES));
        }
        Ok(())
    }

    /// Bytes that came with the message itself.
    pub fn inline_bytes(&self) -> usize {
        let text = self.text.as_ref().map_or(0, String::len);
        text.max(self.base64.as_ref().map_or(0, |base64| base64.len() / 4 * 3))
    }
}

/// Checks the files that a program shall find: each, and all together.
pub(crate) fn check_files(files: &[FileInput]) -> Result<(), InvalidInput> {
    if files.len() > limits::FILES_MAX {
        return Err(InvalidInput::new(
            "files",
            format!("are {}; at most {} are taken", files.len(), limits::FILES_MAX),
        ));
    }
    for (index, file) in files.iter().enumerate() {
        file.validate().map_err(|error| InvalidInput { field: format!("files[{index}].{}", error.field), ..error })?;
    }
    let bytes = files.iter().map(FileInput::inline_bytes).sum();
    match bytes > limits::FILE_INLINE_MAX_BYTES {
        true => Err(too_large("files", bytes, limits::FILE_INLINE_MAX_BYTES)),
        false => Ok(()),
    }
}

/// Checks patterns of files that are wanted. Whether they are patterns is for who knows their language.
pub(crate) fn check_outputs(outputs: &[String]) -> Result<(), InvalidInput> {
    if outputs.len() > limits::FILES_MAX {
        let message = format!("are {}; at most {} are taken", outputs.len(), limits::FILES_MAX);
        return Err(InvalidInput::new("outputs", message));
    }
    outputs.iter().try_for_each(|pattern| {
        check_path(pattern).map_err(|error| InvalidInput {
            field: "outputs".into(),
            message: format!("{pattern:.80?} {}", error.message),
        })
    })
}

/// Result of the tool `write_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct WriteOutcome {
    /// Size of the file, in bytes.
    pub size_bytes: u64,
}

/// Arguments of the tool `read_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ReadInput {
    /// What `open_session` has returned.
    pub session_id: String,

    /// Which, from `/workspace` on, or absolute.
    pub path: String,

    /// The byte to begin with, 0 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(feature = "json-schema", schemars(with = "u64"))]
    pub offset: Option<u64>,

    /// Bytes at most, 100000 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(feature = "json-schema", schemars(with = "u64", range(min = 1, max = limits::FILE_MAX_BYTES)))]
    pub length: Option<u64>,

    /// Where to put it instead of returning it: a file of the user's, in a folder that the server shares.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub host_path: Option<String>,
}

impl ReadInput {
    /// Checks what the types do not say.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_path(&self.path)?;
        let most = if self.host_path.is_some() { limits::FILE_MAX_BYTES } else { limits::FILE_INLINE_MAX_BYTES as u64 };
        check_range("length", self.length(), 1, most)
    }

    /// How many bytes are wanted at most.
    pub fn length(&self) -> u64 {
        self.length.unwrap_or(limits::FILE_READ_DEFAULT_BYTES)
    }
}

/// Result of the tool `read_file`. Where it was put on the host, nothing of it is here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ReadOutcome {
    /// Size of the whole file, in bytes.
    pub size_bytes: u64,
    /// The byte behind the last that was read: `offset` for what comes next.
    pub next: u64,
    /// What was read.
    #[serde(flatten)]
    pub contents: Contents,
}

/// What is in a file, as what it is: text, or bytes in base64, which may be a picture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Contents {
    /// What is in it, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub text: Option<String>,
    /// What is in it, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub base64: Option<String>,
    /// Which kind of picture it is, where it is one as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub mime_type: Option<String>,
}

/// A file that a program has left and that `outputs` named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct OutputFile {
    /// Its path, as the pattern began: from `/workspace` on, or absolute.
    pub path: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What is in it.
    #[serde(flatten)]
    pub contents: Contents,
    /// Why nothing of it is here, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub omitted: Option<String>,
}

/// Arguments of the tool `list_files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListInput {
    /// What `open_session` has returned.
    pub session_id: String,

    /// Which folder, `/workspace` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub path: Option<String>,

    /// Whether to tell what is in folders within it as well.
    #[serde(default)]
    pub recursive: bool,
}

impl ListInput {
    /// Checks what the types do not say.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        self.path.as_deref().map_or(Ok(()), check_path)
    }
}

/// Result of the tool `list_files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ListOutcome {
    /// What is there, by name within each folder.
    pub files: Vec<ListedFile>,
    /// Whether there is more than the 1,000 that are told.
    pub truncated: bool,
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ListedFile {
    /// Its path from the folder on.
    pub path: String,
    /// `file`, `folder`, `link` or `other`.
    pub kind: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
}

/// A path that a file can have, as far as that can be told from here.
fn check_path(path: &str) -> Result<(), InvalidInput> {
    if path.is_empty() {
        return Err(InvalidInput::new("path", "is empty"));
    }
    if path.len() > limits::PATH_MAX_BYTES {
        return Err(too_large("path", path.len(), limits::PATH_MAX_BYTES));
    }
    if path.contains('\0') {
        return Err(InvalidInput::new("path", "has a NUL byte"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(InvalidInput::new("path", "has `..`; give it without"));
    }
    if path.starts_with('/') && !PLACES.iter().any(|place| Path::new(path).starts_with(place)) {
        return Err(InvalidInput::new("path", format!("is outside {}", PLACES.join(", "))));
    }
    Ok(())
}
