//! VMs that wait for a program: restored, rehearsed, idle. Whoever takes one waits for milliseconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_schemas::image::Digest;
use sandbox_schemas::language::Language;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admission::Growth;
use crate::environment::Environment;
use crate::vm::Waiting;

/// So long after a program has begun, the pool is left alone: what fills it must not slow down who was just served, nor a
/// client that sends one program after the other.
const REST: Duration = Duration::from_millis(100);

/// So long after an environment was last used, a VM with it waits: whoever has used it is likely to do so again.
const ENVIRONMENT_KEPT: Duration = Duration::from_secs(300);

/// Environments that VMs wait with because they were used, at most: each VM has 30-100 MB of its own.
const ENVIRONMENTS_KEPT_MAX: usize = 2;

/// How long a VM is not tried to be made again that could not be made: twice as long each time.
const PUT_OFF_FIRST: Duration = Duration::from_secs(1);
const PUT_OFF_MAX: Duration = Duration::from_secs(60);

/// The pool, and what decides when it is filled. Who fills it is the engine.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    /// Programs that may run while a VM is made.
    spare: usize,
    waiting: Mutex<Vec<Idle>>,
    activity: Mutex<Activity>,
    changed: Notify,
}

/// A VM that waits, and the layer that it has.
#[derive(Debug)]
struct Idle {
    layer: Option<Digest>,
    vm: Waiting,
    growth: Growth,
}

#[derive(Debug)]
struct Activity {
    /// The layer that each call wants that is being served.
    calls: Vec<Option<Digest>>,
    /// What programs were written in, until now.
    languages: Vec<Language>,
    /// Sets for which a VM waits, the one that was used last at the end.
    environments: Vec<Kept>,
    /// What cannot be made for now, so that it keeps nothing else from being made.
    put_off: HashMap<Option<Digest>, PutOff>,
    last_begun: Instant,
    /// Calls that wait for what the pool's VMs take up.
    pressing: usize,
    is_closed: bool,
}

/// An environment that a VM waits with.
#[derive(Debug)]
struct Kept {
    environment: Arc<Environment>,
    /// `None` for one that the configuration names.
    until: Option<Instant>,
}

/// A VM that could not be made.
#[derive(Debug, Clone, Copy)]
struct PutOff {
    times: u32,
    until: Instant,
}

impl PutOff {
    fn again(known: Option<PutOff>, now: Instant) -> PutOff {
        let times = known.map_or(0, |known| known.times);
        let time = PUT_OFF_FIRST.saturating_mul(2_u32.saturating_pow(times)).min(PUT_OFF_MAX);
        PutOff { times: times.saturating_add(1), until: now + time }
    }
}

impl Activity {
    /// Whether a VM with this layer may be tried to be made.
    fn is_possible(&self, layer: Option<Digest>) -> bool {
        self.put_off.get(&layer).is_none_or(|put_off| put_off.until <= Instant::now())
    }

    /// Whether the machine has something better to do than to make a VM for the pool.
    fn is_busy(&self, spare: usize) -> bool {
        self.calls.len() > spare || self.pressing > 0
    }

    /// When the first of the environments is not kept any more, or something can be tried again.
    fn next_change(&self) -> Option<Instant> {
        let now = Instant::now();
        let put_off = self.put_off.values().map(|put_off| put_off.until).filter(|until| *until > now);
        self.environments.iter().filter_map(|kept| kept.until).chain(put_off).min()
    }

    /// Forgets the environments that were not used for long, and the oldest of those that are too many.
    fn expire(&mut self) {
        let now = Instant::now();
        self.environments.retain(|kept| kept.until.is_none_or(|until| until > now));
        while self.environments.iter().filter(|kept| kept.until.is_some()).count() > ENVIRONMENTS_KEPT_MAX {
            let oldest = self.environments.iter().position(|kept| kept.until.is_some());
            oldest.map(|index| self.environments.remove(index));
        }
        let environments = &self.environments;
        let is_kept = |layer: &Digest| environments.iter().any(|kept| kept.environment.key == *layer);
        self.put_off.retain(|layer, _| layer.as_ref().is_none_or(is_kept));
    }
}

