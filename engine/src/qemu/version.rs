//! QEMU's version, as far as it matters: some things came with one.

use std::fmt;

/// As `7.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.strip_prefix("QEMU emulator version ")?.split([' ', '\n']).next()?;
    let mut parts = numbers.split('.').map(str::parse);
    Some(Version { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_distributions_print() {
        let read = |text| parse_version(text).map(|version| version.to_string());
        assert_eq!(read("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)").as_deref(), Some("7.2"));
        assert_eq!(read("QEMU emulator version 10.0.2").as_deref(), Some("10.0"));
        for text in ["", "QEMU emulator version", "QEMU emulator version x.y", "hello"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(Version { major: 10, minor: 0 } > Version { major: 8, minor: 2 });
    }
}
