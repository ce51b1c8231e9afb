//! Whether the bucket is worth asking, for what it has or to take something: each has its own. After a failure it is left alone for some time, so that no run waits for what will not
//! answer; the first question after that is the next try.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox_schemas::status::TierState;

/// What is known of the bucket.
#[derive(Debug)]
pub(crate) struct Health {
    retry: Duration,
    retry_max: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures since the last answer.
    failures: u32,
    /// Nothing is asked before.
    left_alone_until: Option<Instant>,
    was_asked: bool,
    last_error: Option<(Instant, String)>,
}

impl Health {
    /// After a first failure nothing is asked for `retry`, then twice as long, up to `retry_max`.
    pub(crate) fn new(retry: Duration, retry_max: Duration) -> Health {
        Health { retry, retry_max, state: Mutex::default() }
    }

    /// How long nothing is to be asked yet; `None` when it may be.
    pub(crate) fn left_alone_for(&self, now: Instant) -> Option<Duration> {
        self.with(|state| state.left_alone_until).and_then(|until| until.checked_duration_since(now))
    }

    /// It answered, whatever the answer was.
    pub(crate) fn note_answer(&self) {
        self.with(|state| {
            *state = State { was_asked: true, last_error: state.last_error.take(), ..State::default() };
        });
    }

    /// It did not. `chance` is from 0 to 1: hosts that have failed together do not come back together.
    pub(crate) fn note_failure(&self, reason: String, now: Instant, chance: f64) {
        self.with(|state| {
            // Several that had asked at once have met one failure.
            if state.left_alone_until.is_none_or(|until| until <= now) {
                let doubled = self.retry.saturating_mul(1 << state.failures.min(16));
                state.left_alone_until = Some(now + doubled.min(self.retry_max).mul_f64(0.75 + chance / 2.0));
                state.failures += 1;
            }
            state.was_asked = true;
            state.last_error = Some((now, reason));
        });
    }

    /// Something was wrong with what it gave us.
    pub(crate) fn note_error(&self, reason: String) {
        self.with(|state| state.last_error = Some((Instant::now(), reason)));
    }

    /// For people: whether it answers who asks for something, or else who brings something; and what went wrong last.
    pub(crate) fn status_of(reading: &Health, writing: &Health) -> (TierState, Option<String>) {
        let [(read, read_error), (write, write_error)] = [reading, writing].map(Health::status);
        let state = if read == TierState::Unknown { write } else { read };
        let last = read_error.into_iter().chain(write_error).max_by_key(|(when, _)| *when);
        (state, last.map(|(_, reason)| reason))
    }

    fn status(&self) -> (TierState, Option<(Instant, String)>) {
        self.with(|state| {
            let word = match state.failures {
                0 if state.was_asked => TierState::Ok,
                0 => TierState::Unknown,
                _ => TierState::Failing,
            };
            (word, state.last_error.clone())
        })
    }

    fn with<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// From 0 to 1.
pub(crate) fn chance() -> f64 {
    // A host that cannot make random numbers has other worries than when it asks again.
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_for_longer_and_longer_until_it_answers() {
        let second = Duration::from_secs(1);
        let health = Health::new(second, 10 * second);
        let mut now = Instant::now();
        let status = || {
            let (state, last_error) = health.status();
            (state, last_error.map(|(_, reason)| reason))
        };
        assert_eq!(status(), (TierState::Unknown, None));
        assert_eq!(health.left_alone_for(now), None);
        for expected in [1, 2, 4, 8, 10, 10] {
            health.note_failure("gone".into(), now, 0.5);
            assert_eq!(health.left_alone_for(now), Some(expected * second));
            health.note_failure("gone too".into(), now, 0.5);
            assert_eq!(health.left_alone_for(now), Some(expected * second), "two at once are one");
            assert_eq!(status(), (TierState::Failing, Some("gone too".into())));
            now += expected * second;
            assert_eq!(health.left_alone_for(now), Some(Duration::ZERO));
            now += Duration::from_millis(1);
            assert_eq!(health.left_alone_for(now), None);
        }
        health.note_answer();
        assert_eq!(status(), (TierState::Ok, Some("gone too".into())), "what was last wrong can still be read");
        health.note_failure("gone".into(), now, 0.0);
        assert_eq!(health.left_alone_for(now), Some(second.mul_f64(0.75)));
    }

    #[test]
    fn an_error_in_what_it_has_is_no_failure_of_its_own() {
        let health = Health::new(Duration::from_secs(1), Duration::from_secs(1));
        health.note_answer();
        health.note_error("damaged".into());
        assert_eq!(health.status().0, TierState::Ok);
        assert!((0.0..=1.0).contains(&chance()));
    }

    #[test]
    fn what_reads_is_told_before_what_writes_and_the_last_of_both_errors() {
        let [reading, writing] = [(); 2].map(|()| Health::new(Duration::from_secs(1), Duration::from_secs(1)));
        let now = Instant::now();
        writing.note_failure("refused".into(), now, 0.5);
        assert_eq!(Health::status_of(&reading, &writing), (TierState::Failing, Some("refused".into())));
        reading.note_answer();
        assert_eq!(Health::status_of(&reading, &writing), (TierState::Ok, Some("refused".into())));
        reading.note_failure("gone".into(), now + Duration::from_secs(1), 0.5);
        assert_eq!(Health::status_of(&reading, &writing), (TierState::Failing, Some("gone".into())));
    }
}
