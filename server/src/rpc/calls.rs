//! The calls that run, by the client's id: each can be cancelled until its answer is on its way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::rpc::message::RequestKey;

/// What runs now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Live>>);

#[derive(Debug, Default)]
struct Live {
    entries: HashMap<RequestKey, Entry>,
    /// Calls that were entered so far.
    count: u64,
}

#[derive(Debug)]
struct Entry {
    /// Which of all calls it is.
    number: u64,
    kind: Kind,
    cancel: CancellationToken,
}

/// What becomes of a call when the client has nothing more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A question: its answer takes no time, and is given.
    Question,
    /// A tool's run: it can take minutes, and is cancelled.
    Run,
}

/// A call's entry, taken out by its drop. That must come before its answer goes out: a client may use the id again as soon
/// as it has read the answer.
#[derive(Debug)]
pub(crate) struct LiveCall {
    calls: Calls,
    key: RequestKey,
    number: u64,
    pub(crate) cancel: CancellationToken,
}

impl Calls {
    /// Enters a call; `None` when one of that id still runs. One that was cancelled has no answer to come, so that its id is free
    /// from then on, however long its end takes.
    pub(crate) fn enter(&self, key: RequestKey, kind: Kind) -> Option<LiveCall> {
        let mut live = self.lock();
        if live.entries.get(&key).is_some_and(|entry| !entry.cancel.is_cancelled()) {
            return None;
        }
        let cancel = CancellationToken::new();
        live.count += 1;
        let number = live.count;
        live.entries.insert(key.clone(), Entry { number, kind, cancel: cancel.clone() });
        Some(LiveCall { calls: self.clone(), key, number, cancel })
    }

    /// Cancels a call; an id that is unknown, or late, is ignored.
    pub(crate) fn cancel(&self, key: &RequestKey) {
        if let Some(entry) = self.lock().entries.get(key) {
            entry.cancel.cancel();
        }
    }

    /// Cancels what takes time.
    pub(crate) fn cancel_runs(&self) {
        self.lock().entries.values().filter(|entry| entry.kind == Kind::Run).for_each(|entry| entry.cancel.cancel());
    }

    pub(crate) fn cancel_all(&self) {
        self.lock().entries.values().for_each(|entry| entry.cancel.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LiveCall {
    fn drop(&mut self) {
        let mut live = self.calls.lock();
        // A later call may have the id by now.
        if live.entries.get(&self.key).is_some_and(|entry| entry.number == self.number) {
            live.entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_once_its_call_is_gone() {
        let calls = Calls::default();
        let key = || RequestKey::Number("1".into());
        let call = calls.enter(key(), Kind::Run).unwrap();
        assert!(calls.enter(key(), Kind::Run).is_none());
        calls.cancel(&RequestKey::Text("1".into()));
        assert!(!call.cancel.is_cancelled());
        calls.cancel(&key());
        assert!(call.cancel.is_cancelled());
        drop(call);
        calls.cancel(&key());
        assert!(!calls.enter(key(), Kind::Run).unwrap().cancel.is_cancelled());
    }

    #[test]
    fn the_id_of_a_cancelled_call_is_free_before_that_has_ended() {
        let calls = Calls::default();
        let key = || RequestKey::Number("1".into());
        let first = calls.enter(key(), Kind::Run).unwrap();
        calls.cancel(&key());
        let second = calls.enter(key(), Kind::Run).unwrap();
        drop(first);
        assert!(calls.enter(key(), Kind::Run).is_none(), "the end of the first has taken the second's entry");
        calls.cancel(&key());
        assert!(second.cancel.is_cancelled());
    }

    #[test]
    fn runs_can_be_cancelled_apart_from_questions() {
        let calls = Calls::default();
        let key = |text: &str| RequestKey::Text(text.into());
        let run = calls.enter(key("run"), Kind::Run).unwrap();
        let question = calls.enter(key("question"), Kind::Question).unwrap();
        calls.cancel_runs();
        assert!(run.cancel.is_cancelled() && !question.cancel.is_cancelled());
        calls.cancel_all();
        assert!(question.cancel.is_cancelled());
    }
}
