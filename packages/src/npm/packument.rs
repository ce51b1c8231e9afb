//! What the registry says of a package, and the part of it that an installer needs: the abbreviated form. The full one has a
//! readme and scripts for each version, and some registries send it whatever they are asked for.

use std::collections::BTreeMap;

use nodejs_semver::Version;
use sandbox_download::{Checksum, FetchError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use url::Url;

use crate::upstream::{RawPage, resolve};

/// What the registry is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8";

/// A package with all its versions.
#[derive(Debug)]
pub(crate) struct Packument {
    pub(crate) name: String,
    tags: BTreeMap<String, String>,
    releases: BTreeMap<String, Release>,
}

/// A version of a package, whose file can be verified.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) url: Url,
    pub(crate) checksum: Checksum,
    kept: Kept,
}

/// A package that another one pulls in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// npm goes on without it.
    pub(crate) is_optional: bool,
    /// The newest version needs it; otherwise only others do.
    pub(crate) is_of_latest: bool,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, rename = "dist-tags")]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    versions: BTreeMap<String, Kept>,
}

/// What an installer needs to know of a version, as the registry wrote it. `devDependencies` are left out, though the
/// abbreviated form has them: they are those of whoever works on the package.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Kept {
    #[serde(skip_serializing)]
    dist: Dist,
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecated: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    optional_dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_dependencies_meta: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle_dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundled_dependencies: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    bin: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    directories: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    engines: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    libc: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    has_install_script: Raw,
    #[serde(rename = "_hasShrinkwrap", skip_serializing_if = "Option::is_none")]
    has_shrinkwrap: Raw,
}

/// Old packages have about anything in any field.
type Raw = Option<Box<RawValue>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dist {
    tarball: Option<String>,
    integrity: Option<String>,
    shasum: Option<String>,
}

#[derive(Serialize)]
struct Rendered<'p> {
    name: &'p str,
    #[serde(rename = "dist-tags")]
    tags: &'p BTreeMap<String, String>,
    versions: BTreeMap<&'p str, RenderedVersion<'p>>,
}

#[derive(Serialize)]
struct RenderedVersion<'p> {
    name: &'p str,
    version: &'p str,
    dist: RenderedDist,
    #[serde(flatten)]
    kept: &'p Kept,
}

#[derive(Serialize)]
struct RenderedDist {
    tarball: String,
    // npm takes a `sha1-` here as well as the stronger ones.
    integrity: String,
}

impl Packument {
    /// Reads the packument of `name`. Versions whose file cannot be fetched or verified are left out, and so is whatever is no
    /// version: it becomes part of a URL.
    pub(crate) fn parse(name: &str, raw: &RawPage) -> Result<Packument, FetchError> {
        let document: Document =
            serde_json::from_slice(&raw.body).map_err(|error| FetchError::malformed(&raw.url, error))?;
        let release = |(version, kept): (String, Kept)| {
            Version::parse(&version).ok()?;
            let url = resolve(&raw.url, kept.dist.tarball.as_deref()?)?;
            let integrity = kept.dist.integrity.as_deref().and_then(Checksum::from_integrity);
            let shasum = || Checksum::from_hex("sha1", kept.dist.shasum.as_deref()?);
            let checksum = integrity.or_else(shasum)?;
            Some((version, Release { url, checksum, kept }))
        };
        let releases = document.versions.into_iter().filter_map(release).collect();
        Ok(Packument { name: name.to_owned(), tags: document.tags, releases })
    }

    pub(crate) fn release(&self, version: &str) -> Option<&Release> {
        self.releases.get(version)
    }

