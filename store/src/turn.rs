//! The right to build, as it is waited for: as long as whoever has it shows signs of life.

use std::time::{Duration, Instant, SystemTime};

use crate::build_lock::{BEAT, BuildLock, GENERATIONS_MAX};
use crate::error::ShelfError;
use crate::shelf::Shelf;

/// A builder that was not heard of for so long is stopped: it says every second that it is not, and a machine that is busy does not
/// keep it from that for as long. One that was only slow finds the entry there when it is done.
const STALLED: Duration = Duration::from_secs(10);

/// Somebody's wish to build.
#[derive(Debug)]
pub struct Turn {
    shelf: Shelf,
    name: String,
    /// What was heard of those who build, the first, and who builds beside that one.
    heard: [Heard; GENERATIONS_MAX],
}

impl Turn {
    /// A wish for the right to build what is called `name`, but not to wait for who has it and was stopped.
    pub fn new(shelf: Shelf, name: &str) -> Turn {
        Turn { shelf, name: name.to_owned(), heard: Default::default() }
    }

    /// The right to build, once it is to be had. To be asked again every [`LOCK_POLL`](crate::LOCK_POLL) or so. Beside a builder that is
    /// stopped another one may build: whose entry is there first, wins.
    pub fn try_lock(&mut self) -> Result<Option<BuildLock>, ShelfError> {
        self.shelf.make()?;
        let now = Instant::now();
        for (generation, heard) in self.heard.iter_mut().enumerate() {
            let path = self.shelf.lock_path(&self.name, generation);
            match BuildLock::try_take(&path, &self.name, generation)? {
                Ok(lock) => return Ok(Some(lock)),
                Err(taken) if heard.is_stalled(taken.beat, now) => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// What was heard of a builder.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    beat: SystemTime,
    looked: Instant,
    /// How long it has been the same.
    quiet: Duration,
}

impl Heard {
    /// Whether it has shown no sign of life for too long. Who looks may have been stopped as well: of the time since it looked last, no
    /// more than a beat counts.
    fn is_stalled(&mut self, beat: SystemTime, now: Instant) -> bool {
        let quiet = match self.last {
            Some(last) if last.beat == beat => last.quiet + now.saturating_duration_since(last.looked).min(BEAT),
            _ => Duration::ZERO,
        };
        self.last = Some(Last { beat, looked: now, quiet });
        quiet >= STALLED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_builder_that_says_nothing_for_long_is_stalled() {
        let (begun, beat) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |tenths: u64| begun + Duration::from_millis(100 * tenths);
        let mut heard = Heard::default();
        assert!((0..100).all(|tenths| !heard.is_stalled(beat, at(tenths))));
        assert!(heard.is_stalled(beat, at(100)));
        assert!(!heard.is_stalled(beat + BEAT, at(101)), "it goes on");
        assert!(!heard.is_stalled(beat + BEAT, at(200)), "who looks was stopped, too");
        assert!((201..=289).all(|tenths| !heard.is_stalled(beat + BEAT, at(tenths))));
        assert!(heard.is_stalled(beat + BEAT, at(295)));
    }

    #[test]
    fn who_is_stalled_is_passed_by_and_who_builds_beside_it_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().to_owned());
        // As a process has it that was stopped: locked, and never touched again.
        let stopped = File::create(shelf.lock_path("thing", 0)).unwrap();
        stopped.lock().unwrap();
        let mut turn = Turn::new(shelf.clone(), "thing");
        assert!(turn.try_lock().unwrap().is_none());
        turn.heard[0].last.as_mut().unwrap().quiet = STALLED;
        let beside = turn.try_lock().unwrap().unwrap();
        assert_eq!(beside.label(), "thing.1");
        assert!(turn.try_lock().unwrap().is_none(), "that one is not stopped");
        drop(beside);
        assert!(turn.try_lock().unwrap().is_some());
        drop(stopped);
        assert_eq!(turn.try_lock().unwrap().unwrap().label(), "thing");
        assert!(fs::exists(shelf.lock_path("thing", 1)).unwrap());
    }
}
