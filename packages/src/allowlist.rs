//! Which packages may be installed at all. What is asked is always a name; which version of it comes is nobody's secret to
//! keep, whose package it is is what a look-alike lies about.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use sandbox_store::{KeyHasher, open_regular};

use crate::gpu;
use crate::name::{InvalidName, normalise};
use crate::source::Pattern;

/// The most used packages of PyPI and of npm, most used first, and what is missing there of what people ask for: data of November
/// 2026. `packages/catalogs/README.md` says how they are replaced.
const CATALOGS: [(Language, [&str; 2]); 2] = [
    (Language::Python, [include_str!("../catalogs/pypi.txt"), include_str!("../catalogs/pypi-more.txt")]),
    (Language::Javascript, [include_str!("../catalogs/npm.txt"), include_str!("../catalogs/npm-more.txt")]),
];

/// Largest file of names, in bytes: more than all names of PyPI take.
const LIST_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// A name that is this much longer or shorter is no misspelling.
const DISTANCE_MAX: usize = 2;

/// The packages that may be installed.
#[derive(Debug, Clone)]
pub struct Allowlist {
    // In the order of `CATALOGS`. `None` allows everything.
    lists: [Option<List>; 2],
    /// Names that have a registry of their own: who says where they come from wants them.
    own: Vec<(Language, Pattern)>,
}

/// The names of one language.
#[derive(Debug, Clone)]
enum List {
    /// Those that come with this program, by their place.
    Builtin(usize),
    /// Somebody's own.
    Own(Arc<Names>),
}

/// Read when they are first needed, and once: most servers never are asked for a package.
static BUILTIN: LazyLock<[Arc<Names>; 2]> = LazyLock::new(|| {
    CATALOGS.map(|(language, parts)| {
        let names = parts.into_iter().flat_map(str::lines).filter_map(|name| normalise(language, name).ok());
        let names = names.filter(|name| !is_for_gpus(language, name));
        Arc::new(names.enumerate().map(|(rank, name)| (name.into(), rank)).collect())
    })
});

impl List {
    fn names(&self) -> &Arc<Names> {
        match self {
            List::Builtin(place) => &BUILTIN[*place],
            List::Own(names) => names,
        }
    }
}

/// Names, and how much each is used: the lower, the more.
type Names = HashMap<Box<str>, usize>;

impl Allowlist {
    /// The names that come with this program.
    pub fn builtin() -> Allowlist {
        Allowlist { lists: [0, 1].map(|place| Some(List::Builtin(place))), own: Vec::new() }
    }

    /// Allows everything.
    pub fn off() -> Allowlist {
        Allowlist { lists: [None, None], own: Vec::new() }
    }

