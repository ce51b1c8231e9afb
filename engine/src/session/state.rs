//! What is known of a session wherever it is held: whether it is used, whether it shall end, and why it has.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

/// Why a session is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Somebody has closed it.
    Closed,
    /// Nobody has used it for so long.
    Idle(Duration),
    /// The server ends.
    ServerEnds,
    /// Its VM has failed.
    Failed(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Closed => f.write_str("was closed"),
            Ended::Idle(time) => write!(f, "has ended: it was not used for {} s", time.as_secs()),
            Ended::ServerEnds => f.write_str("has ended with the server"),
            Ended::Failed(reason) => write!(f, "has ended: {reason}"),
        }
    }
}

/// What all who hold a session share.
#[derive(Debug)]
pub(super) struct State {
    idle_timeout: Duration,
    use_: Mutex<Use>,
    used: Notify,
    asked_to_end: watch::Sender<Option<Ended>>,
    ended: watch::Sender<Option<Ended>>,
}

#[derive(Debug)]
struct Use {
    /// Programs that run, and calls that wait for one.
    now: u64,
    last: Instant,
}

impl State {
    pub(super) fn new(idle_timeout: Duration) -> State {
        State {
            idle_timeout,
            use_: Mutex::new(Use { now: 0, last: Instant::now() }),
            used: Notify::new(),
            asked_to_end: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        }
    }

    /// Has the session end, unless it was asked to already.
    pub(super) fn ask_to_end(&self, why: Ended) {
        self.asked_to_end.send_if_modified(|asked| {
            let is_first = asked.is_none();
            asked.get_or_insert(why);
            is_first
        });
    }

    /// Waits until somebody has asked for its end, or nobody has used it for too long.
    pub(super) async fn is_to_end(&self) -> Ended {
        let mut asked = self.asked_to_end.subscribe();
        let asked = async {
            match asked.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or(Ended::Closed),
                Err(_) => Ended::Closed,
            }
        };
        tokio::select! {
            why = asked => why,
            () = self.is_idle_for_too_long() => Ended::Idle(self.idle_timeout),
        }
    }

    async fn is_idle_for_too_long(&self) {
        loop {
            let used = self.used.notified();
            let (now, last) = {
                let use_ = lock(&self.use_);
                (use_.now, use_.last)
            };
            match (now, (last + self.idle_timeout).checked_duration_since(Instant::now())) {
                (0, None) => return,
                (0, Some(left)) => tokio::select! {
                    () = tokio::time::sleep(left) => {}
                    () = used => {}
                },
                _ => used.await,
            }
        }
    }

    /// It has ended, and its VM is being destroyed.
    pub(super) fn end(&self, why: Ended) {
        self.ended.send_replace(Some(why));
    }

    /// Why it has ended, if it has.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits for its end.
    pub(super) async fn has_ended(&self) -> Ended {
        match self.ended.subscribe().wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Ended::Closed),
            Err(_) => Ended::Closed,
        }
    }

    /// It is used until this is dropped.
    pub(super) fn begin_use(self: &Arc<State>) -> InUse {
        lock(&self.use_).now += 1;
        InUse(self.clone())
    }

    /// Who uses it now, and since when nobody has.
    pub(super) fn in_use(&self) -> (u64, Duration) {
        let use_ = lock(&self.use_);
        (use_.now, if use_.now > 0 { Duration::ZERO } else { use_.last.elapsed() })
    }
}

/// A session is used.
#[derive(Debug)]
pub(super) struct InUse(Arc<State>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut use_ = lock(&self.0.use_);
        use_.now -= 1;
        use_.last = Instant::now();
        drop(use_);
        self.0.used.notify_one();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_by_itself_when_nobody_uses_it() {
        let state = Arc::new(State::new(Duration::from_millis(50)));
        let in_use = state.begin_use();
        assert!(tokio::time::timeout(Duration::from_millis(200), state.is_to_end()).await.is_err());
        drop(in_use);
        let (begun, again) = (Instant::now(), state.begin_use());
        drop(again);
        assert_eq!(state.is_to_end().await, Ended::Idle(Duration::from_millis(50)));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn the_first_reason_to_end_counts() {
        let state = State::new(Duration::from_secs(100));
        state.ask_to_end(Ended::ServerEnds);
        state.ask_to_end(Ended::Closed);
        assert_eq!(state.is_to_end().await, Ended::ServerEnds);
        assert_eq!(state.ended(), None);
        state.end(Ended::ServerEnds);
        assert_eq!(state.has_ended().await, Ended::ServerEnds);
    }
}
