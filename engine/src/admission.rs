//! Who may start a VM now, who waits, who is turned away. A free place is held as a permit and given back by its drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ExecuteError;

/// How much runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// VMs that exist at the same time.
    pub vms: usize,
    /// Calls that wait for a VM at the same time; one more is turned away.
    pub waiting: usize,
    /// How long a call waits at most.
    pub wait: Duration,
}

impl Limits {
    /// What a machine can bear: booting is CPU work, so more than a few VMs per core only makes each call slower, and
    /// every VM can use its memory limit.
    pub fn for_machine(cores: usize, memory_mb: u64) -> Limits {
        // Half of the memory, at the default limit per VM.
        let by_memory = usize::try_from(memory_mb / 2 / sandbox_schemas::limits::MEMORY_DEFAULT_MB).unwrap_or(1);
        Limits { vms: (2 * cores).min(by_memory).max(1), waiting: 1024, wait: Duration::from_secs(60) }
    }
}

/// The gate that every call passes.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Admission { limits, places: Arc::new(Semaphore::new(limits.vms)), waiting: AtomicUsize::new(0) }
    }

    /// Waits for a place, first come, first served.
    pub(crate) async fn enter(&self) -> Result<OwnedSemaphorePermit, ExecuteError> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waiter = Waiter::new(&self.waiting, self.limits.waiting).ok_or_else(|| ExecuteError::Capacity {
            reason: format!("{} VMs are busy and {} calls wait", self.limits.vms, self.limits.waiting),
        })?;
        match tokio::time::timeout(self.limits.wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(ExecuteError::Capacity {
                reason: format!("{} VMs were busy for {:?}", self.limits.vms, self.limits.wait),
            }),
        }
    }
}

/// Counts a waiting call for as long as it waits, also when it is cancelled.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(count: &'a AtomicUsize, max: usize) -> Option<Waiter<'a>> {
        let take = |waiting: usize| (waiting < max).then_some(waiting + 1);
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok()?;
        Some(Waiter(count))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(vms: usize, waiting: usize) -> Limits {
        Limits { vms, waiting, wait: Duration::from_millis(50) }
    }

    #[test]
    fn the_smaller_of_cores_and_memory_decides() {
        assert_eq!(Limits::for_machine(2, 24_000).vms, 4);
        assert_eq!(Limits::for_machine(16, 2_048).vms, 2);
        assert_eq!(Limits::for_machine(1, 0).vms, 1);
    }

    #[tokio::test]
    async fn a_full_gate_lets_wait_then_turns_away() {
        let gate = Arc::new(Admission::new(limits(1, 1)));
        let first = gate.enter().await.unwrap();
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let refused = gate.enter().await.map(drop).unwrap_err().to_string();
        assert_eq!(refused, "no free VM: 1 VMs are busy and 1 calls wait. Try again later");
        drop(first);
        waiter.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_call_does_not_wait_for_ever_and_leaves_no_trace() {
        let gate = Admission::new(limits(1, 1));
        let _first = gate.enter().await.unwrap();
        for _ in 0..2 {
            let error = gate.enter().await.map(drop).unwrap_err().to_string();
            assert_eq!(error, "no free VM: 1 VMs were busy for 50ms. Try again later");
        }
        assert_eq!(gate.waiting.load(Ordering::Acquire), 0);
    }
}
