//! Who may start a VM now, who waits, who is turned away. A free place is held as a permit and given back by its drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sandbox_schemas::limits::{MEMORY_MAX_MB, VM_OVERHEAD_MB};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::error::ExecuteError;

/// How much runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// VMs that exist at the same time.
    pub vms: usize,
    /// Memory that the VMs may have together, in MiB.
    pub memory_mb: u64,
    /// Calls that wait for a VM at the same time; one more is turned away.
    pub waiting: usize,
    /// How long a call waits at most.
    pub wait: Duration,
}

/// Calls that wait, at most. One holds its code and stdin, some 5 MiB in the worst case.
const WAITING_MAX: usize = 256;

impl Limits {
    /// What a machine can bear: booting is CPU work, so more than a few VMs per core only makes each call slower; half of the
    /// memory is for others. The largest VM is let in everywhere, alone.
    pub fn for_machine(cores: usize, memory_mb: u64) -> Limits {
        let memory_mb = (memory_mb / 2).max(MEMORY_MAX_MB + VM_OVERHEAD_MB);
        Limits { vms: 2 * cores.max(1), memory_mb, waiting: WAITING_MAX, wait: Duration::from_secs(60) }
    }
}

/// The gate that every call passes.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    places: Arc<Semaphore>,
    memory_mb: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// What a VM takes up until it is gone.
#[derive(Debug)]
pub(crate) struct Place {
    _vm: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Admission {
            limits,
            places: Arc::new(Semaphore::new(limits.vms)),
            memory_mb: Arc::new(Semaphore::new(usize::try_from(limits.memory_mb).unwrap_or(usize::MAX >> 3))),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// A place that can be had now, and that nobody waits for.
    pub(crate) fn try_enter(&self, memory_mb: u64) -> Option<Place> {
        if self.waiting.load(Ordering::Acquire) > 0 {
            return None;
        }
        let vm = self.places.clone().try_acquire_owned().ok()?;
        let memory = self.memory_mb.clone().try_acquire_many_owned(u32::try_from(memory_mb).ok()?).ok()?;
        Some(Place { _vm: vm, _memory: memory })
    }

    /// More memory for a VM that has a place, if it can be had now.
    pub(crate) fn try_grow(&self, memory_mb: u64) -> Option<OwnedSemaphorePermit> {
        self.memory_mb.clone().try_acquire_many_owned(u32::try_from(memory_mb).ok()?).ok()
    }

    /// Waits for a place of so much memory, first come, first served.
    pub(crate) async fn enter(&self, memory_mb: u64) -> Result<Place, ExecuteError> {
        let waiter = Waiter::new(&self.waiting, self.limits.waiting);
        let _waiter = waiter.ok_or_else(|| ExecuteError::Capacity {
            reason: format!("{} VMs are busy and {} calls wait", self.limits.vms, self.limits.waiting),
        })?;
        // In the order in which all do it, so that no two wait for each other.
        let both = async {
            let memory = u32::try_from(memory_mb.min(self.limits.memory_mb)).unwrap_or(u32::MAX);
            let vm = self.places.clone().acquire_owned().await?;
            let memory = self.memory_mb.clone().acquire_many_owned(memory).await?;
            Ok::<_, AcquireError>(Place { _vm: vm, _memory: memory })
        };
        match tokio::time::timeout(self.limits.wait, both).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(ExecuteError::Capacity {
                reason: format!(
                    "{} VMs with {} MiB in all were busy for {:?}",
                    self.limits.vms, self.limits.memory_mb, self.limits.wait
                ),
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

    fn gate(vms: usize, memory_mb: u64, waiting: usize) -> Arc<Admission> {
        Arc::new(Admission::new(Limits { vms, memory_mb, waiting, wait: Duration::from_millis(50) }))
    }

    #[track_caller]
    fn refusal(result: Result<Place, ExecuteError>) -> String {
        result.map(drop).unwrap_err().to_string()
    }

    #[test]
    fn cores_and_memory_decide() {
        let limits = Limits::for_machine(2, 24_000);
        assert_eq!((limits.vms, limits.memory_mb), (4, 12_000));
        let small = Limits::for_machine(0, 0);
        assert_eq!((small.vms, small.memory_mb), (2, MEMORY_MAX_MB + VM_OVERHEAD_MB));
    }

    #[tokio::test]
    async fn a_full_gate_lets_wait_then_turns_away() {
        let gate = gate(1, 1000, 1);
        let first = gate.enter(1).await.unwrap();
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(1).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(refusal(gate.enter(1).await), "no free VM: 1 VMs are busy and 1 calls wait. Try again later");
        drop(first);
        waiter.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn memory_is_counted_whatever_places_are_free() {
        let gate = gate(9, 1000, 1);
        let first = gate.enter(600).await.unwrap();
        let reason = "no free VM: 9 VMs with 1000 MiB in all were busy for 50ms. Try again later";
        assert_eq!(refusal(gate.enter(600).await), reason);
        drop(gate.enter(400).await.unwrap());
        drop(first);
        // One that wants more than there is gets all there is, alone.
        let all = gate.enter(5000).await.unwrap();
        assert_eq!(refusal(gate.enter(1).await), reason);
        drop(all);
    }

    #[tokio::test]
    async fn a_call_does_not_wait_for_ever_and_leaves_no_trace() {
        let gate = gate(1, 1000, 1);
        let _first = gate.enter(1).await.unwrap();
        for _ in 0..2 {
            refusal(gate.enter(1).await);
        }
        assert_eq!(gate.waiting.load(Ordering::Acquire), 0);
    }
}