    /// Has the names in a file instead of those it has for a language: one a line, `#` begins a comment.
    pub fn with_file(mut self, language: Language, path: &Path) -> Result<Allowlist, ListError> {
        let unreadable = |source| ListError::File { path: path.to_owned(), source };
        let (file, metadata) = open_regular(path).map_err(unreadable)?;
        if metadata.len() > LIST_MAX_BYTES {
            return Err(ListError::TooLong { path: path.to_owned() });
        }
        let mut text = String::new();
        file.take(LIST_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        let mut names = Names::new();
        for (index, line) in text.lines().enumerate() {
            let name = line.split('#').next().unwrap_or_default().trim();
            if !name.is_empty() {
                let invalid =
                    |reason| ListError::Name { path: path.to_owned(), line: index + 1, name: name.into(), reason };
                let rank = names.len();
                names.entry(normalise(language, name).map_err(invalid)?.into()).or_insert(rank);
            }
        }
        if let Some(place) = place(language) {
            self.lists[place] = Some(List::Own(Arc::new(names)));
        }
        Ok(self)
    }

    /// Allows these as well.
    pub fn with_names<'n>(
        mut self,
        language: Language,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Allowlist, ListError> {
        let Some(list) = place(language).and_then(|place| self.lists[place].as_mut()) else { return Ok(self) };
        let mut names = names.into_iter().peekable();
        if names.peek().is_none() {
            return Ok(self);
        }
        let mut own = list.names().clone();
        for name in names {
            let normal = normalise(language, name);
            let normal = normal.map_err(|reason| ListError::Addition { name: name.into(), language, reason })?;
            if !own.contains_key(&*normal) {
                let rank = own.len();
                Arc::make_mut(&mut own).insert(normal.into(), rank);
            }
        }
        *list = List::Own(own);
        Ok(self)
    }

    /// Allows all of these as well.
    pub(crate) fn with_patterns(mut self, language: Language, patterns: &[Pattern]) -> Allowlist {
        self.own.extend(patterns.iter().map(|pattern| (language, pattern.clone())));
        self
    }

    /// Whether a package may be installed.
    pub fn allows(&self, language: Language, name: &str) -> bool {
        let Some(list) = place(language).map(|place| self.lists[place].as_ref()) else { return false };
        let is_on = |list: &List| {
            let Ok(normal) = normalise(language, name) else { return false };
            let is_own = |(of, pattern): &(Language, Pattern)| *of == language && pattern.matches(&normal);
            list.names().contains_key(&*normal) || self.own.iter().any(is_own)
        };
        list.is_none_or(is_on)
    }

    /// The same; if not, which one may have been meant, for which all names are looked through.
    pub fn check(&self, language: Language, name: &str) -> Result<(), Refused> {
        if self.allows(language, name) {
            return Ok(());
        }
        let names = place(language).and_then(|place| self.lists[place].as_ref()).map(|list| &**list.names());
        let normal = normalise(language, name).ok();
        let name = normal.as_deref().unwrap_or(name);
        let nearest = names.and_then(|names| nearest(names, name)).map(str::to_owned);
        Err(Refused { language, name: name.to_owned(), nearest })
    }

    /// What stands for the whole list: of two that have the same, the same is allowed.
    pub fn digest(&self) -> Digest {
        let mut hasher = KeyHasher::new("allowlist");
        for ((language, _), list) in CATALOGS.iter().zip(&self.lists) {
            let names = list.as_ref().map(List::names);
            let mut sorted: Vec<_> = names.iter().flat_map(|names| names.keys()).collect();
            sorted.sort_unstable();
            hasher = hasher.field(language.name(), if names.is_some() { b"only" } else { b"everything" });
            hasher = sorted.into_iter().fold(hasher, |hasher, name| hasher.field("name", name.as_bytes()));
        }
        let own = |hasher: KeyHasher, (language, pattern): &(Language, Pattern)| {
            hasher.field(language.name(), pattern.text().as_bytes())
        };
        self.own.iter().fold(hasher, own).finish()
    }
}

/// Whether a normalised name is one of those that come with this program.
pub(crate) fn is_known(language: Language, name: &str) -> bool {
    place(language).is_some_and(|place| BUILTIN[place].contains_key(name))
}

/// What is used much and of no use in a VM, and takes gigabytes: it is refused before that comes.
fn is_for_gpus(language: Language, name: &str) -> bool {
    language == Language::Python && (gpu::is_build(name) || gpu::is_library(name))
}

fn place(language: Language) -> Option<usize> {
    CATALOGS.iter().position(|(of, _)| *of == language)
}

/// The allowed name that is most like `name`; of several, the one that is used most.
fn nearest<'n>(names: &'n Names, name: &str) -> Option<&'n str> {
    // A short name is like many others.
    let limit = if name.len() < 5 { 1 } else { DISTANCE_MAX };
    let lowered = name.to_ascii_lowercase();
    let distance = |(other, rank): (&'n str, &usize)| {
        if other.len().abs_diff(name.len()) > limit {
            return None;
        }
        let distance = strsim::osa_distance(&other.to_ascii_lowercase(), &lowered);
        (distance <= limit).then_some((distance, *rank, other))
    };
    names.iter().map(|(name, rank)| (&**name, rank)).filter_map(distance).min().map(|(_, _, other)| other)
}

/// A package is not on the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {}", self.reason())]
pub struct Refused {
    /// Whose package it is.
    pub language: Language,
    /// Its name, normalised.
    pub name: String,
    /// The allowed one that is most like it.
    pub nearest: Option<String>,
}

