//! A build that several callers may wait for: it goes on as long as one of them does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sandbox_schemas::image::Digest;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::environment::{InstallError, Obtained};
use crate::run::OutputSink;
use sandbox_schemas::wire::Stream;

/// Pieces of an installer's words that a waiter may be behind; what is older it misses. They are for people to follow.
const WORDS_KEPT: usize = 256;

type Outcome = Result<Obtained, InstallError>;

/// One build, as those who wait for it share it.
#[derive(Debug)]
struct Build {
    outcome: watch::Receiver<Option<Outcome>>,
    words: broadcast::Sender<String>,
    /// Ends the build when nobody waits any more.
    _wanted: DropGuard,
}

/// The builds that go on, by what they build.
#[derive(Debug, Default)]
pub(crate) struct Builds(Mutex<HashMap<Digest, Weak<Build>>>);

/// What a build says while it goes on.
#[derive(Debug, Clone)]
pub(crate) struct Words(broadcast::Sender<String>);

impl OutputSink for Words {
    fn output(&mut self, _: Stream, text: &str) {
        // Nobody need listen.
        let _ = self.0.send(text.to_owned());
    }
}

impl Builds {
    /// Joins the build of `key`, or begins it as a task; what it says goes to `sink`. The work is dropped, and all that it has begun
    /// with it, when the last who waits is.
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
        let (build, mut heard) = {
            let mut builds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            builds.retain(|_, build| build.strong_count() > 0);
            match builds.get(&key).and_then(Weak::upgrade) {
                Some(build) => {
                    let heard = build.words.subscribe();
                    (build, heard)
                }
                None => {
                    let (told, outcome) = watch::channel(None);
                    let (words, heard) = broadcast::channel(WORDS_KEPT);
                    let cancel = CancellationToken::new();
                    let work = work(Words(words.clone()));
                    let build = Arc::new(Build { outcome, words, _wanted: cancel.clone().drop_guard() });
                    builds.insert(key, Arc::downgrade(&build));
                    spawn(Box::pin(async move {
                        let outcome = cancel.run_until_cancelled(work).await;
                        told.send_replace(Some(outcome.unwrap_or(Err(InstallError::Cancelled))));
                    }));
                    (build, heard)
                }
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

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_ends_at_once() {
        let (builds, ended) = (Builds::default(), Arc::new(()));
        let held = ended.clone();
        let work = |_| async move {
            let _held = held;
            std::future::pending().await
        };
        let mut deaf = Deaf;
        let waiting = builds.join(KEY, &mut deaf, work, spawn);
        assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&ended), 1);
    }
}