    /// The packument as an installer gets it that has reached us at `host`: npm takes absolute URLs only.
    pub(crate) fn render(&self, host: &str) -> Vec<u8> {
        let version = |(version, release): (&'_ String, &'_ Release)| {
            let tarball = format!("http://{host}/npm/{}/-/{}", self.name, file_name(&self.name, version));
            RenderedDist { tarball, integrity: release.checksum.integrity() }
        };
        let versions = self.releases.iter().map(|entry| {
            let rendered =
                RenderedVersion { name: &self.name, version: entry.0, dist: version(entry), kept: &entry.1.kept };
            (entry.0.as_str(), rendered)
        });
        let rendered = Rendered { name: &self.name, tags: &self.tags, versions: versions.collect() };
        // Only maps with keys that are no strings cannot be written.
        serde_json::to_vec(&rendered).unwrap_or_default()
    }

    /// What any of its versions pulls in.
    pub(crate) fn dependencies(&self) -> Vec<Dependency> {
        let latest = self.tags.get("latest");
        let mut found = BTreeMap::new();
        for (version, release) in &self.releases {
            let is_of_latest = Some(version) == latest;
            let kept = &release.kept;
            // A name in both is optional, and only then npm goes on.
            for (raw, is_optional) in
                [(&kept.dependencies, false), (&kept.peer_dependencies, false), (&kept.optional_dependencies, true)]
            {
                let names: BTreeMap<String, serde_json::Value> =
                    raw.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
                for (name, wanted) in names {
                    let name = aliased(&wanted).map_or(name, str::to_owned);
                    let known = found.entry(name.clone()).or_insert(Dependency { name, is_optional, is_of_latest });
                    if is_of_latest >= known.is_of_latest {
                        (known.is_optional, known.is_of_latest) = (is_optional, is_of_latest);
                    }
                }
            }
        }
        found.into_values().collect()
    }

    /// Whether its newest version is for 64-bit x86 Linux with glibc, where that says for which machines it is.
    pub(crate) fn is_for_this_machine(&self) -> Option<bool> {
        let newest = self.tags.get("latest").and_then(|version| self.releases.get(version));
        let kept = &newest.or_else(|| self.releases.values().next_back())?.kept;
        let names = |raw: &Raw| {
            let text = raw.as_ref()?.get();
            let one = || serde_json::from_str(text).map(|name| vec![name]);
            serde_json::from_str::<Vec<String>>(text).or_else(|_| one()).ok()
        };
        let (os, cpu, libc) = (names(&kept.os)?, names(&kept.cpu)?, names(&kept.libc));
        let has = |names: &[String], wanted: &str| names.iter().any(|name| name == wanted);
        Some(has(&os, "linux") && has(&cpu, "x64") && libc.is_none_or(|libc| has(&libc, "glibc")))
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let of_raw = |raw: &Raw| raw.as_ref().map_or(0, |raw| raw.get().len());
        let of = |release: &Release| {
            let kept = &release.kept;
            let raws =
                [&kept.deprecated, &kept.dependencies, &kept.optional_dependencies, &kept.peer_dependencies, &kept.bin];
            1024 + raws.into_iter().map(of_raw).sum::<usize>()
        };
        self.releases.values().map(of).sum::<usize>() + 1024
    }
}

/// The real name behind `npm:name@range`.
fn aliased(wanted: &serde_json::Value) -> Option<&str> {
    let target = wanted.as_str()?.strip_prefix("npm:")?;
    let end = target.get(1..)?.find('@').map_or(target.len(), |at| at + 1);
    Some(&target[..end])
}

/// What a version's file is called here. The registry's own convention: what a `npm-shrinkwrap.json` names is found as well.
pub(crate) fn file_name(name: &str, version: &str) -> String {
    format!("{}-{version}.tgz", unscoped(name))
}

/// The version that `file` is of.
pub(crate) fn version_of<'f>(name: &str, file: &'f str) -> Option<&'f str> {
    file.strip_prefix(unscoped(name))?.strip_prefix('-')?.strip_suffix(".tgz")
}

