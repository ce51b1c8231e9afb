//! What has happened since the engine started: counted as it happens, summed up when somebody asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandbox_schemas::status::{Percentiles, RunCounts};

/// Times that are kept: enough for a 99th percentile, little enough to sort every second.
const KEPT: usize = 1000;

/// The counters of an engine.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) from_pool: AtomicU64,
    pub(crate) from_template: AtomicU64,
    pub(crate) booted: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// VMs that are being prepared now.
    pub(crate) restoring: AtomicU64,
    /// Programs that run now.
    pub(crate) running: AtomicU64,
    pub(crate) restores: Times,
    pub(crate) runs: Times,
}

impl Stats {
    pub(crate) fn run_counts(&self) -> RunCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RunCounts {
            from_pool: read(&self.from_pool),
            from_template: read(&self.from_template),
            booted: read(&self.booted),
            failed: read(&self.failed),
        }
    }
}

/// One more of something, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(crate) fn new(counter: &'a AtomicU64) -> Counted<'a> {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The latest of many times.
#[derive(Debug, Default)]
pub(crate) struct Times(Mutex<VecDeque<Duration>>);

impl Times {
    pub(crate) fn add(&self, time: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == KEPT {
            times.pop_front();
        }
        times.push_back(time);
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let mut times: Vec<Duration> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        times.sort_unstable();
        // The smallest time that so many of a hundred do not exceed.
        let percentile = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(rank).map_or(0.0, |time| time.as_micros() as f64 / 1000.0)
        };
        Percentiles { count: times.len() as u64, p50: percentile(50), p95: percentile(95), p99: percentile(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = Times::default();
        assert_eq!(times.percentiles(), Percentiles::default());
        times.add(Duration::from_millis(7));
        assert_eq!(times.percentiles(), Percentiles { count: 1, p50: 7.0, p95: 7.0, p99: 7.0 });
        let times = Times::default();
        (1..=100).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        assert_eq!(times.percentiles(), Percentiles { count: 100, p50: 50.0, p95: 95.0, p99: 99.0 });
    }

    #[test]
    fn the_oldest_times_are_forgotten() {
        let times = Times::default();
        (0..KEPT).for_each(|_| times.add(Duration::from_secs(9)));
        (0..KEPT).for_each(|_| times.add(Duration::from_millis(1)));
        assert_eq!(times.percentiles(), Percentiles { count: KEPT as u64, p50: 1.0, p95: 1.0, p99: 1.0 });
    }

    #[test]
    fn what_is_counted_ends_with_its_guard() {
        let counter = AtomicU64::new(0);
        let one = Counted::new(&counter);
        assert_eq!(counter.load(Ordering::Relaxed), 1);
        drop(one);
        assert_eq!(counter.load(Ordering::Relaxed), 0);
    }
}
