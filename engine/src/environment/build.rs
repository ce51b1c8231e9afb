//! A build that several callers may wait for. Clients give up sooner than slow lines do: what nobody waits for any more goes on for
//! some minutes, and who asks again waits for the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_schemas::image::Digest;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::environment::{InstallError, Obtained};
use crate::run::OutputSink;
use sandbox_schemas::wire::Stream;

/// Pieces of an installer's words that a waiter may be behind; what is older it misses. They are for people to follow.
const WORDS_KEPT: usize = 256;

/// For how long a build goes on that nobody waits for: it takes a VM's place from others. 100 MB come in as long by 2 Mbit/s.
const ABANDONED_FOR: Duration = Duration::from_secs(10 * 60);

/// How many such builds go on at once; any other ends with its last waiter.
const ABANDONED_MAX: usize = 1;

type Outcome = Result<Obtained, InstallError>;

/// One build, as those who wait for it share it.
#[derive(Debug, Clone)]
struct Build {
    outcome: watch::Receiver<Option<Outcome>>,
    words: broadcast::Sender<String>,
    /// How many wait.
    waiters: watch::Sender<usize>,
}

/// The builds that go on, by what they build.
#[derive(Debug)]
pub(crate) struct Builds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    builds: Mutex<HashMap<Digest, Build>>,
    abandoned: Semaphore,
    ending: CancellationToken,
}

/// What a build says while it goes on.
#[derive(Debug, Clone)]
pub(crate) struct Words(broadcast::Sender<String>);

impl OutputSink for Words {
    fn output(&mut self, _: Stream, text: &str) {
        // Nobody need listen.
        let _ = self.0.send(text.to_owned());
    }
}

/// Somebody who waits.
struct Waiter(watch::Sender<usize>);

