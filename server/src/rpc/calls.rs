//! The calls that run, by the client's id: each can be cancelled until its answer is on its way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::rpc::message::RequestKey;

/// What runs now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<HashMap<RequestKey, Entry>>>);

#[derive(Debug)]
struct Entry {
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
    pub(crate) cancel: CancellationToken,
}

impl Calls {
    /// Enters a call; `None` when one of that id still runs.
    pub(crate) fn enter(&self, key: RequestKey, kind: Kind) -> Option<LiveCall> {
        let mut calls = self.lock();
        if calls.contains_key(&key) {
            return None;
        }
        let cancel = CancellationToken::new();
        calls.insert(key.clone(), Entry { kind, cancel: cancel.clone() });
        Some(LiveCall { calls: self.clone(), key, cancel })
    }

    /// Cancels a call; an id that is unknown, or late, is ignored.
    pub(crate) fn cancel(&self, key: &RequestKey) {
        if let Some(entry) = self.lock().get(key) {
            entry.cancel.cancel();
        }
    }

    /// Cancels what takes time.
    pub(crate) fn cancel_runs(&self) {
        self.lock().values().filter(|entry| entry.kind == Kind::Run).for_each(|entry| entry.cancel.cancel());
    }

    pub(crate) fn cancel_all(&self) {
        self.lock().values().for_each(|entry| entry.cancel.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestKey, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LiveCall {
    fn drop(&mut self) {
        self.calls.lock().remove(&self.key);
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