/// What a VM for the pool shall have.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Its packages.
    pub(crate) environment: Option<Arc<Environment>>,
    /// What it rehearses.
    pub(crate) languages: Vec<Language>,
}

/// A call that waits for a place. Its drop says that it does not any more.
#[derive(Debug)]
pub(crate) struct Pressing<'a>(&'a Pool);

/// A program that runs. Its drop says that it has ended.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Pool, Option<Digest>);

impl Pool {
    /// A pool for `size` VMs without packages, on a machine with so many processors. None wait for environments if none shall wait at all.
    pub(crate) fn new(size: usize, cores: usize) -> Pool {
        Pool {
            size,
            // Filling takes one of them.
            spare: cores.saturating_sub(1),
            waiting: Mutex::default(),
            activity: Mutex::new(Activity {
                calls: Vec::new(),
                languages: Vec::new(),
                environments: Vec::new(),
                put_off: HashMap::new(),
                last_begun: Instant::now(),
                pressing: 0,
                is_closed: false,
            }),
            changed: Notify::new(),
        }
    }

    /// VMs without packages that are kept.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// VMs that wait now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// Of VMs with these packages those that wait, and the calls that want one.
    pub(crate) fn count(&self, layer: Digest) -> (usize, usize) {
        let calls = lock(&self.activity).calls.iter().filter(|call| **call == Some(layer)).count();
        (lock(&self.waiting).iter().filter(|idle| idle.layer == Some(layer)).count(), calls)
    }

    /// A VM with these packages that is known to be sound, if there is one, and what it can be given more to.
    pub(crate) fn take(&self, layer: Option<Digest>) -> Option<(Waiting, Growth)> {
        let mut waiting = lock(&self.waiting);
        self.changed.notify_one();
        while let Some(index) = waiting.iter().position(|idle| idle.layer == layer) {
            let Idle { mut vm, growth, .. } = waiting.remove(index);
            if vm.is_sound() {
                return Some((vm, growth));
            }
            tracing::warn!("a VM ended while it waited");
        }
        None
    }

    /// Takes a new VM in, unless what it takes up is needed for something else.
    pub(crate) fn put(&self, wish: &Wish, vm: Waiting, growth: Growth) {
        let layer = layer_of(wish.environment.as_ref());
        // Held until it is in, so that nobody clears the pool in between.
        let mut activity = lock(&self.activity);
        activity.put_off.remove(&layer);
        if !activity.is_closed && activity.pressing == 0 {
            lock(&self.waiting).push(Idle { layer, vm, growth });
        }
    }

    /// What was wished for cannot be made now: something else is, meanwhile.
    pub(crate) fn put_off(&self, wish: &Wish) {
        let layer = layer_of(wish.environment.as_ref());
        let mut activity = lock(&self.activity);
        let put_off = PutOff::again(activity.put_off.get(&layer).copied(), Instant::now());
        activity.put_off.insert(layer, put_off);
    }

    /// A VM with these packages can be made by now.
    pub(crate) fn call_up(&self, layer: Option<Digest>) {
        lock(&self.activity).put_off.remove(&layer);
        self.changed.notify_one();
    }

