//! What is asked for in an open session beside the packages that it has.

use sandbox_packages::{Requirement, parse};
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::LAYER_PARTS_MAX;

use crate::environment::{Environment, InstallError, install};

/// What an environment has to have that has `new` beside what `base` has as it is; `None` when that has them already.
pub(crate) fn requirements(
    base: &Environment,
    language: Language,
    new: &[Requirement],
) -> Result<Option<Vec<Requirement>>, InstallError> {
    let unfit = |reason: String| Err(InstallError::Unfit { reason });
    if language != base.language {
        return unfit(format!("the session has packages of {}, and has room for those of one language", base.language));
    }
    let there = |name: &str| base.lock.packages.iter().find(|package| package.name == name);
    let mut is_all_there = true;
    for requirement in new {
        let Some(package) = there(requirement.name()) else {
            is_all_there = false;
            continue;
        };
        let is_any = requirement.text() == requirement.name();
        if !is_any && !requirement.allows(&package.version) {
            return unfit(format!(
                "the session has {} {}, which is not changed under running interpreters",
                package.name, package.version
            ));
        }
        // What an extra brings along may be missing.
        is_all_there &= !requirement.text().contains('[');
    }
    if is_all_there {
        return Ok(None);
    }
    if !install::can_add(language) {
        return unfit(format!("packages of {language} cannot be added to others"));
    }
    if usize::from(base.parts) >= LAYER_PARTS_MAX {
        return unfit(format!("packages were added to the session {} times, as often as they can be", base.parts - 1));
    }
    // What is there stays, in the versions that are there: a fresh resolution may have others of what was not asked for by name.
    let mut all = Vec::new();
    for package in &base.lock.packages {
        // One by one: how many there are is nothing that the caller has chosen.
        all.extend(parse(language, &[format!("{}=={}", package.name, package.version)])?);
    }
    all.extend_from_slice(new);
    Ok(Some(all))
}

/// What stands against it where the registry's answer does.
pub(crate) fn misfit(base: &Environment) -> InstallError {
    let has: Vec<_> = base.lock.packages.iter().map(|one| format!("{} {}", one.name, one.version)).collect();
    InstallError::Unfit { reason: format!("they need others than the session has, which are {}", has.join(", ")) }
}
