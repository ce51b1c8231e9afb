//! One install: what its installer asks for, what it is refused, and which requirement is behind that.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox_download::FetchError;
use sandbox_schemas::language::Language;

use crate::allowlist::Refused;
use crate::gateway::Gateway;
use crate::gpu;
use crate::pypi::Page;
use crate::requirement::Requirement;
use crate::unavailable::{Unavailable, UnavailableReason, unusable};

/// Most requests of one install. The largest trees of npm have some thousand packages, with two requests each. It also bounds
/// what is recorded.
pub(crate) const REQUESTS_MAX: usize = 20_000;

/// Most dependencies that are recorded, to say who is behind a refusal.
const DEPENDENCIES_MAX: usize = 200_000;

/// Most failures that are told.
const FAILURES_MAX: usize = 10;

/// Told what happens as it does. Called on the runtime's own threads: it must not wait.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// What happens in an install.
#[derive(Debug, Clone)]
pub enum Event {
    /// The index was asked for a package.
    Looked {
        /// Which one.
        package: String,
    },
    /// A file begins to be sent.
    File(SentFile),
    /// A package is refused.
    Refused(Refusal),
    /// A registry failed.
    Failed(FetchError),
}

/// A file that the installer gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentFile {
    /// Whose it is.
    pub package: String,
    /// What it is called.
    pub file: String,
    /// How long it is, where the index says that. npm's does not: it is known when all of it was sent.
    pub size_bytes: Option<u64>,
    /// Whether it was in the download cache when it was first wanted.
    pub is_cached: bool,
}

/// A package that is not on the allowlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which one, and what may have been meant.
    pub refused: Refused,
    /// Who wants it: from a package that was asked for to the one that needs it. Empty if it was asked for itself, or if
    /// nobody is known to need it.
    pub wanted_by: Vec<String>,
    /// The installer can go on without it: it is an optional dependency of npm, or was not told of it.
    pub is_optional: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [rest @ .., last] = &self.wanted_by[..] {
            write!(f, "{last}")?;
            // The nearest first: it is the one that the reader can look up.
            for (index, name) in rest.iter().rev().enumerate() {
                write!(f, "{}{name} requires", if index == 0 { " (which " } else { ", which " })?;
            }
            write!(f, "{} requires ", if rest.is_empty() { "" } else { ")" })?;
            return write!(f, "{}, which {}", self.refused.name, self.refused.reason());
        }
        write!(f, "{}", self.refused)
    }
}

/// What an install came to.
#[derive(Debug, Clone, Default)]
pub struct SessionReport {
    /// What was refused, in the order in which it was asked for, each package once.
    pub refusals: Vec<Refusal>,
    /// Of what there is nothing to install.
    pub unavailable: Vec<Unavailable>,
    /// What registries failed to send, after all attempts.
    pub failures: Vec<FetchError>,
    /// The files that the installer got.
    pub files: Vec<SentFile>,
    /// How much of them, and of wheels that were looked into, came from registries, in bytes.
    pub downloaded_bytes: u64,
    /// How much was in the download cache already, in bytes.
    pub cached_bytes: u64,
    /// How many packages the index was asked for.
    pub packages_looked_up: usize,
    /// Packages that are not on the allowlist and came all the same, as a part of one that is.
    pub parts: BTreeMap<String, String>,
}

/// One install. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    language: Language,
    requirements: Vec<Requirement>,
    observer: Option<Observer>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    requests: usize,
    report: SessionReport,
    looked_up: HashSet<String>,
    /// Of each file that has come whether it was cached when it was first wanted.
    touched: HashMap<String, bool>,
    /// Who needs a package.
    wanted_by: HashMap<String, Vec<Need>>,
    needs: usize,
    /// Whose dependencies are recorded.
    known: HashSet<String>,
    /// Packages that are for other machines only: nobody misses them here.
    foreign: HashSet<String>,
    /// Packages that the installer was not told of: what would use them can do without.
    left_out: HashSet<String>,
}

