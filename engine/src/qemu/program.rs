//! What kind of program QEMU is, by its first bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What a QEMU needs to be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// Itself alone: the QEMU that `image build` builds.
    Static,
    /// A loader, and libraries.
    Dynamic {
        /// The loader.
        loader: PathBuf,
    },
    /// A script, or whatever else is not executed as it is: what it starts, and reads, is its own affair.
    Script,
}

/// As much of the file as is looked at: the headers lie at its beginning.
const HEAD_BYTES: usize = 4096;

/// What ELF calls a segment that names the loader.
const PT_INTERP: u32 = 3;

impl Program {
    /// What an open file is.
    pub(crate) fn of(file: &File) -> std::io::Result<Program> {
        let mut head = [0; HEAD_BYTES];
        let mut filled = 0;
        while filled < head.len() {
            match file.read_at(&mut head[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(parse(&head[..filled]).unwrap_or(Program::Script))
    }
}

/// `None` for what is not a 64-bit ELF program with its headers at the beginning.
fn parse(head: &[u8]) -> Option<Program> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let at = |offset: u64| usize::try_from(offset).ok();
    let u16_at = |offset: usize| Some(u16::from_le_bytes(head.get(offset..offset.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |offset: usize| Some(u32::from_le_bytes(head.get(offset..offset.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |offset: usize| Some(u64::from_le_bytes(head.get(offset..offset.checked_add(8)?)?.try_into().ok()?));
    let (segments, size, count) = (at(u64_at(32)?)?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..count {
        let segment = segments.checked_add(index.checked_mul(size)?)?;
        if u32_at(segment)? == PT_INTERP {
            let (begin, bytes) = (at(u64_at(segment.checked_add(8)?)?)?, at(u64_at(segment.checked_add(32)?)?)?);
            let name = head.get(begin..begin.checked_add(bytes)?)?;
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            return Some(Program::Dynamic { loader: PathBuf::from(OsStr::from_bytes(name)) });
        }
    }
    Some(Program::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Program {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Program::of(&File::open(file.path()).unwrap()).unwrap()
    }

    #[test]
    fn a_loader_is_found_where_there_is_one() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let Program::Dynamic { loader } = of(&own) else { panic!("a test is linked dynamically") };
        assert!(loader.starts_with("/lib64") && loader.exists(), "{}", loader.display());
        // The same without its loader: its segment is of a kind that means nothing.
        let mut changed = own[..HEAD_BYTES].to_vec();
        let segments = u64::from_le_bytes(changed[32..40].try_into().unwrap()) as usize;
        let count = usize::from(u16::from_le_bytes(changed[56..58].try_into().unwrap()));
        for segment in (0..count).map(|index| segments + index * 56) {
            if changed[segment..segment + 4] == PT_INTERP.to_le_bytes() {
                changed[segment..segment + 4].copy_from_slice(&[0; 4]);
            }
        }
        assert_eq!(of(&changed), Program::Static);
    }

    #[test]
    fn what_is_no_program_is_a_script() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let mut far = own[..HEAD_BYTES].to_vec();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut narrow = own[..HEAD_BYTES].to_vec();
        narrow[4] = 1;
        for bytes in [&b"#!/bin/sh\nexec qemu\n"[..], b"", b"\x7fELF", &own[..60], &far, &narrow] {
            assert_eq!(of(bytes), Program::Script);
        }
    }
}
