//! What a builder tells while it works, so that a build of minutes is never silent.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where a builder reports to. Components are built at the same time, so stages overlap.
pub trait Progress: Sync {
    /// A stage of the work has started. `total` is how much of `unit` it will take; an estimate for objects.
    fn stage(&self, name: &str, total: Option<u64>, unit: Unit) -> Box<dyn Stage>;
}

/// A stage of the work. One that is dropped without [`Stage::finish`] has failed.
pub trait Stage: Send {
    /// Some more is done.
    fn advance(&mut self, amount: u64);
    /// What is being done now.
    fn message(&mut self, line: &str);
    /// The stage is done.
    fn finish(self: Box<Self>);
}

/// What the progress of a stage is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes fetched.
    Bytes,
    /// Object files compiled.
    Objects,
    /// Nothing: there are only messages.
    None,
}

/// Reports on standard error: bars where a person looks, plain lines elsewhere.
pub struct TerminalProgress {
    bars: Option<MultiProgress>,
}

impl TerminalProgress {
    /// Decides by whether standard error is a terminal.
    pub fn new() -> TerminalProgress {
        TerminalProgress { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }
}

impl Default for TerminalProgress {
    fn default() -> TerminalProgress {
        TerminalProgress::new()
    }
}

impl Progress for TerminalProgress {
    fn stage(&self, name: &str, total: Option<u64>, unit: Unit) -> Box<dyn Stage> {
        match &self.bars {
            Some(bars) => Box::new(Bar::new(bars, name, total, unit)),
            None => Box::new(Lines::new(name, total, unit, write_to_stderr)),
        }
    }
}

struct Bar {
    bars: MultiProgress,
    bar: ProgressBar,
    started: Instant,
}

impl Bar {
    fn new(bars: &MultiProgress, name: &str, total: Option<u64>, unit: Unit) -> Bar {
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => "{spinner} {prefix} {wide_bar} {bytes} of {total_bytes}",
            (Unit::Objects, Some(_)) => "{spinner} {prefix} {wide_bar} {pos} of ~{len} objects, {elapsed}",
            _ => "{spinner} {prefix} {elapsed} {wide_msg}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
        bar.set_style(style);
        bar.set_prefix(name.to_owned());
        // Its thread is not to be had everywhere, and then only the spinner stands still.
        if thread::Builder::new().spawn(|| ()).is_ok() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Bar { bars: bars.clone(), bar, started: Instant::now() }
    }
}

impl Stage for Bar {
    fn advance(&mut self, amount: u64) {
        self.bar.inc(amount);
    }

    fn message(&mut self, line: &str) {
        self.bar.set_message(line.to_owned());
    }

    fn finish(self: Box<Self>) {
        // A terminal that is gone is no reason to fail a build.
        let _ = self.bars.println(format!("{}: {:.1} s", self.bar.prefix(), self.started.elapsed().as_secs_f64()));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How often a stage that only counts says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

struct Lines {
    name: String,
    total: Option<u64>,
    unit: Unit,
    done: u64,
    started: Instant,
    reported: Instant,
    write: fn(&str),
}

impl Lines {
    fn new(name: &str, total: Option<u64>, unit: Unit, write: fn(&str)) -> Lines {
        write(&format!("{name} ..."));
        let now = Instant::now();
        Lines { name: name.to_owned(), total, unit, done: 0, started: now, reported: now, write }
    }

    fn count(&self) -> String {
        let total = |total: Option<u64>, scale: f64| total.map(|total| format!(" of {:.1}", total as f64 / scale));
        match self.unit {
            Unit::Bytes => {
                format!("{:.1}{} MB", self.done as f64 / 1e6, total(self.total, 1e6).unwrap_or_default())
            }
            Unit::Objects => {
                let total = self.total.map(|total| format!(" of ~{total}")).unwrap_or_default();
                format!("compiled {}{total} objects", self.done)
            }
            Unit::None => String::new(),
        }
    }
}

impl Stage for Lines {
    fn advance(&mut self, amount: u64) {
        self.done += amount;
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            (self.write)(&format!("{}: {}", self.name, self.count()));
        }
    }

    fn message(&mut self, line: &str) {
        (self.write)(&format!("{}: {line}", self.name));
    }

    fn finish(self: Box<Self>) {
        (self.write)(&format!("{}: {:.1} s", self.name, self.started.elapsed().as_secs_f64()));
    }
}

/// Reports nothing: for what is done in no time.
pub(crate) struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: Option<u64>, _: Unit) -> Box<dyn Stage> {
        Box::new(Silent)
    }
}

impl Stage for Silent {
    fn advance(&mut self, _: u64) {}
    fn message(&mut self, _: &str) {}
    fn finish(self: Box<Self>) {}
}

/// Whole lines only, since stages of two threads write at the same time.
fn write_to_stderr(line: &str) {
    static STDERR: Mutex<()> = Mutex::new(());
    let _guard = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
    // A stderr that is gone is no reason to fail a build.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{Lines, Stage, Unit};

    #[test]
    fn lines_say_what_is_done_and_how_far_it_is() {
        static WRITTEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let write = |line: &str| WRITTEN.lock().unwrap().push(line.to_owned());
        let mut stage = Lines::new("kernel: compiling", Some(900), Unit::Objects, write);
        stage.advance(312);
        assert_eq!(stage.count(), "compiled 312 of ~900 objects");
        stage.message("linking");
        Box::new(stage).finish();
        let written = WRITTEN.lock().unwrap();
        assert_eq!(written[..2], ["kernel: compiling ...", "kernel: compiling: linking"]);
        assert!(written[2].starts_with("kernel: compiling: 0.0 s"));
        assert_eq!(Lines::new("uv", Some(17_600_000), Unit::Bytes, |_| ()).count(), "0.0 of 17.6 MB");
    }
}