/// That one package needs another.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    pub(crate) by: String,
    pub(crate) is_optional: bool,
    /// Only old versions do, or only with an extra. The first to be left out when a reason is looked for.
    pub(crate) is_weak: bool,
}

impl Session {
    /// What one install goes through: it records what was asked for, and knows why. `observer` is told as it happens.
    pub fn new(
        gateway: Gateway,
        language: Language,
        requirements: Vec<Requirement>,
        observer: Option<Observer>,
    ) -> Session {
        Session(Arc::new(Inner { gateway, language, requirements, observer, log: Mutex::default() }))
    }

    /// What happened until now.
    pub fn report(&self) -> SessionReport {
        let log = self.log();
        let mut report = log.report.clone();
        report.refusals.retain(|refusal| !log.foreign.contains(&refusal.refused.name));
        for refusal in &mut report.refusals {
            // Who needs it may have become known later.
            let name = &refusal.refused.name;
            (refusal.is_optional, refusal.wanted_by) = (self.is_optional(&log, name), self.behind(&log, name));
        }
        report
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.0.gateway
    }

    pub(crate) fn language(&self) -> Language {
        self.0.language
    }

    /// Whether there may be another request.
    pub(crate) fn admit(&self) -> bool {
        let mut log = self.log();
        log.requests += 1;
        log.requests <= REQUESTS_MAX
    }

    /// Whether a package may come. A refusal is recorded, with who is behind it.
    pub(crate) fn check(&self, package: &str) -> Result<(), Refusal> {
        let Err(refused) = self.0.gateway.allowlist().check(self.0.language, package) else { return Ok(()) };
        let mut log = self.log();
        if log.report.parts.contains_key(package) {
            return Ok(());
        }
        let known = log.report.refusals.iter().find(|refusal| refusal.refused == refused);
        if let Some(refusal) = known {
            return Err(refusal.clone());
        }
        let (is_optional, wanted_by) = (self.is_optional(&log, &refused.name), self.behind(&log, &refused.name));
        let refusal = Refusal { refused, wanted_by, is_optional };
        log.report.refusals.push(refusal.clone());
        drop(log);
        self.tell(Event::Refused(refusal.clone()));
        Err(refusal)
    }

    /// Whether `name`, which a package needs, is kept from the installer: a library that only builds for graphics processors use.
    pub(crate) fn leaves_out(&self, name: &str) -> bool {
        if self.0.language != Language::Python || !gpu::is_library(name) || self.is_required(name) {
            return false;
        }
        self.log().left_out.insert(name.to_owned());
        // Whoever has allowed it wants it.
        self.check(name).is_err()
    }

    fn is_optional(&self, log: &Log, name: &str) -> bool {
        if log.left_out.contains(name) {
            return true;
        }
        let needs = log.wanted_by.get(name).map_or(&[][..], Vec::as_slice);
        let is_optional = !needs.is_empty() && needs.iter().filter(|need| !need.is_weak).all(|need| need.is_optional);
        is_optional && !self.is_required(name)
    }

    fn behind(&self, log: &Log, name: &str) -> Vec<String> {
        log.behind(name, |name| self.is_required(name))
    }

    /// The allowed package that this one, which itself is not allowed, may be a part of, and whether it is of the same publisher: who
    /// has a scope of npm decides what is in it. Else the whole says only that it can use it, as its part for some machine.
    pub(crate) fn whole(&self, part: &str) -> Option<(String, bool)> {
        let is_allowed = |name: &str| self.0.gateway.allowlist().allows(self.0.language, name);
        if self.0.language != Language::Javascript || is_allowed(part) {
            return None;
        }
        let log = self.log();
        let scope = part.split_once('/').map(|(scope, _)| scope);
        let is_of_scope = |need: &Need| scope.is_some() && need.by.split_once('/').map(|(scope, _)| scope) == scope;
        let needs = log.wanted_by.get(part)?.iter().filter(|need| is_allowed(&need.by));
        let wholes = needs.filter_map(|need| match is_of_scope(need) {
            true => Some((need.by.clone(), true)),
            false => need.is_optional.then(|| (need.by.clone(), false)),
        });
        wholes.max_by_key(|(_, is_of_scope)| *is_of_scope)
    }

