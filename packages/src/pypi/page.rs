//! What is known of a project.

use std::collections::{BTreeMap, BTreeSet};

use sandbox_download::{Checksum, FetchError};
use url::Url;

use crate::pypi::listed::{Listed, Metadata};
use crate::pypi::wheel::{Kind, PythonTarget, classify};
use crate::pypi::{html, json};
use crate::upstream::RawPage;

/// What the simple API is asked for: JSON (PEP 691) where there is any, HTML (PEP 503) else.
pub(crate) const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// A project's page: the wheels that the guest can install, and what else there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) project: String,
    pub(crate) wheels: Vec<Wheel>,
    /// The versions of which the guest can install nothing.
    pub(crate) unusable: BTreeMap<String, Unusable>,
}

/// A file that the guest may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wheel {
    pub(crate) file: String,
    pub(crate) version: String,
    pub(crate) url: Url,
    pub(crate) checksum: Checksum,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) requires_python: Option<String>,
    pub(crate) yanked: Option<String>,
    pub(crate) metadata: Metadata,
}

/// Why a version cannot be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unusable {
    /// There is only source, which would have to be built.
    SourceOnly,
    /// There are wheels, but for other machines or other Pythons.
    OtherMachines,
    /// There is a wheel, and the index does not say what it hashes to.
    Unverifiable,
}

impl Page {
    /// Reads the page of `project`, whatever form it came in.
    pub(crate) fn parse(project: &str, raw: &RawPage, target: PythonTarget) -> Result<Page, FetchError> {
        let listed = if raw.content_type.contains("json") {
            json::parse(&raw.body, &raw.url).map_err(|error| FetchError::malformed(&raw.url, error))?
        } else {
            html::parse(&raw.body, &raw.url)
        };
        Ok(Page::new(project, listed, target))
    }

    fn new(project: &str, listed: Vec<Listed>, target: PythonTarget) -> Page {
        let mut page = Page { project: project.to_owned(), wheels: Vec::new(), unusable: BTreeMap::new() };
        let mut seen = BTreeSet::new();
        for listed in listed {
            match classify(&listed.file, project, target) {
                Kind::Wheel { version } => {
                    // What cannot be verified is not offered; of two of one name the first counts.
                    match listed.checksum.clone() {
                        Some(checksum) if seen.insert(listed.file.clone()) => {
                            page.wheels.push(Wheel::new(listed, version, checksum));
                        }
                        Some(_) => {}
                        None => drop(page.unusable.insert(version, Unusable::Unverifiable)),
                    }
                }
                Kind::OtherWheel { version } => {
                    page.unusable.insert(version, Unusable::OtherMachines);
                }
                Kind::Source { version } => {
                    page.unusable.entry(version).or_insert(Unusable::SourceOnly);
                }
                Kind::Other => {}
            }
        }
        let usable: BTreeSet<_> = page.wheels.iter().map(|wheel| wheel.version.as_str()).collect();
        page.unusable.retain(|version, _| !usable.contains(version.as_str()));
        page
    }

    pub(crate) fn wheel(&self, file: &str) -> Option<&Wheel> {
        self.wheels.iter().find(|wheel| wheel.file == file)
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let of_wheel = |wheel: &Wheel| 512 + wheel.file.len() + wheel.url.as_str().len();
        self.wheels.iter().map(of_wheel).sum::<usize>() + self.unusable.len() * 64 + 256
    }
}

impl Wheel {
    fn new(listed: Listed, version: String, checksum: Checksum) -> Wheel {
        Wheel {
            file: listed.file,
            version,
            url: listed.url,
            checksum,
            size_bytes: listed.size_bytes,
            requires_python: listed.requires_python,
            yanked: listed.yanked,
            metadata: listed.metadata,
        }
    }

    /// Where its metadata lies if it lies beside it.
    pub(crate) fn metadata_url(&self) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}.metadata", self.url.path()));
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::resolve;

    #[test]
    fn versions_without_a_wheel_are_told_apart() {
        let base: Url = "https://example.com/simple/a/".parse().unwrap();
        let listed = |file: &str| Listed {
            file: file.to_owned(),
            url: resolve(&base, file).unwrap(),
            checksum: Checksum::from_hex("sha256", &"0".repeat(64)),
            size_bytes: None,
            requires_python: None,
            yanked: None,
            metadata: Metadata::Within,
        };
        let mut files = [
            "a-1.tar.gz",
            "a-2.tar.gz",
            "a-2-cp27-none-win32.whl",
            "a-3.tar.gz",
            "a-3-py3-none-any.whl",
            "a-3-py3-none-any.whl",
            "a-4-py3-none-any.whl",
        ]
        .map(listed);
        files[6].checksum = None;
        let page = Page::new("a", files.into(), PythonTarget::default());
        assert_eq!(page.wheels.iter().map(|wheel| &*wheel.file).collect::<Vec<_>>(), ["a-3-py3-none-any.whl"]);
        let unusable: Vec<_> = page.unusable.iter().map(|(version, why)| (&**version, *why)).collect();
        assert_eq!(
            unusable,
            [("1", Unusable::SourceOnly), ("2", Unusable::OtherMachines), ("4", Unusable::Unverifiable)]
        );
    }
}
