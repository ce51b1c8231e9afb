//! VMs that wait for a program: restored, rehearsed, idle. Whoever takes one waits for milliseconds.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_schemas::language::Language;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::vm::Waiting;

/// So long after a program has begun, the pool is left alone: what fills it must not slow down who was just served, nor a
/// client that sends one program after the other.
const REST: Duration = Duration::from_millis(100);

/// The pool, and what decides when it is filled. Who fills it is the engine.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    /// Programs that may run while a VM is made.
    spare: usize,
    waiting: Mutex<VecDeque<Waiting>>,
    activity: Mutex<Activity>,
    changed: Notify,
}

#[derive(Debug)]
struct Activity {
    running: usize,
    /// What programs were written in, until now.
    languages: Vec<Language>,
    last_begun: Instant,
    /// Calls that wait for what the pool's VMs take up.
    pressing: usize,
    is_closed: bool,
}

impl Activity {
    /// Whether the machine has something better to do than to make a VM for the pool.
    fn is_busy(&self, spare: usize) -> bool {
        self.running > spare || self.pressing > 0
    }
}

/// A call that waits for a place. Its drop says that it does not any more.
#[derive(Debug)]
pub(crate) struct Pressing<'a>(&'a Pool);

/// A program that runs. Its drop says that it has ended.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Pool);

impl Pool {
    /// A pool for `size` VMs, on a machine with so many processors.
    pub(crate) fn new(size: usize, cores: usize) -> Pool {
        Pool {
            size,
            // Filling takes one of them.
            spare: cores.saturating_sub(1),
            waiting: Mutex::default(),
            activity: Mutex::new(Activity {
                running: 0,
                languages: Vec::new(),
                last_begun: Instant::now(),
                pressing: 0,
                is_closed: false,
            }),
            changed: Notify::new(),
        }
    }

    /// VMs that are kept.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// VMs that wait now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// A VM that is known to be sound, if there is one.
    pub(crate) fn take(&self) -> Option<Waiting> {
        let mut waiting = lock(&self.waiting);
        self.changed.notify_one();
        while let Some(mut vm) = waiting.pop_front() {
            if vm.is_sound() {
                return Some(vm);
            }
            tracing::warn!("a VM ended while it waited");
        }
        None
    }

    /// Takes a new VM in, unless what it takes up is needed for something else.
    pub(crate) fn put(&self, vm: Waiting) {
        // Held until it is in, so that nobody clears the pool in between.
        let activity = lock(&self.activity);
        if !activity.is_closed && activity.pressing == 0 {
            lock(&self.waiting).push_back(vm);
        }
    }

    /// A call waits for a place: what only waits in the pool gives its own up, and none is made.
    pub(crate) fn press(&self) -> Pressing<'_> {
        let mut activity = lock(&self.activity);
        activity.pressing += 1;
        lock(&self.waiting).clear();
        self.changed.notify_one();
        Pressing(self)
    }

    /// No more VMs are needed, nor will be.
    pub(crate) fn close(&self) {
        let mut activity = lock(&self.activity);
        activity.is_closed = true;
        lock(&self.waiting).clear();
        self.changed.notify_one();
    }

    /// A program begins.
    pub(crate) fn begin(&self, language: Language) -> Running<'_> {
        let mut activity = lock(&self.activity);
        if !activity.languages.contains(&language) {
            activity.languages.push(language);
        }
        activity.running += 1;
        activity.last_begun = Instant::now();
        self.changed.notify_one();
        Running(self)
    }

    /// What a VM for the pool should rehearse: what this server is used for. Each language that is not is 15-30 MiB less of code
    /// that QEMU has translated.
    pub(crate) fn languages(&self) -> Vec<Language> {
        let languages = lock(&self.activity).languages.clone();
        if languages.is_empty() { vec![Language::Python] } else { languages }
    }

    /// Waits until a VM is wanted, and the machine has nothing better to do than to make it. `false` when none will be.
    pub(crate) async fn is_wanting(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            let due = {
                let activity = lock(&self.activity);
                if activity.is_closed || self.size == 0 {
                    return false;
                }
                let can = !activity.is_busy(self.spare) && lock(&self.waiting).len() < self.size;
                can.then_some(activity.last_begun + REST)
            };
            match due {
                Some(due) if due <= Instant::now() => return true,
                Some(due) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Waits until the machine has something better to do than to make a VM.
    pub(crate) async fn is_disturbed(&self) {
        loop {
            let changed = self.changed.notified();
            if lock(&self.activity).is_busy(self.spare) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Pressing<'_> {
    fn drop(&mut self) {
        lock(&self.0.activity).pressing -= 1;
        self.0.changed.notify_one();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.0.activity).running -= 1;
        self.0.changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a VM is wanted, in milliseconds from now; `None` when it is not within a second.
    async fn wanted_after(pool: &Pool) -> Option<u128> {
        let begun = Instant::now();
        let wanting = tokio::time::timeout(Duration::from_secs(1), pool.is_wanting()).await;
        wanting.ok().filter(|wanting| *wanting).map(|_| begun.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_filled_when_the_machine_has_nothing_better_to_do() {
        let pool = Pool::new(2, 2);
        assert_eq!(wanted_after(&pool).await, Some(100), "who starts the server may have a program already");
        let first = pool.begin(Language::Shell);
        assert_eq!(wanted_after(&pool).await, Some(100), "one processor is free");
        let second = pool.begin(Language::Shell);
        assert_eq!(wanted_after(&pool).await, None, "none is");
        drop(second);
        assert_eq!(wanted_after(&pool).await, Some(0));
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_place_comes_first() {
        let pool = Pool::new(2, 2);
        let disturbed = async || tokio::time::timeout(Duration::from_secs(1), pool.is_disturbed()).await.is_ok();
        assert!(!disturbed().await);
        let pressing = pool.press();
        assert!(disturbed().await);
        assert_eq!(wanted_after(&pool).await, None);
        drop(pressing);
        assert!(!disturbed().await);
        assert_eq!(wanted_after(&pool).await, Some(0));
        let running = [pool.begin(Language::Shell), pool.begin(Language::Shell)];
        assert!(disturbed().await, "no processor is free");
        drop(running);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_is_rehearsed() {
        let pool = Pool::new(2, 2);
        assert_eq!(pool.languages(), [Language::Python]);
        for language in [Language::Shell, Language::Javascript, Language::Shell] {
            drop(pool.begin(language));
        }
        assert_eq!(pool.languages(), [Language::Shell, Language::Javascript]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_processor_serves_programs_first() {
        let pool = Pool::new(2, 1);
        let first = pool.begin(Language::Shell);
        assert_eq!(wanted_after(&pool).await, None);
        drop(first);
        assert_eq!(wanted_after(&pool).await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_of_none_or_one_that_is_closed_wants_nothing() {
        assert_eq!(wanted_after(&Pool::new(0, 2)).await, None);
        let pool = Pool::new(2, 2);
        pool.close();
        assert!(!pool.is_wanting().await);
    }
}