    /// That it is such a part, for this machine or for another.
    pub(crate) fn is_part(&self, part: &str, whole: String, is_for_this_machine: bool) {
        let mut log = self.log();
        if is_for_this_machine {
            log.report.parts.insert(part.to_owned(), whole);
        } else {
            log.foreign.insert(part.to_owned());
        }
    }

    /// That the index is asked for a package.
    pub(crate) fn looks_up(&self, package: &str) {
        let mut log = self.log();
        if log.looked_up.insert(package.to_owned()) {
            log.report.packages_looked_up += 1;
            drop(log);
            self.tell(Event::Looked { package: package.to_owned() });
        }
    }

    /// What a package's page shows of what cannot be installed.
    pub(crate) fn found_page(&self, page: &Page) {
        let versions = self.0.requirements.iter().filter(|requirement| requirement.name == page.project);
        let mut unavailable: Vec<_> = versions.filter_map(|requirement| unusable(page, requirement)).collect();
        if page.wheels.is_empty() && unavailable.is_empty() {
            let reason = page.unusable.values().max().map_or(UnavailableReason::Unknown, |why| (*why).into());
            unavailable.push(Unavailable { package: page.project.clone(), reason });
        }
        let mut log = self.log();
        for one in unavailable {
            if !log.report.unavailable.contains(&one) {
                log.report.unavailable.push(one);
            }
        }
    }

    /// That a registry failed, or does not have something.
    pub(crate) fn failed(&self, package: &str, is_index: bool, error: &FetchError) {
        let mut log = self.log();
        if is_index && matches!(error, FetchError::NotFound { .. }) {
            let one = Unavailable { package: package.to_owned(), reason: UnavailableReason::Unknown };
            if !log.report.unavailable.contains(&one) {
                log.report.unavailable.push(one);
            }
            return;
        }
        let is_known = log.report.failures.iter().any(|known| known.to_string() == error.to_string());
        if !is_known && log.report.failures.len() < FAILURES_MAX {
            log.report.failures.push(error.clone());
        }
        drop(log);
        self.tell(Event::Failed(error.clone()));
    }

    /// That all of a file has come, for the installer or to be looked into: how much it was, and from where. Counted once.
    pub(crate) fn arrived(&self, file: &str, size_bytes: u64, is_cached: bool) {
        let mut log = self.log();
        if let Some(sent) = log.report.files.iter_mut().find(|sent| sent.file == file) {
            sent.size_bytes = Some(size_bytes);
        }
        if log.touched.contains_key(file) {
            return;
        }
        log.touched.insert(file.to_owned(), is_cached);
        *(if is_cached { &mut log.report.cached_bytes } else { &mut log.report.downloaded_bytes }) += size_bytes;
    }

    /// That a file is sent.
    pub(crate) fn sends(&self, package: &str, file: &str, size_bytes: Option<u64>, is_cached: bool) {
        let mut log = self.log();
        // If its metadata was taken out of it before, this session has had it sent then.
        let is_cached = log.touched.get(file).copied().unwrap_or(is_cached);
        let sent = SentFile { package: package.to_owned(), file: file.to_owned(), size_bytes, is_cached };
        if log.report.files.iter().any(|known| known.file == sent.file && known.package == sent.package) {
            return;
        }
        log.report.files.push(sent.clone());
        drop(log);
        self.tell(Event::File(sent));
    }

