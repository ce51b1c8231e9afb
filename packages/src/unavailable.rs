//! Packages that may come, and of which there is nothing to install.

use std::fmt;
use std::str::FromStr;

use pep440_rs::Version;

use crate::pypi::{Page, Unusable};
use crate::python;
use crate::requirement::{Requirement, Specifier};

/// A package of which nothing can be installed, though its registry knows it or though it may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Which one, with the versions that were asked for.
    pub package: String,
    /// Why.
    pub reason: UnavailableReason,
}

/// Why nothing of a package can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnavailableReason {
    /// The registry has no such package.
    Unknown,
    /// There is only source, which would have to be built.
    SourceOnly,
    /// There are wheels, but for other machines or other Pythons.
    OtherMachines,
    /// There are wheels, and the index does not say what they hash to.
    Unverifiable,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let package = &self.package;
        match self.reason {
            UnavailableReason::Unknown => write!(f, "the registry has no package {package}"),
            UnavailableReason::SourceOnly => {
                write!(f, "{package} has no wheel, only source that would have to be built")
            }
            UnavailableReason::Unverifiable => {
                write!(
                    f,
                    "{package} has wheels, but its index gives no SHA-256 of them, and what cannot be verified is not installed"
                )
            }
            UnavailableReason::OtherMachines => {
                write!(f, "{package} has wheels, but none for this Python on x86-64 Linux")
            }
        }
    }
}

impl From<Unusable> for UnavailableReason {
    fn from(why: Unusable) -> UnavailableReason {
        match why {
            Unusable::SourceOnly => UnavailableReason::SourceOnly,
            Unusable::OtherMachines => UnavailableReason::OtherMachines,
            Unusable::Unverifiable => UnavailableReason::Unverifiable,
        }
    }
}

/// Why a requirement cannot be met by what can be installed, though what cannot would do.
pub(crate) fn unusable(page: &Page, requirement: &Requirement) -> Option<Unavailable> {
    let Specifier::Python(specifier) = &requirement.specifier else { return None };
    let versions = python::versions(specifier);
    let will_do = |version: &str| {
        let version = Version::from_str(version).ok();
        version.is_some_and(|version| versions.is_none_or(|versions| versions.contains(&version)))
    };
    if page.wheels.iter().any(|wheel| will_do(&wheel.version)) {
        return None;
    }
    let why = page.unusable.iter().filter(|(version, _)| will_do(version)).map(|(_, why)| *why).max()?;
    let shown = versions.map(ToString::to_string).unwrap_or_default();
    Some(Unavailable { package: format!("{}{shown}", page.project), reason: why.into() })
}
