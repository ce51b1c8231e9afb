//! Who may start a VM now, who waits, who is turned away. A free place is held as a permit and given back by its drop.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use sandbox_schemas::limits::{MEMORY_DEFAULT_MB, MEMORY_MAX_MB, TCG_CODE_BUFFER_MB, VM_OVERHEAD_MB};
use tokio::sync::{AcquireError, Mutex, OwnedSemaphorePermit, Semaphore};

use crate::error::ExecuteError;
use crate::memory::{self, Domain};

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
    /// Sessions at the same time: VMs that no call gets by waiting.
    pub sessions: usize,
}

/// Calls that wait, at most. One holds its code and stdin, some 5 MiB in the worst case.
const WAITING_MAX: usize = 256;

/// VMs at the same time where nobody says otherwise, at most: agents that make more calls at once are rare, and each VM has a
/// price in memory that others on the machine pay.
const VMS_MAX: u64 = 10;

/// What most programs ask for, with what their VM and its QEMU have beside it, in MiB. Whether a machine translates is not known here.
const USUAL_VM_MB: u64 = MEMORY_DEFAULT_MB + VM_OVERHEAD_MB + TCG_CODE_BUFFER_MB;

/// The same of those that ask for most.
const LARGEST_VM_MB: u64 = MEMORY_MAX_MB + VM_OVERHEAD_MB + TCG_CODE_BUFFER_MB;

impl Limits {
    /// What the machine that we are on can bear. A control group that is smaller than the machine counts as the machine.
    pub fn of_this_machine() -> Limits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let total_mb = memory::survey().iter().map(|domain| domain.total_mb).min();
        Limits::for_machine(cores, total_mb.unwrap_or(0))
    }

    /// What a machine can bear: booting is CPU work, so more than a few VMs per core only makes each call slower; half of the
    /// memory is for others. The largest VM is let in everywhere, alone.
    pub fn for_machine(cores: usize, memory_mb: u64) -> Limits {
        let memory_mb = (memory_mb / 2).max(LARGEST_VM_MB);
        let vms = (memory_mb / USUAL_VM_MB).clamp(1, VMS_MAX);
        let vms = usize::try_from(vms).unwrap_or(1).min(2 * cores.max(1));
        let sessions = Limits::sessions_of(vms);
        Limits { vms, memory_mb, waiting: WAITING_MAX, wait: Duration::from_secs(60), sessions }
    }

    /// How many of so many VMs may be sessions: all but one, which is for programs that are in none.
    pub fn sessions_of(vms: usize) -> usize {
        vms.saturating_sub(1).max(1)
    }
}

/// How often memory that is short is looked at again. Nobody says when there is more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The gate that every call passes. A VM is let in when there is a place for it, and memory among what ours may have, and when
/// the machine really has that memory now: other programs, and other servers like this one, draw on it too, and know nothing
/// of our limits.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    places: Arc<Semaphore>,
    memory_mb: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// VMs that stay.
    held: Arc<AtomicUsize>,
    /// Held by the one whose turn it is. Its order is that in which they came.
    turn: Mutex<()>,
    /// Tells what memory there is.
    survey: fn() -> Vec<Domain>,
}

/// What a VM takes up until it is gone.
#[derive(Debug)]
pub(crate) struct Place {
    _vm: OwnedSemaphorePermit,
    memory: Arc<std::sync::Mutex<OwnedSemaphorePermit>>,
}

/// A VM that stays.
#[derive(Debug)]
pub(crate) struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a VM that has a place can be given more to. It does not keep the place.
#[derive(Debug)]
pub(crate) struct Growth(Weak<std::sync::Mutex<OwnedSemaphorePermit>>);

impl Place {
    fn new(vm: OwnedSemaphorePermit, memory: OwnedSemaphorePermit) -> Place {
        Place { _vm: vm, memory: Arc::new(std::sync::Mutex::new(memory)) }
    }

