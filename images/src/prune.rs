//! Entries of the cache that nobody needs any more: those of programs and recipes that are no longer run.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sandbox_schemas::image::Component;

/// How long an entry outlives its last use. Someone who goes back to an older version of this program within that time
/// does not build for minutes.
const KEPT_UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Moves the entries in `images` that nobody needs out to `bin`, whose owner removes it: at once, so that there is never
/// half an entry. Whoever calls this holds the lock of `component` and has just made its entry `current`.
pub(crate) fn prune(images: &Path, component: Component, current: &str, bin: &Path, now: SystemTime) {
    for found in fs::read_dir(images).into_iter().flatten().flatten() {
        let name = found.file_name();
        let Some(name) = name.to_str().filter(|name| is_other_entry(name, component, current)) else { continue };
        let Ok(directory) = File::open(found.path()) else { continue };
        let last_used = || directory.metadata().and_then(|metadata| metadata.modified());
        let outdated = || last_used().is_ok_and(|last_used| is_outdated(last_used, now));
        // The lock shows that no process uses the entry, and is held until the entry is out of the way: whoever loads it
        // meanwhile waits, and finds none. Whoever has loaded it just before has also noted that.
        if outdated() && directory.try_lock().is_ok() && outdated() {
            // What cannot be removed now is for the next build: it is no reason to fail this one.
            let _ = fs::rename(found.path(), bin.join(name));
        }
    }
}

/// Whether `name` is that of an entry of `component` with another key than the entry `current`.
fn is_other_entry(name: &str, component: Component, current: &str) -> bool {
    let key = name.strip_prefix(component.name()).and_then(|rest| rest.strip_prefix('-'));
    let is_key = |key: &str| key.len() == 16 && key.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    name != current && key.is_some_and(is_key)
}

/// A clock that went back makes no entry old.
fn is_outdated(last_used: SystemTime, now: SystemTime) -> bool {
    now.duration_since(last_used).is_ok_and(|unused| unused > KEPT_UNUSED)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use sandbox_schemas::image::Component;

    use super::{KEPT_UNUSED, is_other_entry, is_outdated, prune};
    use crate::entry;

    const CURRENT: &str = "kernel-0707070707070707";
    const OTHER: &str = "kernel-0808080808080808";

    #[test]
    fn only_entries_of_the_component_with_another_key_are_looked_at() {
        let is_other = |name| is_other_entry(name, Component::Kernel, CURRENT);
        assert!(is_other(OTHER));
        for kept in [
            CURRENT,
            "root-0808080808080808",
            "kernel.lock",
            ".building-kernel-abcdef",
            "kernel-mine",
            "kernel-0808080808080808.bak",
            "kernel-080808080808080G",
        ] {
            assert!(!is_other(kept), "{kept}");
        }
    }

    #[test]
    fn entry_is_outdated_after_a_month_without_use() {
        let now = SystemTime::now();
        assert!(is_outdated(now - KEPT_UNUSED - Duration::from_secs(1), now));
        assert!(!is_outdated(now - KEPT_UNUSED, now));
        assert!(!is_outdated(now + KEPT_UNUSED * 2, now));
    }

    #[test]
    fn entry_in_use_stays_however_old_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (images, bin) = (dir.path().join("images"), dir.path().join("bin"));
        let unused = "kernel-0909090909090909";
        for directory in [&bin, &images.join(CURRENT), &images.join(OTHER), &images.join(unused)] {
            fs::create_dir_all(directory).unwrap();
        }
        entry::use_until_exit(&images.join(OTHER));
        let long_ago = SystemTime::now() - KEPT_UNUSED * 2;
        for name in [CURRENT, OTHER, unused] {
            File::open(images.join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        prune(&images, Component::Kernel, CURRENT, &bin, SystemTime::now());
        assert!(images.join(CURRENT).is_dir() && images.join(OTHER).is_dir());
        assert!(!images.join(unused).exists() && bin.join(unused).is_dir());
    }

    #[test]
    fn use_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let modified = || fs::metadata(dir.path()).unwrap().modified().unwrap();
        File::open(dir.path()).unwrap().set_modified(SystemTime::now() - KEPT_UNUSED * 2).unwrap();
        entry::use_until_exit(dir.path());
        assert!(!is_outdated(modified(), SystemTime::now()));
    }
}
