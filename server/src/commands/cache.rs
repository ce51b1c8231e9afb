//! `sandbox-mcp cache status|clear`; what concerns the bucket is in `tier.rs`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_store::{CacheDir, Entry, Kind, NotRemoved};
use serde::Serialize;

use crate::cli::CacheAction;
use crate::commands::tier;
use crate::settings::Settings;

pub(crate) fn run(action: CacheAction, settings: &Settings) -> anyhow::Result<()> {
    let cache = &settings.cache()?;
    match action {
        CacheAction::Push { key } => tier::push(settings, &key)?,
        CacheAction::Pull { key } => tier::pull(settings, &key)?,
        CacheAction::Status { json: true } => {
            let text = serde_json::to_string_pretty(&Status::of(cache))?;
            writeln!(std::io::stdout(), "{text}")?;
        }
        CacheAction::Status { json: false } => {
            write!(std::io::stdout(), "{}", Status::of(cache).to_text(SystemTime::now()))?;
        }
        CacheAction::Clear => clear(cache)?,
    }
    Ok(())
}

/// What is in the cache. Its fields are what `--json` prints: they are added to, not changed.
#[derive(Debug, Serialize)]
struct Status<'a> {
    cache_dir: &'a Path,
    entries: Vec<EntryStatus>,
    /// What does not count for the limit.
    other: Vec<OtherStatus>,
    total_bytes: u64,
    limit_bytes: u64,
}

#[derive(Debug, Serialize)]
struct EntryStatus {
    kind: &'static str,
    name: String,
    key: String,
    path: PathBuf,
    size_bytes: u64,
    last_used_unix_seconds: u64,
    in_use: bool,
}

#[derive(Debug, Serialize)]
struct OtherStatus {
    kind: &'static str,
    path: PathBuf,
    size_bytes: u64,
}

impl Status<'_> {
    fn of(cache: &CacheDir) -> Status<'_> {
        let entry = |(kind, entry): (Kind, Entry)| EntryStatus {
            kind: word(kind),
            name: entry.name,
            key: entry.key,
            path: entry.path,
            size_bytes: entry.size_bytes,
            last_used_unix_seconds: entry.last_used.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            in_use: entry.is_in_use,
        };
        let entries: Vec<_> = cache.entries().into_iter().map(entry).collect();
        let besides = cache.besides().into_iter();
        let other = besides.map(|it| OtherStatus { kind: it.name, path: it.path, size_bytes: it.size_bytes });
        let total_bytes = entries.iter().map(|entry| entry.size_bytes).sum();
        Status {
            cache_dir: cache.root(),
            entries,
            other: other.collect(),
            total_bytes,
            limit_bytes: cache.limit_bytes(),
        }
    }

    fn to_text(&self, now: SystemTime) -> String {
        let mut lines = vec![format!("{}", self.cache_dir.display())];
        let row = |kind: &str, name: &str, key: &str, size: &str, used: &str, state: &str| {
            format!("{kind:<10}  {name:<7}  {key:<16}  {size:>9}  {used:<15}  {state}").trim_end().to_owned()
        };
        if !self.entries.is_empty() || !self.other.is_empty() {
            lines.push(row("kind", "name", "key", "size", "last used", ""));
        }
        for entry in &self.entries {
            let used = UNIX_EPOCH + Duration::from_secs(entry.last_used_unix_seconds);
            // A clock that went back leaves marks in the future.
            let used = ago(now.duration_since(used).unwrap_or_default());
            let state = if entry.in_use { "in use" } else { "" };
            lines.push(row(entry.kind, &entry.name, &entry.key, &size(entry.size_bytes), &used, state));
        }
        for other in &self.other {
            lines.push(row(other.kind, "", "", &size(other.size_bytes), "", ""));
        }
        let (total, limit) = (size(self.total_bytes), size(self.limit_bytes));
        lines.push(format!("images and templates take {total} of {limit}"));
        if self.total_bytes > self.limit_bytes {
            lines.push("that is too much: the next build removes what is not in use, least recently used first".into());
        }
        lines.join("\n") + "\n"
    }
}

