//! What is said of an input that is not as it should be.

/// A field of an input that does not satisfy its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidInput {
    /// Name of the field, as in the schema.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl InvalidInput {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        InvalidInput { field: field.into(), message: message.into() }
    }
}

pub(crate) fn check_range(field: &str, value: u64, min: u64, max: u64) -> Result<(), InvalidInput> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidInput::new(field, format!("is {value}; must be between {min} and {max}")))
}

pub(crate) fn too_large(field: &str, bytes: usize, max: usize) -> InvalidInput {
    InvalidInput::new(field, format!("is {bytes} bytes; at most {max} bytes are allowed"))
}
