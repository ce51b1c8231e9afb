//! What a wheel says of itself, and so what it pulls in.

use std::fs::File;
use std::io::Read;

use bytes::Bytes;
use pep508_rs::Requirement;
use sandbox_schemas::language::Language;
use std::str::FromStr;
use zip::ZipArchive;

use crate::name::normalise;
use crate::pypi::wheel::WheelName;

/// Largest metadata, in bytes. It holds the project's whole description; the largest seen have some 300 KB.
const METADATA_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// A project that another one pulls in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Only with an extra.
    pub(crate) is_optional: bool,
}

/// Takes the metadata out of a wheel that is called `file`.
pub(crate) fn extract(wheel: File, file: &str) -> Result<Bytes, String> {
    let name = WheelName::parse(file).ok_or("it is not called as wheels are")?;
    let mut archive = ZipArchive::new(wheel).map_err(|error| error.to_string())?;
    let is_same = |one: &str, other: &str| {
        let [one, other] = [one, other].map(|name| normalise(Language::Python, name));
        one.is_ok() && one == other
    };
    let is_metadata = |path: &str| {
        let folder = path.strip_suffix(".dist-info/METADATA")?;
        let (distribution, _) = folder.split_once('-').filter(|_| !folder.contains('/'))?;
        is_same(distribution, name.distribution).then_some(())
    };
    let path = archive.file_names().flatten().find(|path| is_metadata(path).is_some()).map(|path| path.into_owned());
    let path = path.ok_or("it has no metadata in it")?;
    let entry = archive.by_name(&path).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    entry.take(METADATA_MAX_BYTES + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > METADATA_MAX_BYTES {
        return Err("its metadata is larger than 8 MiB".into());
    }
    Ok(text.into())
}

/// What the metadata says is needed. What cannot be read is left to the installer.
pub(crate) fn dependencies(metadata: &[u8]) -> Vec<Dependency> {
    let text = String::from_utf8_lossy(metadata);
    text.lines().take_while(|line| !line.is_empty()).filter_map(dependency).collect()
}

/// The metadata without what is always needed and shall not be known of.
pub(crate) fn without(metadata: &Bytes, mut is_left_out: impl FnMut(&str) -> bool) -> Bytes {
    let mut left_out = |line: &[u8]| {
        let dependency = std::str::from_utf8(line).ok().and_then(|line| dependency(line.trim_end()));
        dependency.is_some_and(|found| !found.is_optional && is_left_out(&found.name))
    };
    let mut kept = Vec::with_capacity(metadata.len());
    let mut rest = &metadata[..];
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1) {
        let (line, after) = rest.split_at(end);
        if line.trim_ascii().is_empty() {
            break;
        }
        if !left_out(line) {
            kept.extend_from_slice(line);
        }
        rest = after;
    }
    kept.extend_from_slice(rest);
    kept.into()
}

/// The dependency that a line of the header is about.
fn dependency(line: &str) -> Option<Dependency> {
    let (key, value) = line.split_once(':')?;
    if !key.eq_ignore_ascii_case("requires-dist") {
        return None;
    }
    let requirement = Requirement::<pep508_rs::VerbatimUrl>::from_str(value.trim()).ok()?;
    let is_optional = value.split_once(';').is_some_and(|(_, marker)| marker.contains("extra"));
    Some(Dependency { name: requirement.name.to_string(), is_optional })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn wheel(entries: &[(&str, &str)]) -> File {
        let mut writer = ZipWriter::new(tempfile::tempfile().unwrap());
        for (path, text) in entries {
            writer.start_file(*path, SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        let mut file = writer.finish().unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn metadata_is_that_of_the_wheel_itself() {
        let entries = [
            ("my_tools/vendor/x-1.dist-info/METADATA", "vendored"),
            ("x-1.dist-info/METADATA", "another's"),
            ("My.Tools-1.0.dist-info/METADATA", "Name: my-tools\n"),
        ];
        assert_eq!(extract(wheel(&entries), "my_tools-1.0-py3-none-any.whl").unwrap(), "Name: my-tools\n");
        let error = extract(wheel(&entries[..2]), "my_tools-1.0-py3-none-any.whl").unwrap_err();
        assert_eq!(error, "it has no metadata in it");
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(b"no archive").unwrap();
        assert!(extract(text, "my_tools-1.0-py3-none-any.whl").is_err());
    }

    #[test]
    fn what_is_needed_is_read_from_the_header() {
        let text = "Metadata-Version: 2.1\nName: a\nRequires-Dist: Click_X (>=8)\nrequires-dist: b; extra == 'x'\n\
                    Requires-Dist: c>=1; python_version < '3.9'\nRequires-Dist: ???\n\nRequires-Dist: described\n";
        let found = dependencies(text.as_bytes());
        let found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.is_optional)).collect();
        assert_eq!(found, [("click-x", false), ("b", true), ("c", false)]);
    }

    #[test]
    fn what_is_left_out_is_a_line_of_the_header() {
        let text = "Name: a\r\nRequires-Dist: gpu-x; platform_system == 'Linux'\r\nRequires-Dist: b\r\n\
                    Requires-Dist: gpu-x; extra == 'gpu'\r\n\r\nRequires-Dist: gpu-x\n";
        let left = without(&Bytes::from_static(text.as_bytes()), |name| name == "gpu-x");
        let expected =
            "Name: a\r\nRequires-Dist: b\r\nRequires-Dist: gpu-x; extra == 'gpu'\r\n\r\nRequires-Dist: gpu-x\n";
        assert_eq!(left, expected);
        for text in ["", "Name: a", "Name: a\n\nb"] {
            assert_eq!(without(&Bytes::from_static(text.as_bytes()), |_| true), text);
        }
    }
}
