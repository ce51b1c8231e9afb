//! What waits for being sent. Bounded, and sent by threads that get what time nobody else wants, so that no run is slower for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sandbox_store::EntryId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Entries that wait. What is offered beyond that is offered again when it is next used.
const WAITING_MAX: usize = 64;

/// The entries that wait for being sent, or are being sent.
#[derive(Debug)]
pub(crate) struct Queue {
    /// By what it is, so that none is in it twice.
    pending: Mutex<BTreeMap<String, PathBuf>>,
    changed: Condvar,
    /// As many permits as entries are sent at once.
    pub(crate) turns: Semaphore,
    /// Cancelled when nothing more is to be sent.
    pub(crate) closing: CancellationToken,
}

/// An entry that is in the queue until this is dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    queue: Arc<Queue>,
    id: String,
}

impl Queue {
    pub(crate) fn new(at_once: usize) -> Arc<Queue> {
        Arc::new(Queue {
            pending: Mutex::default(),
            changed: Condvar::new(),
            turns: Semaphore::new(at_once),
            closing: CancellationToken::new(),
        })
    }

    /// Takes an entry in, unless it is there, or nothing more is taken.
    pub(crate) fn enter(self: &Arc<Queue>, entry: &EntryId, folder: &Path) -> Option<Pending> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let id = entry.to_string();
        if self.closing.is_cancelled() || pending.len() >= WAITING_MAX || pending.contains_key(&id) {
            return None;
        }
        pending.insert(id.clone(), folder.to_owned());
        Some(Pending { queue: self.clone(), id })
    }

    pub(crate) fn len(&self) -> usize {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until nothing is left, at most so long. Whether nothing is.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while !pending.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.queue.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::image::Digest;
    use sandbox_store::Kind;

    #[test]
    fn an_entry_is_in_it_once_and_there_is_an_end_to_them() {
        let queue = Queue::new(1);
        let enter = |key: usize| {
            let entry = EntryId { kind: Kind::Image, name: format!("n{key}"), key: Digest([7; 32]) };
            queue.enter(&entry, Path::new("/entry"))
        };
        assert!(queue.wait(Duration::ZERO));
        let first = enter(0).unwrap();
        assert!(enter(0).is_none() && !queue.wait(Duration::from_millis(1)));
        let rest: Vec<_> = (1..WAITING_MAX).map(|key| enter(key).unwrap()).collect();
        assert!(enter(WAITING_MAX).is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| queue.wait(Duration::from_secs(60)));
            drop((first, rest));
            assert!(waits.join().unwrap());
        });
        assert!(enter(0).is_some());
        queue.closing.cancel();
        assert!(enter(0).is_none() && queue.len() == 0);
    }
}
