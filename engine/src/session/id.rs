//! Names that nobody can guess: who has one was given it.

use std::fmt;

use crate::error::VmError;

/// 128 random bits, behind a letter that says of what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Id(String);

impl Id {
    pub(crate) fn new(of: &str) -> Result<Id, VmError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| VmError::Spawn(format!("reading random bytes: {error}")))?;
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Id(format!("{of}-{digits}")))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