    /// What a package needs, as its metadata says.
    pub(crate) fn needs(&self, by: &str, needs: impl FnOnce() -> Vec<(String, Need)>) {
        let mut log = self.log();
        if log.known.contains(by) || log.needs >= DEPENDENCIES_MAX {
            return;
        }
        // Of Python's packages another version may be looked at next.
        if self.0.language == Language::Javascript {
            log.known.insert(by.to_owned());
        }
        for (name, need) in needs() {
            let known = log.wanted_by.entry(name).or_default();
            match known.iter_mut().find(|known| known.by == need.by) {
                Some(known) => {
                    known.is_optional &= need.is_optional;
                    known.is_weak &= need.is_weak;
                }
                None => {
                    known.push(need);
                    log.needs += 1;
                }
            }
        }
    }

    fn is_required(&self, name: &str) -> bool {
        self.0.requirements.iter().any(|requirement| requirement.name == name)
    }

    fn tell(&self, event: Event) {
        if let Some(observer) = &self.0.observer {
            observer(&event);
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// From a package that was asked for to one that needs `name`: the shortest way, by needs that are sure if there is one.
    fn behind(&self, name: &str, is_required: impl Fn(&str) -> bool) -> Vec<String> {
        if is_required(name) {
            return Vec::new();
        }
        let way = |is_used: &dyn Fn(&Need) -> bool| {
            let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
            let mut next = VecDeque::from([name]);
            while let Some(current) = next.pop_front() {
                if is_required(current) {
                    let onward = |at: &&str| came_from.get(*at).copied().filter(|at| *at != name);
                    return Some(std::iter::successors(Some(current), onward).map(str::to_owned).collect());
                }
                for need in self.wanted_by.get(current).into_iter().flatten().filter(|need| is_used(need)) {
                    if need.by != name && !came_from.contains_key(need.by.as_str()) {
                        came_from.insert(&need.by, current);
                        next.push_back(&need.by);
                    }
                }
            }
            None
        };
        way(&|need| !need.is_weak).or_else(|| way(&|_| true)).unwrap_or_default()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("language", &self.language).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(needs: &[(&str, &str, bool)]) -> Log {
        let mut log = Log::default();
        for (by, name, is_weak) in needs {
            let need = Need { by: by.to_string(), is_optional: false, is_weak: *is_weak };
            log.wanted_by.entry(name.to_string()).or_default().push(need);
        }
        log
    }

    #[track_caller]
    fn check(needs: &[(&str, &str, bool)], expected: &[&str]) {
        let way = log(needs).behind("evil", |name| matches!(name, "asked" | "also"));
        assert_eq!(way, expected);
    }

    #[test]
    fn way_leads_from_what_was_asked_for_to_who_needs_it() {
        check(&[], &[]);
        check(&[("asked", "evil", false)], &["asked"]);
        check(&[("asked", "a", false), ("a", "b", false), ("b", "evil", false)], &["asked", "a", "b"]);
        check(&[("asked", "a", false), ("a", "evil", false), ("also", "evil", true)], &["asked", "a"]);
        check(&[("also", "evil", true), ("stray", "evil", false)], &["also"]);
        check(&[("a", "evil", false), ("b", "a", false), ("a", "b", false), ("evil", "b", false)], &[]);
    }

    #[test]
    fn refusal_says_who_is_behind_it() {
        let text = |wanted_by: &[&str], nearest: Option<&str>| {
            let refused =
                Refused { language: Language::Python, name: "evil".into(), nearest: nearest.map(str::to_owned) };
            let wanted_by = wanted_by.iter().map(|name| name.to_string()).collect();
            Refusal { refused, wanted_by, is_optional: false }.to_string()
        };
        assert_eq!(text(&[], None), "evil is not on the allowlist of python packages");
        assert_eq!(text(&["flask"], None), "flask requires evil, which is not on the allowlist of python packages");
        assert_eq!(
            text(&["flask", "werkzeug", "click"], Some("devil")),
            "click (which werkzeug requires, which flask requires) requires evil, which is not on the allowlist \
             of python packages; is devil meant?"
        );
    }
}
