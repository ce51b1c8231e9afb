//! A project's page as JSON: PEP 691, with what PEP 700 and 714 have added.

use std::collections::BTreeMap;

use sandbox_download::Checksum;
use serde::Deserialize;
use url::Url;

use crate::pypi::listed::{Listed, Metadata};
use crate::upstream::resolve;

#[derive(Deserialize)]
struct Document {
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
    #[serde(default)]
    requires_python: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    yanked: Option<Flag<String>>,
    #[serde(default)]
    core_metadata: Option<Flag<BTreeMap<String, String>>>,
    // What it was called before PEP 714. Some indexes write both.
    #[serde(default)]
    dist_info_metadata: Option<Flag<BTreeMap<String, String>>>,
}

/// Yes or no, or more than that.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag<T> {
    Plain(bool),
    More(T),
}

/// The files of a page that came from `base`. Those whose URL cannot be fetched are left out.
pub(crate) fn parse(body: &[u8], base: &Url) -> Result<Vec<Listed>, serde_json::Error> {
    let document: Document = serde_json::from_slice(body)?;
    Ok(document.files.into_iter().filter_map(|file| listed(file, base)).collect())
}

fn listed(file: File, base: &Url) -> Option<Listed> {
    let metadata = match file.core_metadata.or(file.dist_info_metadata) {
        Some(Flag::More(hashes)) => Metadata::Beside(strongest(&hashes)),
        Some(Flag::Plain(true)) => Metadata::Beside(None),
        Some(Flag::Plain(false)) | None => Metadata::Within,
    };
    let yanked = match file.yanked {
        Some(Flag::More(reason)) => Some(reason),
        Some(Flag::Plain(true)) => Some(String::new()),
        Some(Flag::Plain(false)) | None => None,
    };
    Some(Listed {
        url: resolve(base, &file.url)?,
        checksum: strongest(&file.hashes),
        file: file.filename,
        size_bytes: file.size,
        requires_python: file.requires_python,
        yanked,
        metadata,
    })
}

/// SHA-1 is left out: no index of Python's has ever needed it.
fn strongest(hashes: &BTreeMap<String, String>) -> Option<Checksum> {
    ["sha512", "sha384", "sha256"].iter().find_map(|name| Checksum::from_hex(name, hashes.get(*name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_with_what_is_said_of_them() {
        let sha256 = "a".repeat(64);
        let text = format!(
            r#"{{"meta": {{"api-version": "1.4"}}, "name": "a", "versions": ["1"], "files": [
              {{"filename": "a-1-py3-none-any.whl", "url": "../../f/a-1-py3-none-any.whl", "size": 5,
                "hashes": {{"md5": "0", "sha256": "{sha256}"}}, "requires-python": ">=3.8", "yanked": "broken",
                "core-metadata": {{"sha256": "{sha256}"}}, "dist-info-metadata": true}},
              {{"filename": "a-2-py3-none-any.whl", "url": "https://f.example.com/x", "hashes": {{"md5": "0"}},
                "yanked": false, "core-metadata": true}},
              {{"filename": "a-3-py3-none-any.whl", "url": "ftp://f.example.com/x", "hashes": {{}}}}]}}"#
        );
        let base = "https://example.com/simple/a/".parse().unwrap();
        let files = parse(text.as_bytes(), &base).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].url.as_str(), "https://example.com/f/a-1-py3-none-any.whl");
        assert_eq!((files[0].size_bytes, files[0].yanked.as_deref()), (Some(5), Some("broken")));
        assert!(matches!(&files[0].metadata, Metadata::Beside(Some(checksum)) if checksum.hex() == sha256));
        assert!(files[1].checksum.is_none() && files[1].yanked.is_none());
        assert_eq!(files[1].metadata, Metadata::Beside(None));
        assert!(parse(b"{}", &base).is_err() && parse(b"<html>", &base).is_err());
    }
}