    /// For what the VM may be found to need once it is somebody else's.
    pub(crate) fn growth(&self) -> Growth {
        Growth(Arc::downgrade(&self.memory))
    }
}

impl Growth {
    /// From now on the VM has `more` as well, until it is gone. If it is already, that is given back.
    pub(crate) fn add(&self, more: OwnedSemaphorePermit) {
        if let Some(memory) = self.0.upgrade() {
            memory.lock().unwrap_or_else(PoisonError::into_inner).merge(more);
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Admission::with_survey(limits, memory::survey)
    }

    fn with_survey(limits: Limits, survey: fn() -> Vec<Domain>) -> Self {
        // Nobody has more than 32 bits of MiB; permits are counted in them.
        let limits = Limits { memory_mb: limits.memory_mb.min(u64::from(u32::MAX >> 3)), ..limits };
        Admission {
            limits,
            places: Arc::new(Semaphore::new(limits.vms)),
            memory_mb: Arc::new(Semaphore::new(limits.memory_mb as usize)),
            waiting: AtomicUsize::new(0),
            held: Arc::default(),
            turn: Mutex::new(()),
            survey,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// A VM stays for as long as this is there: its place is not waited for.
    pub(crate) fn hold(&self) -> Held {
        self.held.fetch_add(1, Ordering::AcqRel);
        Held(self.held.clone())
    }

    /// A place that can be had now, and that nobody waits for.
    pub(crate) fn try_enter(&self, memory_mb: u64) -> Option<Place> {
        if self.waiting.load(Ordering::Acquire) > 0 {
            return None;
        }
        let vm = self.places.clone().try_acquire_owned().ok()?;
        let memory = self.try_grow(memory_mb)?;
        Some(Place::new(vm, memory))
    }

    /// More memory for a VM that has a place, if it can be had now.
    pub(crate) fn try_grow(&self, memory_mb: u64) -> Option<OwnedSemaphorePermit> {
        let memory = self.memory_mb.clone().try_acquire_many_owned(u32::try_from(memory_mb).ok()?).ok()?;
        self.shortage(0).is_none().then_some(memory)
    }

    /// Waits for a place of so much memory, first come, first served.
    pub(crate) async fn enter(&self, memory_mb: u64) -> Result<Place, ExecuteError> {
        let waiter = Waiter::new(&self.waiting, self.limits.waiting);
        let _waiter = waiter.ok_or_else(|| {
            self.refusal(format!("{} VMs are busy and {} calls wait", self.limits.vms, self.limits.waiting))
        })?;
        if memory_mb > self.limits.memory_mb {
            return Err(too_large(memory_mb, self.limits.memory_mb));
        }
        if let Some(domain) = (self.survey)().into_iter().find(|domain| !domain.can_ever_spare(memory_mb)) {
            return Err(never(domain, memory_mb));
        }
        if self.held.load(Ordering::Acquire) >= self.limits.vms {
            let reason = format!("all {} VMs are sessions; close_session makes room", self.limits.vms);
            return Err(ExecuteError::Capacity { reason, retry_after: None });
        }
        let place = async {
            let _turn = self.turn.lock().await;
            let vm = self.places.clone().acquire_owned().await?;
            let memory = u32::try_from(memory_mb).unwrap_or(u32::MAX);
            let memory = self.memory_mb.clone().acquire_many_owned(memory).await?;
            while self.shortage(0).is_some() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok::<_, AcquireError>(Place::new(vm, memory))
        };
        match tokio::time::timeout(self.limits.wait, place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(self.refusal(match self.shortage(memory_mb) {
                Some(domain) => format!(
                    "{} has {} MiB of memory left, of which {} MiB are kept for others; {} MiB may be needed by this VM \
                     and {} MiB by those that there are. Less memory_mb may help",
                    domain.name,
                    domain.available_mb,
                    domain.reserve_mb(),
                    memory_mb,
                    self.promised_mb()
                ),
                None => format!(
                    "{} VMs with {} MiB in all were busy for {:?}",
                    self.limits.vms, self.limits.memory_mb, self.limits.wait
                ),
            })),
        }
    }

    /// The most that a VM can ever have, in MiB.
    pub(crate) fn most_mb(&self) -> u64 {
        let spare = (self.survey)().into_iter().map(|domain| domain.total_mb.saturating_sub(domain.reserve_mb()));
        spare.fold(self.limits.memory_mb, u64::min)
    }

    /// What our VMs may come to, in MiB.
    fn promised_mb(&self) -> u64 {
        self.limits.memory_mb.saturating_sub(self.memory_mb.available_permits() as u64)
    }

    /// What has too little memory for all that was promised, and so much more. A guest touches its memory when it needs it, so
    /// of what was promised any part may still be to come: all of it has to be there. What was touched already is counted
    /// twice so, which errs to the safe side.
    fn shortage(&self, more_mb: u64) -> Option<Domain> {
        let promised_mb = self.promised_mb() + more_mb;
        (self.survey)().into_iter().find(|domain| !domain.can_spare(promised_mb))
    }

    fn refusal(&self, reason: String) -> ExecuteError {
        let waiting = self.waiting.load(Ordering::Acquire);
        ExecuteError::Capacity { reason, retry_after: Some(retry_after(waiting, self.limits.vms)) }
    }
}

/// When it may be worth to try again: when those who wait have had a second each, which is what a usual call takes. Not at
/// once, and not so late that a client has given up.
fn retry_after(waiting: usize, vms: usize) -> Duration {
    Duration::from_secs((waiting / vms.max(1)).clamp(5, 60) as u64)
}

/// No waiting helps here either.
fn too_large(memory_mb: u64, most_mb: u64) -> ExecuteError {
    let reason = format!(
        "a VM of {memory_mb} MiB does not fit: all VMs together may have {most_mb} MiB on this machine. Ask for less memory_mb"
    );
    ExecuteError::Capacity { reason, retry_after: None }
}

/// No waiting helps.
fn never(domain: Domain, memory_mb: u64) -> ExecuteError {
    let reason = format!(
        "a VM of {memory_mb} MiB does not fit: {} has {} MiB of memory in all, of which {} MiB are kept for others. Ask for less \
         memory_mb",
        domain.name,
        domain.total_mb,
        domain.reserve_mb()
    );
    ExecuteError::Capacity { reason, retry_after: None }
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
        gate_on(Vec::new, vms, memory_mb, waiting)
    }

    /// A gate on a machine of this memory.
    fn gate_on(survey: fn() -> Vec<Domain>, vms: usize, memory_mb: u64, waiting: usize) -> Arc<Admission> {
        let limits = Limits { vms, memory_mb, waiting, wait: Duration::from_millis(50), sessions: 1 };
        Arc::new(Admission::with_survey(limits, survey))
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
        assert_eq!((small.vms, small.memory_mb), (2, LARGEST_VM_MB));
        assert_eq!(Limits::for_machine(64, 8192).vms, 4, "memory for four");
        assert_eq!(Limits::for_machine(64, 512_000).vms, 10);
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
        assert_eq!(refusal(gate.enter(1).await), "no free VM: 1 VMs are busy and 1 calls wait. Try again in 5 s");
        drop(first);
        waiter.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn memory_is_counted_whatever_places_are_free() {
        let gate = gate(9, 1000, 1);
        let first = gate.enter(600).await.unwrap();
        let reason = "no free VM: 9 VMs with 1000 MiB in all were busy for 50ms. Try again in 5 s";
        assert_eq!(refusal(gate.enter(600).await), reason);
        drop(gate.enter(400).await.unwrap());
        drop(first);
        let all = gate.enter(1000).await.unwrap();
        assert_eq!(refusal(gate.enter(1).await), reason);
        drop(all);
    }

    #[tokio::test]
    async fn what_is_larger_than_all_is_refused_and_not_cut() {
        let gate = gate(9, 1000, 1);
        assert_eq!(gate.most_mb(), 1000);
        let Err(ExecuteError::Capacity { reason, retry_after: None }) = gate.enter(1001).await else { panic!() };
        assert!(reason.starts_with("a VM of 1001 MiB does not fit: all VMs together may have 1000 MiB"), "{reason}");
        assert!(gate.try_enter(1001).is_none());
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test]
    async fn what_a_vm_grows_by_is_given_back_with_its_place() {
        let gate = gate(9, 1000, 1);
        let place = gate.try_enter(400).unwrap();
        let growth = place.growth();
        growth.add(gate.try_grow(500).unwrap());
        assert!(gate.try_enter(101).is_none(), "its VM is there still");
        drop(place);
        assert!(gate.try_enter(1000).is_some());
        growth.add(gate.try_grow(500).unwrap());
        assert!(gate.try_enter(1000).is_some(), "its VM is gone");
    }

    #[tokio::test]
    async fn whoever_is_dropped_at_any_point_leaves_no_trace() {
        let gate = gate(2, 1000, 9);
        for polls in 0..20 {
            let _first = gate.try_enter(600);
            let mut entering = Box::pin(gate.enter(600));
            for _ in 0..polls {
                let _ = futures_util::poll!(entering.as_mut());
                tokio::task::yield_now().await;
            }
            drop(entering);
            assert_eq!(gate.waiting(), 0);
            drop(_first);
            drop(gate.try_enter(1000).expect("all is free"));
        }
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

    #[tokio::test]
    async fn what_others_have_taken_is_not_given_and_is_waited_for() {
        static AVAILABLE_MB: AtomicUsize = AtomicUsize::new(1500);
        fn machine() -> Vec<Domain> {
            let available_mb = AVAILABLE_MB.load(Ordering::Acquire) as u64;
            vec![Domain { name: "this machine", total_mb: 5000, available_mb }]
        }
        // 500 MiB are kept.
        let gate = gate_on(machine, 9, 4000, 2);
        let first = gate.try_enter(600).unwrap();
        assert!(gate.try_enter(401).is_none() && gate.try_grow(401).is_none(), "the first may still grow to its size");
        let second = gate.try_enter(400).unwrap();
        assert_eq!(
            refusal(gate.enter(300).await),
            "no free VM: this machine has 1500 MiB of memory left, of which 500 MiB are kept for others; 300 MiB may be \
             needed by this VM and 1000 MiB by those that there are. Less memory_mb may help. Try again in 5 s"
        );
        drop((first, second));
        // Another server has just filled its VMs.
        AVAILABLE_MB.store(600, Ordering::Release);
        assert!(gate.try_enter(300).is_none());
        let waiter = tokio::spawn(async move { new_on(machine).enter(300).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(20)).await;
        AVAILABLE_MB.store(900, Ordering::Release);
        waiter.await.unwrap().unwrap();
    }

    fn new_on(survey: fn() -> Vec<Domain>) -> Admission {
        Admission::with_survey(Limits::for_machine(2, 5000), survey)
    }

    #[tokio::test]
    async fn the_narrowest_counts_and_what_never_fits_is_refused_at_once() {
        fn narrow() -> Vec<Domain> {
            let machine = Domain { name: "this machine", total_mb: 5000, available_mb: 4000 };
            vec![machine, Domain { name: "the group", total_mb: 1024, available_mb: 1000 }]
        }
        let gate = new_on(narrow);
        drop(gate.enter(768).await.unwrap());
        let Err(ExecuteError::Capacity { reason, retry_after: None }) = gate.enter(2304).await else { panic!() };
        assert!(
            reason.starts_with("a VM of 2304 MiB does not fit: the group has 1024 MiB of memory in all"),
            "{reason}"
        );
    }

    #[test]
    fn the_hint_grows_with_the_queue() {
        let hints = [(1, 4), (40, 4), (256, 1)].map(|(waiting, vms)| retry_after(waiting, vms).as_secs());
        assert_eq!(hints, [5, 10, 60]);
    }
}