impl Refused {
    /// Why, as the end of a sentence about it.
    pub(crate) fn reason(&self) -> String {
        if is_for_gpus(self.language, &self.name) {
            return gpu::reason(&self.name);
        }
        let nearest = self.nearest.as_deref().map(|name| format!("; is {name} meant?")).unwrap_or_default();
        format!("is not on the allowlist of {} packages{nearest}", self.language)
    }
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be read.
    #[error("cannot read the list of packages {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is more in it than there are packages.
    #[error("the list of packages {path} is longer than 32 MiB")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line is not a name.
    #[error("line {line} of the list of packages {path} is no package's name, {name:?}: {reason}")]
    Name {
        /// The file.
        path: PathBuf,
        /// Which line, counted from 1.
        line: usize,
        /// What stands there.
        name: String,
        /// What is wrong with it.
        reason: InvalidName,
    },
    /// One of the names that were given is not one.
    #[error("{name:?} is no {language} package's name: {reason}")]
    Addition {
        /// What was given.
        name: String,
        /// Whose package it was to be.
        language: Language,
        /// What is wrong with it.
        reason: InvalidName,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use Language::{Javascript, Python};
    use std::fs;

    #[test]
    fn catalogs_hold_names_and_nothing_else() {
        for ((language, parts), names) in CATALOGS.iter().zip(BUILTIN.iter()) {
            let names_of = parts.iter().flat_map(|part| part.lines());
            let count = names_of.filter(|name| !is_for_gpus(*language, name)).count();
            assert!(count > 9000 && names.len() == count, "{language}: each name once, normalised");
        }
    }

    #[test]
    fn names_are_found_in_every_spelling() {
        let list = Allowlist::builtin();
        for name in ["requests", "Requests", "typing_extensions", "ruamel.yaml"] {
            assert_eq!(list.check(Python, name), Ok(()), "{name}");
        }
        for name in ["lodash", "@types/node", "JSONStream"] {
            assert_eq!(list.check(Javascript, name), Ok(()), "{name}");
        }
        assert!(list.check(Language::Shell, "requests").is_err());
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let list = Allowlist::builtin();
        for (language, name, nearest) in [
            (Python, "requestss", Some("requests")),
            (Python, "reqeusts", Some("requests")),
            (Python, "Numpi", Some("numpy")),
            (Python, "no-such-package-xyzzy", None),
            (Python, "r\u{435}quests", Some("requests")),
            (Javascript, "Lodash", Some("lodash")),
            (Javascript, "@type/node", Some("@types/node")),
            (Javascript, "loadsh", Some("lodash")),
        ] {
            assert_eq!(list.check(language, name).unwrap_err().nearest.as_deref(), nearest, "{name}");
        }
        let text = list.check(Python, "Reqeusts").unwrap_err().to_string();
        assert_eq!(text, "reqeusts is not on the allowlist of python packages; is requests meant?");
    }

    #[test]
    fn lists_are_replaced_extended_and_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        fs::write(&path, "# ours\nOur_Package # the one\n\nnumpy\r\n").unwrap();
        let own = Allowlist::builtin().with_file(Python, &path).unwrap();
        assert!(own.check(Python, "our.package").is_ok() && own.check(Python, "numpy").is_ok());
        assert!(own.check(Python, "requests").is_err() && own.check(Javascript, "lodash").is_ok());
        let more = own.clone().with_names(Python, ["Requests"]).unwrap();
        assert!(more.check(Python, "requests").is_ok() && own.check(Python, "requests").is_err());
        assert!(Allowlist::off().check(Python, "anything").is_ok());
        fs::write(&path, "numpy\nnot a name\n").unwrap();
        let error = Allowlist::off().with_file(Python, &path).unwrap_err().to_string();
        assert!(error.starts_with("line 2 of") && error.contains("\"not a name\""), "{error}");
        let error = Allowlist::builtin().with_names(Python, ["x/y"]).unwrap_err().to_string();
        assert!(error.starts_with("\"x/y\" is no python package's name"), "{error}");
        let error = Allowlist::off().with_file(Python, &folder.path().join("none")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the list"), "{error}");
    }

    #[test]
    fn digest_tells_lists_apart() {
        let builtin = Allowlist::builtin();
        let more = builtin.clone().with_names(Python, ["a-package-of-ours"]).unwrap();
        let other = builtin.clone().with_names(Javascript, ["a-package-of-ours"]).unwrap();
        let digests = [&builtin, &more, &other, &Allowlist::off()].map(Allowlist::digest);
        assert!((1..4).all(|index| !digests[..index].contains(&digests[index])));
        assert_eq!(builtin.with_names(Python, ["Requests"]).unwrap().digest(), digests[0]);
    }
}
