//! Names that nobody can guess: who has one was given it.

use std::{fmt, io};

/// 128 random bits, behind a letter that says of what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(String);

impl Id {
    /// A new one.
    pub fn new(of: &str) -> io::Result<Id> {
        let mut random = [0; 16];
        fill(&mut random)?;
        Ok(Id(format!("{of}-{}", digits(&random))))
    }
}

/// Fills in random bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(format!("reading random bytes: {error}")))
}

/// Bytes as digits to the base of 16.
pub(crate) fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