impl Waiter {
    fn of(build: &Build) -> Waiter {
        build.waiters.send_modify(|count| *count += 1);
        Waiter(build.waiters.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Default for Builds {
    fn default() -> Builds {
        let (builds, ending) = (Mutex::default(), CancellationToken::new());
        Builds(Arc::new(Inner { builds, abandoned: Semaphore::new(ABANDONED_MAX), ending }))
    }
}

impl Builds {
    /// Joins the build of `key`, or begins it as a task; what it says goes to `sink`.
    pub(crate) async fn join<W>(
        &self,
        key: Digest,
        sink: &mut dyn OutputSink,
        work: impl FnOnce(Words) -> W,
        spawn: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Outcome
    where
        W: Future<Output = Outcome> + Send + 'static,
    {
        let (build, mut heard, _waiter) = {
            let mut builds = self.0.lock();
            // One whose task is gone will come to nothing.
            let known = builds.get(&key).filter(|build| build.outcome.has_changed().is_ok()).cloned();
            if let Some(build) = known {
                let (heard, waiter) = (build.words.subscribe(), Waiter::of(&build));
                (build, heard, waiter)
            } else {
                let (told, outcome) = watch::channel(None);
                let (words, heard) = broadcast::channel(WORDS_KEPT);
                let (waiters, count) = watch::channel(0);
                let work = work(Words(words.clone()));
                let build = Build { outcome, words, waiters };
                let waiter = Waiter::of(&build);
                builds.insert(key, build.clone());
                let inner = self.0.clone();
                spawn(Box::pin(async move {
                    let outcome = inner.see_to_it(work, count).await;
                    // Whoever asks from now on begins anew, or finds what was made.
                    inner.lock().remove(&key);
                    told.send_replace(Some(outcome));
                }));
                (build, heard, waiter)
            }
        };
        let mut outcome = build.outcome.clone();
        loop {
            tokio::select! {
                biased;
                said = heard.recv() => match said {
                    Ok(text) => sink.output(Stream::Stderr, &text),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => {}
                },
                outcome = outcome.wait_for(Option::is_some) => return match outcome {
                    Ok(outcome) => outcome.clone().unwrap_or(Err(InstallError::Cancelled)),
                    Err(_) => Err(InstallError::internal("the installation ended without a result")),
                },
            }
        }
    }

    /// Ends what goes on without anybody who waits, now and from now on.
    pub(crate) fn end(&self) {
        self.0.ending.cancel();
    }
}

impl Inner {
    /// Does the work as long as somebody waits, and for some time after that. A drop of it is the end of all that it has begun.
    async fn see_to_it(&self, work: impl Future<Output = Outcome>, mut waiters: watch::Receiver<usize>) -> Outcome {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                _ = waiters.wait_for(|count| *count == 0) => {}
            }
            let Ok(_permit) = self.abandoned.try_acquire() else { return Err(InstallError::Cancelled) };
            tracing::info!("nobody waits for an installation any more; it goes on for some minutes");
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = self.ending.cancelled() => return Err(InstallError::Cancelled),
                () = tokio::time::sleep(ABANDONED_FOR) => return Err(InstallError::Cancelled),
                _ = waiters.wait_for(|count| *count > 0) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Build>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    struct Deaf;

    impl OutputSink for Deaf {
        fn output(&mut self, _: Stream, _: &str) {}
    }

    struct Heard(String);

    impl OutputSink for Heard {
        fn output(&mut self, _: Stream, text: &str) {
            self.0.push_str(text);
        }
    }

    const KEY: Digest = Digest([1; 32]);

    fn obtained() -> Obtained {
        Obtained::cached(Environment::for_tests(1))
    }

    fn spawn(work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        drop(tokio::spawn(work));
    }

    #[tokio::test(start_paused = true)]
    async fn two_share_one_build_and_it_survives_the_end_of_one() {
        let (builds, begun) = (Builds::default(), Arc::new(AtomicUsize::new(0)));
        let work = |mut words: Words| {
            let begun = begun.clone();
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                words.output(Stream::Stdout, "resolving ");
                tokio::time::sleep(Duration::from_secs(2)).await;
                words.output(Stream::Stdout, "done");
                Ok(obtained())
            }
        };
        let mut heard = Heard(String::new());
        let mut deaf = Deaf;
        let first = tokio::time::timeout(Duration::from_secs(1), builds.join(KEY, &mut deaf, work, spawn));
        let (first, second) = tokio::join!(first, builds.join(KEY, &mut heard, work, spawn));
        assert!(first.is_err() && second.is_ok());
        assert_eq!((begun.load(Ordering::Relaxed), heard.0.as_str()), (1, "resolving done"));
        builds.join(KEY, &mut Deaf, work, spawn).await.unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 2, "what is done is not shared");
    }

    /// Begins a build that takes `time`, is left alone after a second, and tells whether it still goes on by how often it is held.
    async fn abandoned(builds: &Builds, key: Digest, time: Duration) -> Arc<()> {
        let held = Arc::new(());
        let inner = held.clone();
        let work = |_| async move {
            let _held = inner;
            tokio::time::sleep(time).await;
            Ok(obtained())
        };
        let mut deaf = Deaf;
        let waiting = builds.join(key, &mut deaf, work, spawn);
        assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        held
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_goes_on_and_whoever_asks_again_waits_for_the_same() {
        let builds = Builds::default();
        let held = abandoned(&builds, KEY, Duration::from_secs(100)).await;
        assert_eq!(Arc::strong_count(&held), 2, "it goes on");
        let begun = tokio::time::Instant::now();
        let other = |_| async { panic!("it is begun a second time") };
        builds.join(KEY, &mut Deaf, other, spawn).await.unwrap();
        assert_eq!((begun.elapsed().as_secs(), Arc::strong_count(&held)), (98, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_goes_on_for_some_minutes_and_none_after_the_end() {
        let builds = Builds::default();
        let first = abandoned(&builds, KEY, Duration::MAX).await;
        let second = abandoned(&builds, Digest([2; 32]), Duration::MAX).await;
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 1));
        tokio::time::sleep(ABANDONED_FOR).await;
        assert_eq!(Arc::strong_count(&first), 1, "it has gone on for long enough");
        let third = abandoned(&builds, KEY, Duration::MAX).await;
        assert_eq!(Arc::strong_count(&third), 2);
        builds.end();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&third), 1);
        let fourth = abandoned(&builds, KEY, Duration::MAX).await;
        assert_eq!(Arc::strong_count(&fourth), 1);
    }
}