fn unscoped(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn packument(document: Value) -> Packument {
        let url: Url = "https://registry.example.com/@a%2fb".parse().unwrap();
        let raw = RawPage { body: document.to_string().into(), content_type: "application/json".into(), url };
        Packument::parse("@a/b", &raw).unwrap()
    }

    const SHASUM: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";

    fn version(more: Value) -> Value {
        let mut version =
            json!({ "name": "@a/b", "readme": "long", "dist": { "tarball": "/x.tgz", "shasum": SHASUM } });
        version.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        version
    }

    #[test]
    fn what_an_installer_needs_is_kept_and_leads_back() {
        let found = packument(json!({
            "name": "evil", "readme": "long", "dist-tags": { "latest": "1.0.0" },
            "versions": {
                "1.0.0": version(json!({
                    "name": "evil", "dependencies": { "c": "^1" }, "devDependencies": { "d": "1" }, "engines": ["node"],
                    "scripts": { "install": "x" }, "hasInstallScript": true, "bin": { "b": "b.js" } })),
                "2.0.0": { "dist": { "tarball": "https://f.example.com/y.tgz", "integrity": "sha512-nonsense" } },
                "3.0.0": { "name": "@a/b" },
                "../4": version(json!({})),
            } }));
        let rendered: Value = serde_json::from_slice(&found.render("gateway:1")).unwrap();
        assert_eq!(
            rendered,
            json!({
                "name": "@a/b", "dist-tags": { "latest": "1.0.0" },
                "versions": { "1.0.0": {
                    "name": "@a/b", "version": "1.0.0", "dependencies": { "c": "^1" }, "engines": ["node"],
                    "hasInstallScript": true, "bin": { "b": "b.js" },
                    "dist": { "tarball": "http://gateway:1/npm/@a/b/-/b-1.0.0.tgz",
                              "integrity": "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=" } } } })
        );
        assert_eq!(found.release("1.0.0").unwrap().url.as_str(), "https://registry.example.com/x.tgz");
        assert_eq!(version_of("@a/b", "b-1.0.0-x.1.tgz"), Some("1.0.0-x.1"));
        assert_eq!(version_of("@a/b", "c-1.0.0.tgz"), None);
    }

    #[test]
    fn parts_for_machines_say_which() {
        let of = |more: Value| {
            packument(json!({ "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": version(more) } }))
                .is_for_this_machine()
        };
        assert_eq!(of(json!({ "os": ["linux"], "cpu": ["x64"] })), Some(true));
        assert_eq!(of(json!({ "os": "linux", "cpu": "x64", "libc": ["glibc"] })), Some(true));
        assert_eq!(of(json!({ "os": ["linux"], "cpu": ["x64"], "libc": ["musl"] })), Some(false));
        assert_eq!(of(json!({ "os": ["linux"], "cpu": ["arm64"] })), Some(false));
        assert_eq!(of(json!({ "os": ["darwin"], "cpu": ["x64"] })), Some(false));
        assert_eq!(of(json!({ "os": ["!win32"], "cpu": ["x64"] })), Some(false));
        assert_eq!(of(json!({ "os": ["linux"] })), None);
        assert_eq!(of(json!({})), None);
    }

    #[test]
    fn what_is_pulled_in_is_known_by_its_real_name() {
        let found = packument(json!({ "dist-tags": { "latest": "2.0.0" }, "versions": {
            "1.0.0": version(json!({ "dependencies": { "old": "1", "both": "1" }, "optionalDependencies": { "both": "1" } })),
            "2.0.0": version(json!({
                "dependencies": { "alias": "npm:@real/name@^1", "other": "npm:real", "both": "1", "odd": 5 },
                "optionalDependencies": { "maybe": "1" }, "peerDependencies": "nonsense" })),
        } }));
        let found: Vec<_> = found.dependencies();
        let found: Vec<_> = found.iter().map(|found| (&*found.name, found.is_optional, found.is_of_latest)).collect();
        assert_eq!(
            found,
            [
                ("@real/name", false, true),
                ("both", false, true),
                ("maybe", true, true),
                ("odd", false, true),
                ("old", false, false),
                ("real", false, true)
            ]
        );
    }
}