    /// From now on a VM with these packages waits: for a while since it was used, or for good. Where no VMs wait, nothing is kept.
    pub(crate) fn keep(&self, environment: &Arc<Environment>, for_good: bool) {
        if self.size == 0 {
            return;
        }
        let mut activity = lock(&self.activity);
        let known = activity.environments.iter().position(|kept| kept.environment.key == environment.key);
        let known = known.map(|index| activity.environments.remove(index));
        let is_for_good = for_good || known.is_some_and(|kept| kept.until.is_none());
        let until = (!is_for_good).then(|| Instant::now() + ENVIRONMENT_KEPT);
        activity.environments.push(Kept { environment: environment.clone(), until });
        activity.expire();
        self.changed.notify_one();
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

    /// A program begins that wants these packages.
    pub(crate) fn begin(&self, language: Language, layer: Option<Digest>) -> Running<'_> {
        let mut activity = lock(&self.activity);
        if !activity.languages.contains(&language) {
            activity.languages.push(language);
        }
        activity.calls.push(layer);
        activity.last_begun = Instant::now();
        self.changed.notify_one();
        Running(self, layer)
    }

    /// Waits until a VM is wanted, and the machine has nothing better to do than to make it. `None` when none will be.
    pub(crate) async fn wish(&self) -> Option<Wish> {
        loop {
            let changed = self.changed.notified();
            let (wish, due, change) = {
                let mut activity = lock(&self.activity);
                if activity.is_closed || self.size == 0 {
                    return None;
                }
                activity.expire();
                let mut waiting = lock(&self.waiting);
                let is_kept = |layer| activity.environments.iter().any(|kept| kept.environment.key == layer);
                waiting.retain(|idle| idle.layer.is_none_or(is_kept));
                let wish = if activity.is_busy(self.spare) { None } else { self.missing(&activity, &waiting) };
                (wish, activity.last_begun + REST, activity.next_change())
            };
            match (wish, change) {
                (Some(wish), _) if due <= Instant::now() => return Some(wish),
                (Some(_), _) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                (None, Some(change)) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(change) => {}
                },
                (None, None) => changed.await,
            }
        }
    }

    /// What is wanted most: one VM without packages, then one with each environment, then the rest of those without.
    fn missing(&self, activity: &Activity, waiting: &[Idle]) -> Option<Wish> {
        let count = |layer| waiting.iter().filter(|idle| idle.layer == layer).count();
        // What this server is used for. Each language that is not rehearsed is 15-30 MiB less of code that QEMU has translated.
        let languages = if activity.languages.is_empty() { vec![Language::Python] } else { activity.languages.clone() };
        let bare = Wish { environment: None, languages };
        let is_bare_possible = activity.is_possible(None);
        if count(None) == 0 && is_bare_possible {
            return Some(bare);
        }
        let is_missing = |kept: &&Kept| {
            let layer = Some(kept.environment.key);
            count(layer) == 0 && activity.is_possible(layer)
        };
        let kept = activity.environments.iter().rev().find(is_missing);
        if let Some(Kept { environment, .. }) = kept {
            return Some(Wish { languages: vec![environment.language], environment: Some(environment.clone()) });
        }
        (count(None) < self.size && is_bare_possible).then_some(bare)
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

/// What tells VMs with different packages apart.
pub(crate) fn layer_of(environment: Option<&Arc<Environment>>) -> Option<Digest> {
    environment.map(|environment| environment.key)
}

impl Drop for Pressing<'_> {
    fn drop(&mut self) {
        lock(&self.0.activity).pressing -= 1;
        self.0.changed.notify_one();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.activity);
        let index = activity.calls.iter().position(|layer| *layer == self.1);
        index.map(|index| activity.calls.swap_remove(index));
        drop(activity);
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
        let wanting = tokio::time::timeout(Duration::from_secs(1), pool.wish()).await;
        wanting.ok().flatten().map(|_| begun.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_filled_when_the_machine_has_nothing_better_to_do() {
        let pool = Pool::new(2, 2);
        assert_eq!(wanted_after(&pool).await, Some(100), "who starts the server may have a program already");
        let first = pool.begin(Language::Shell, None);
        assert_eq!(wanted_after(&pool).await, Some(100), "one processor is free");
        let second = pool.begin(Language::Shell, None);
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
        let running = [pool.begin(Language::Shell, None), pool.begin(Language::Shell, None)];
        assert!(disturbed().await, "no processor is free");
        drop(running);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_is_rehearsed() {
        let pool = Pool::new(2, 2);
        assert_eq!(pool.wish().await.unwrap().languages, [Language::Python]);
        for language in [Language::Shell, Language::Javascript, Language::Shell] {
            drop(pool.begin(language, None));
        }
        assert_eq!(pool.wish().await.unwrap().languages, [Language::Shell, Language::Javascript]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_is_kept_for_a_while_since_it_was_used_and_a_configured_one_for_good() {
        let pool = Pool::new(1, 2);
        let environments: Vec<_> = (0..4).map(Environment::for_tests).collect();
        let kept =
            || -> Vec<Digest> { lock(&pool.activity).environments.iter().map(|kept| kept.environment.key).collect() };
        pool.keep(&environments[0], true);
        environments[1..].iter().for_each(|environment| pool.keep(environment, false));
        pool.keep(&environments[0], false);
        // It is looked at whenever a VM may be wanted.
        pool.wish().await;
        assert_eq!(kept(), [2, 3, 0].map(|index: usize| environments[index].key), "the oldest one is one too many");
        tokio::time::advance(ENVIRONMENT_KEPT / 2).await;
        pool.keep(&environments[2], false);
        tokio::time::advance(ENVIRONMENT_KEPT / 2).await;
        pool.wish().await;
        assert_eq!(kept(), [0, 2].map(|index: usize| environments[index].key));
        tokio::time::advance(ENVIRONMENT_KEPT).await;
        pool.wish().await;
        assert_eq!(kept(), [environments[0].key]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_made_keeps_nothing_else_from_being_made() {
        let pool = Pool::new(1, 2);
        let environment = Environment::for_tests(1);
        pool.keep(&environment, false);
        let wished = async |pool: &Pool| {
            let wish = tokio::time::timeout(Duration::from_millis(200), pool.wish()).await.ok().flatten();
            wish.map(|wish| wish.environment.is_some())
        };
        assert_eq!(wished(&pool).await, Some(false));
        pool.put_off(&pool.wish().await.unwrap());
        assert_eq!(wished(&pool).await, Some(true), "the base fails, environments are made");
        pool.put_off(&pool.wish().await.unwrap());
        assert_eq!(wished(&pool).await, None, "all fails");
        pool.call_up(Some(environment.key));
        assert_eq!(wished(&pool).await, Some(true));
        pool.call_up(None);
        assert_eq!(wished(&pool).await, Some(false));
        // Longer each time, and forgotten with the environment.
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pool.put_off(&Wish { environment: None, languages: Vec::new() });
            pool.put_off(&Wish { environment: Some(environment.clone()), languages: Vec::new() });
            pool.keep(&environment, false);
            let begun = Instant::now();
            pool.wish().await.unwrap();
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        tokio::time::advance(ENVIRONMENT_KEPT * 2).await;
        pool.wish().await.unwrap();
        assert!(!lock(&pool.activity).put_off.contains_key(&Some(environment.key)));
    }

    #[test]
    fn where_no_vm_waits_no_set_is_kept() {
        let pool = Pool::new(0, 2);
        let environment = Environment::for_tests(1);
        pool.keep(&environment, false);
        pool.keep(&environment, true);
        assert_eq!(Arc::strong_count(&environment), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_processor_serves_programs_first() {
        let pool = Pool::new(2, 1);
        let first = pool.begin(Language::Shell, None);
        assert_eq!(wanted_after(&pool).await, None);
        drop(first);
        assert_eq!(wanted_after(&pool).await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_of_none_or_one_that_is_closed_wants_nothing() {
        assert_eq!(wanted_after(&Pool::new(0, 2)).await, None);
        let pool = Pool::new(2, 2);
        pool.close();
        assert!(pool.wish().await.is_none());
    }
}
