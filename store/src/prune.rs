//! Which entries nobody needs any more: those of programs and recipes that are no longer run, and those for which there is
//! no room.

use std::time::{Duration, SystemTime};

use crate::entry::Entry;

/// How long an entry outlives its last use. Someone who goes back to an older version of this program within that time
/// does not build for minutes.
pub(crate) const KEPT_UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A clock that went back makes no entry old.
pub(crate) fn is_outdated(last_used: SystemTime, now: SystemTime) -> bool {
    now.duration_since(last_used).is_ok_and(|unused| unused > KEPT_UNUSED)
}

/// What has to go so that all entries together take no more than `limit_bytes`: what was not used for longest goes first.
/// What is in use counts, and stays, though the limit be exceeded.
pub(crate) fn excess(entries: &[Entry], limit_bytes: u64) -> Vec<&Entry> {
    let mut total_bytes: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
    let mut idle: Vec<_> = entries.iter().filter(|entry| !entry.is_in_use).collect();
    // The path makes two processes that look at the same cache choose the same.
    idle.sort_by_key(|entry| (entry.last_used, &entry.path));
    idle.into_iter()
        .take_while(|entry| {
            let is_too_much = total_bytes > limit_bytes;
            total_bytes -= entry.size_bytes;
            is_too_much
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_outdated_after_a_month_without_use() {
        let now = SystemTime::now();
        assert!(is_outdated(now - KEPT_UNUSED - Duration::from_secs(1), now));
        assert!(!is_outdated(now - KEPT_UNUSED, now));
        assert!(!is_outdated(now + KEPT_UNUSED * 2, now));
    }

    /// An entry of this size, not used for so long.
    fn entry(name: &str, size_bytes: u64, unused_seconds: u64, is_in_use: bool) -> Entry {
        Entry {
            path: name.into(),
            name: name.into(),
            key: String::new(),
            size_bytes,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - unused_seconds),
            is_in_use,
        }
    }

    #[track_caller]
    fn check(entries: &[Entry], limit_bytes: u64, expected: &[&str]) {
        let names: Vec<_> = excess(entries, limit_bytes).into_iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, expected, "limit {limit_bytes}");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_until_the_rest_fits() {
        let entries = [entry("new", 10, 1, false), entry("oldest", 30, 9, false), entry("old", 20, 5, false)];
        for (limit, expected) in [
            (60, &[][..]),
            (59, &["oldest"]),
            (30, &["oldest"]),
            (29, &["oldest", "old"]),
            (10, &["oldest", "old"]),
            (9, &["oldest", "old", "new"]),
            (0, &["oldest", "old", "new"]),
        ] {
            check(&entries, limit, expected);
        }
        check(&[], 0, &[]);
    }

    #[test]
    fn what_is_in_use_counts_and_stays() {
        let entries = [entry("used", 50, 9, true), entry("old", 20, 5, false), entry("new", 10, 1, false)];
        check(&entries, 80, &[]);
        check(&entries, 60, &["old"]);
        check(&entries, 40, &["old", "new"]);
    }

    #[test]
    fn of_two_that_were_used_at_once_each_process_chooses_the_same() {
        let [one, other] = ["a", "b"].map(|name| entry(name, 10, 5, false));
        check(&[one.clone(), other.clone()], 10, &["a"]);
        check(&[other, one], 10, &["a"]);
    }
}
