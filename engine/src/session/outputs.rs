//! Files that a program has left, found by patterns.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};

use globset::{GlobBuilder, GlobMatcher};
use sandbox_schemas::files::OutputFile;
use sandbox_schemas::invalid::InvalidInput;
use sandbox_schemas::limits::{FILES_MAX, OUTPUTS_MAX_BYTES};
use sandbox_schemas::outcome::ExecuteOutcome;
use sandbox_schemas::wire::{Entry, EntryKind};

use crate::error::ExecuteError;
use crate::session::contents;
use crate::session::session::Session;

/// The files that are wanted of a program.
#[derive(Debug)]
pub(crate) struct Outputs(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    text: String,
    matcher: GlobMatcher,
    /// The folder that all it matches is in, and whether that can be in a folder within.
    folder: String,
    is_deep: bool,
}

impl Pattern {
    fn new(text: &str) -> Result<Pattern, InvalidInput> {
        let mut text = text.trim_start_matches("./").to_owned();
        if text.is_empty() || text.ends_with('/') {
            // A folder is all that is in it.
            text.push_str("**");
        }
        let glob = GlobBuilder::new(&text).literal_separator(true).build().map_err(|error| InvalidInput {
            field: "outputs".into(),
            message: format!("{:.80?} is no pattern: {}", text, error.kind()),
        })?;
        let literal = |part: &&str| !part.contains(['*', '?', '[', '{', '\\']);
        let parts: Vec<_> = text.split('/').collect();
        let before = parts[..parts.len() - 1].iter().take_while(|part| literal(part)).count();
        let folder = match parts[..before].join("/") {
            folder if folder.is_empty() && text.starts_with('/') => "/".into(),
            folder => folder,
        };
        let is_deep = before + 1 < parts.len() || parts[parts.len() - 1].contains("**");
        Ok(Pattern { matcher: glob.compile_matcher(), folder, is_deep, text })
    }

    fn matches(&self, path: &str, kind: EntryKind) -> bool {
        // A name may have what means something in a pattern.
        let is_named = path == self.text;
        match kind {
            EntryKind::File => is_named || self.matcher.is_match(path),
            EntryKind::Link => is_named,
            EntryKind::Folder | EntryKind::Other => false,
        }
    }

    fn path_of(&self, entry: &Entry) -> String {
        match self.folder.as_str() {
            "" => entry.name.clone(),
            folder => format!("{folder}/{}", entry.name),
        }
    }
}

impl Outputs {
    /// By patterns, which have to be some.
    pub(crate) fn new(patterns: &[String]) -> Result<Outputs, InvalidInput> {
        patterns.iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>().map(Outputs)
    }

    /// Whether none is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes them out of the VM, and tells of them in the outcome of the program that has left them. What cannot be had is told as well: the
    /// program ran.
    pub(crate) async fn gather(&self, session: &Session, outcome: &mut ExecuteOutcome) {
        let mut listed: HashMap<(&str, bool), (Vec<Entry>, bool)> = HashMap::new();
        let (mut found, mut notes) = (BTreeMap::new(), Vec::new());
        for pattern in &self.0 {
            let place = (pattern.folder.as_str(), pattern.is_deep);
            let (entries, is_cut) = match listed.entry(place) {
                Slot::Occupied(known) => known.into_mut(),
                Slot::Vacant(unknown) => {
                    let folder = if pattern.folder.is_empty() { "." } else { &pattern.folder };
                    let listing = match session.list_now(folder.to_owned(), pattern.is_deep).await {
                        Ok(listing) => listing,
                        // No such folder: nothing is in it.
                        Err(ExecuteError::File { .. }) => Default::default(),
                        Err(_) => {
                            outcome.files_note = Some(GONE.into());
                            return;
                        }
                    };
                    if listing.1 {
                        notes.push(format!("of {folder} only {} files were looked at", listing.0.len()));
                    }
                    unknown.insert(listing)
                }
            };
            let paths = entries.iter().map(|entry| (pattern.path_of(entry), entry));
            let matching: Vec<_> = paths.filter(|(path, entry)| pattern.matches(path, entry.kind)).collect();
            if matching.is_empty() && !*is_cut {
                outcome.unmatched.push(pattern.text.clone());
            }
            found.extend(matching.into_iter().map(|(path, entry)| (path, entry.size)));
        }
        if found.len() > FILES_MAX {
            notes.push(format!(
                "{} more files match, and no more than {FILES_MAX} are returned",
                found.len() - FILES_MAX
            ));
        }
        let mut left = OUTPUTS_MAX_BYTES;
        for (path, size_bytes) in found.into_iter().take(FILES_MAX) {
            let mut file = OutputFile { path, size_bytes, ..OutputFile::default() };
            take(session, &mut file, &mut left).await;
            outcome.files.push(file);
        }
        outcome.files_note = (!notes.is_empty()).then(|| notes.join("; "));
    }
}

/// What is said of files that nobody can take any more.
const GONE: &str = "the VM has ended, and its files with it";

/// Fills in what is in a file.
async fn take(session: &Session, file: &mut OutputFile, left: &mut u64) {
    let too_large = || Some(format!("no more than {OUTPUTS_MAX_BYTES} bytes of files are returned"));
    if file.size_bytes > *left {
        file.omitted = too_large();
        return;
    }
    let mut bytes = Vec::new();
    match session.fetch_now(file.path.clone(), 0, *left, &mut bytes).await {
        Ok(size) => {
            file.size_bytes = size;
            if size > *left {
                // A link to something larger.
                file.omitted = too_large();
            } else {
                *left -= bytes.len() as u64;
                file.contents = contents::of_file(bytes);
            }
        }
        Err(ExecuteError::File { reason }) => file.omitted = Some(reason),
        Err(_) => file.omitted = Some(GONE.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_looked_for_where_it_can_match() {
        let place = |text: &str| {
            let pattern = Pattern::new(text).unwrap();
            (pattern.folder, pattern.is_deep)
        };
        for (text, folder, is_deep) in [
            ("plot.png", "", false),
            ("./plot.png", "", false),
            ("*.csv", "", false),
            ("out/*.csv", "out", false),
            ("out/a/b.csv", "out/a", false),
            ("out/**/*.csv", "out", true),
            ("**", "", true),
            ("*/a", "", true),
            ("out/", "out", true),
            ("/tmp/x*", "/tmp", false),
            ("a b/\u{e9}?.txt", "a b", false),
        ] {
            assert_eq!(place(text), (folder.to_owned(), is_deep), "{text}");
        }
        let error = Pattern::new("a[").unwrap_err();
        assert!(error.message.contains("\"a[\" is no pattern: unclosed character class"), "{error}");
    }

    #[test]
    fn a_pattern_matches_as_in_a_shell_and_a_name_matches_itself() {
        let matches = |text: &str, path: &str| Pattern::new(text).unwrap().matches(path, EntryKind::File);
        assert!(matches("*.csv", "a.csv") && !matches("*.csv", "out/a.csv"));
        assert!(matches("**/*.csv", "out/b/a.csv") && matches("**/*.csv", "a.csv"));
        assert!(matches("out/", "out/b/a.csv") && !matches("out/", "a.csv"));
        assert!(matches("{a,b}.txt", "b.txt") && matches("a[1].txt", "a1.txt") && matches("a[1].txt", "a[1].txt"));
        assert!(!Pattern::new("*").unwrap().matches("a", EntryKind::Link));
        assert!(Pattern::new("a").unwrap().matches("a", EntryKind::Link));
    }
}