fn clear(cache: &CacheDir) -> anyhow::Result<()> {
    let entries = cache.clear_entries().into_iter().map(|removal| {
        let (kind, entry) = removal.what;
        (format!("{} {}-{}", word(kind), entry.name, entry.key), entry.size_bytes, removal.result)
    });
    let (mut removed_bytes, mut kept_bytes, mut failures) = (0, 0, 0);
    let besides = cache.clear_besides().into_iter();
    let besides = besides.map(|removal| (removal.what.name.to_owned(), removal.what.size_bytes, removal.result));
    for (what, size_bytes, result) in entries.chain(besides) {
        let takes = size(size_bytes);
        match result {
            Ok(()) => {
                removed_bytes += size_bytes;
                writeln!(std::io::stdout(), "removed  {takes:>9}  {what}")?;
            }
            Err(reason) => {
                kept_bytes += size_bytes;
                failures += usize::from(matches!(reason, NotRemoved::File(_)));
                writeln!(std::io::stdout(), "kept     {takes:>9}  {what}: {reason}")?;
            }
        }
    }
    let (removed, kept) = (size(removed_bytes), size(kept_bytes));
    writeln!(std::io::stdout(), "{removed} removed, {kept} kept in {}", cache.root().display())?;
    anyhow::ensure!(failures == 0, "not all could be removed that is not in use: see the reasons above");
    Ok(())
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "image",
        Kind::Template => "template",
        Kind::Layer => "layer",
        Kind::Resolution => "resolution",
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1_000_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.1} GB", bytes as f64 / 1e9)
    }
}

/// How long something is past, as people say it.
fn ago(past: Duration) -> String {
    const UNITS: [(u64, &str); 3] = [(24 * 3600, "day"), (3600, "hour"), (60, "minute")];
    let seconds = past.as_secs();
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(
        || "just now".to_owned(),
        |(length, name)| {
            let count = seconds / length;
            format!("{count} {name}{} ago", if count == 1 { "" } else { "s" })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_is_said_in_its_largest_unit() {
        for (seconds, expected) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (7200, "2 hours ago"),
            (86_400, "1 day ago"),
            (3_000_000, "34 days ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_size_is_said_in_its_unit() {
        assert_eq!([0, 40_000, 131_900_000, 10_000_000_000].map(size), ["0.0 MB", "0.0 MB", "131.9 MB", "10.0 GB"]);
    }

    #[test]
    fn text_has_a_line_for_each_and_says_what_is_too_much() {
        let entry = EntryStatus {
            kind: "template",
            name: "base".into(),
            key: "0123456789abcdef".into(),
            path: "/c/templates/base-0123456789abcdef".into(),
            size_bytes: 131_000_000,
            last_used_unix_seconds: 1000,
            in_use: true,
        };
        let other = OtherStatus { kind: "downloads", path: "/c/downloads".into(), size_bytes: 73_200_000 };
        let status = Status {
            cache_dir: Path::new("/c"),
            entries: vec![entry],
            other: vec![other],
            total_bytes: 131_000_000,
            limit_bytes: 100_000_000,
        };
        let expected = "/c\n\
            kind        name     key                    size  last used\n\
            template    base     0123456789abcdef   131.0 MB  2 minutes ago    in use\n\
            downloads                                73.2 MB\n\
            images and templates take 131.0 MB of 100.0 MB\n\
            that is too much: the next build removes what is not in use, least recently used first\n";
        assert_eq!(status.to_text(UNIX_EPOCH + Duration::from_secs(1130)), expected);
        let empty = Status { entries: vec![], other: vec![], total_bytes: 0, ..status };
        assert_eq!(empty.to_text(SystemTime::now()), "/c\nimages and templates take 0.0 MB of 100.0 MB\n");
    }
}
