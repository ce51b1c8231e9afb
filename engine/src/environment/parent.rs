//! The layer that packages are added to: of an environment that is there, so that only the rest is installed, and imported.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_packages::Requirement;
use sandbox_schemas::environment::{EnvironmentId, PackageLock};
use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_schemas::layer::LayerManifest;
use sandbox_schemas::limits::LAYER_PARTS_MAX;
use sandbox_store::Shelf;

use crate::environment::{Environment, layer};

/// How long packages may be added to a layer, since it was made. Like a resolution: what is asked for without a version shall not be
/// an old one for ever.
const GOOD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Of the environments on `shelf` the largest that has some of `requirements`, and no others. `fits` looks at its packages and its
/// key. Blocks.
pub(crate) fn find(
    shelf: &Shelf,
    language: Language,
    requirements: &[Requirement],
    fits: impl Fn(&PackageLock, Digest) -> bool,
) -> Option<Environment> {
    let oldest = SystemTime::now() - GOOD_FOR;
    let is_usable = |manifest: &LayerManifest| {
        // Behind the last there is no room for more.
        usize::from(manifest.parts) < LAYER_PARTS_MAX
            && UNIX_EPOCH + Duration::from_secs(manifest.created_unix_seconds) > oldest
            && has_some_of(manifest, requirements)
            && fits(&manifest.lock, manifest.key)
    };
    let entries = shelf.entries().into_iter().filter(|entry| entry.name == language.name());
    let usable = entries.filter_map(|entry| layer::look(&entry.path)).filter(is_usable);
    let parent = usable.max_by_key(|manifest| manifest.lock.packages.len())?;
    layer::load(&shelf.entry(language.name(), parent.key), &EnvironmentId::new(language, parent.key)).ok()
}

/// Whether all that was asked for in the layer is asked for again, in versions that will do, and something else besides.
fn has_some_of(manifest: &LayerManifest, requirements: &[Requirement]) -> bool {
    let version_of = |name: &str| manifest.lock.packages.iter().find(|package| package.name == name);
    let is_wanted = |name: &String| {
        let mut wanting = requirements.iter().filter(|requirement| requirement.name() == name).peekable();
        wanting.peek().is_some()
            && version_of(name).is_some_and(|package| wanting.all(|requirement| requirement.allows(&package.version)))
    };
    let is_there = |requirement: &Requirement| manifest.requested.iter().any(|name| name == requirement.name());
    !manifest.requested.is_empty() && manifest.requested.iter().all(is_wanted) && !requirements.iter().all(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::environment::LockedPackage;
    use sandbox_schemas::layer::LAYER_FORMAT;
    use sandbox_schemas::template::RamPart;

    #[track_caller]
    fn check(specifiers: &[&str], expected: bool) {
        let package = |name: &str, version: &str| LockedPackage {
            name: name.into(),
            version: version.into(),
            place: None,
            hash: None,
            comes_with: None,
        };
        let packages = vec![package("pandas", "2.3.3"), package("numpy", "2.3.5"), package("flask", "3.0.3")];
        let manifest = LayerManifest {
            format: LAYER_FORMAT,
            key: Digest([1; 32]),
            lock: PackageLock::new(Language::Python, packages),
            requested: vec!["flask".into(), "pandas".into()],
            parts: 1,
            added_to: None,
            skipped: Vec::new(),
            image: RamPart { size_bytes: 0, data_bytes: 0, sha256: Digest([2; 32]) },
            created_unix_seconds: 0,
        };
        let specifiers: Vec<String> = specifiers.iter().map(|text| (*text).to_owned()).collect();
        let requirements = sandbox_packages::parse(Language::Python, &specifiers).unwrap();
        assert_eq!(has_some_of(&manifest, &requirements), expected, "{specifiers:?}");
    }

    #[test]
    fn more_is_added_to_what_is_all_wanted_as_it_is() {
        check(&["flask", "pandas", "seaborn"], true);
        check(&["flask==3.0.3", "pandas[xml]>=2", "numpy"], true);
        check(&["flask", "pandas"], false);
        check(&["flask", "pandas[xml]"], false);
        check(&["flask", "seaborn"], false);
        check(&["flask", "pandas==2.3.2", "seaborn"], false);
        check(&["flask", "pandas>=2", "pandas<2.3", "seaborn"], false);
    }
}
