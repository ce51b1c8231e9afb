//! The agent's one error: what was attempted, and what the kernel said.

use std::fmt;

/// A failed step.
#[derive(Debug)]
pub(crate) struct Error {
    step: String,
    cause: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(step: impl Into<String>, cause: impl fmt::Display) -> Self {
        Error { step: step.into(), cause: cause.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

/// Names the step that an error belongs to.
pub(crate) trait Context<T> {
    fn context(self, step: impl Into<String>) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, step: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Error::new(step, cause))
    }
}
