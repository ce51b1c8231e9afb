//! The order in which a session does what it is asked: programs begin in the one in which they came, and find the files that came
//! before them.

use std::collections::HashMap;
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex as Lock};

use futures_util::FutureExt;
use futures_util::future::join_all;
use sandbox_schemas::language::Language;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::unconstrained;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::session::state::lock;

/// The right to use an interpreter that stays. It is passed on when nobody holds it any more.
pub(super) type Turn = Arc<OwnedMutexGuard<()>>;

/// Who waits in a session, and for what.
#[derive(Debug)]
pub(super) struct Queue {
    /// Whose turn it is to use an interpreter that stays.
    turns: HashMap<Language, Arc<Mutex<()>>>,
    /// Files that are on their way in; each is cancelled when it is there, or will not be.
    arriving: Lock<Vec<CancellationToken>>,
}

/// A place in the queue. It is kept whether its owner waits for it already or does something else first.
pub(crate) struct Queued {
    /// Of a program that has an interpreter of its own there is none.
    turn: Option<Coming>,
    /// Files that were sent before it: it may be about them.
    files: Vec<CancellationToken>,
}

/// A turn that comes, or has come already.
type Coming = Pin<Box<dyn Future<Output = OwnedMutexGuard<()>> + Send + Sync>>;

impl Queue {
    pub(super) fn new() -> Queue {
        let turns = Language::ALL.into_iter().map(|language| (language, Arc::default())).collect();
        Queue { turns, arriving: Lock::default() }
    }

    /// Takes the next place among the programs that share an interpreter; without one, only the files that were sent before are waited
    /// for.
    pub(super) fn line_up(&self, language: Option<Language>) -> Queued {
        let turn = language.and_then(|language| self.turns.get(&language)).cloned().map(|turns| -> Coming {
            let mut waiting: Coming = Box::pin(turns.lock_owned());
            // Only once it was asked does it wait among the others.
            match unconstrained(&mut waiting).now_or_never() {
                Some(turn) => Box::pin(ready(turn)),
                None => waiting,
            }
        });
        let mut arriving = lock(&self.arriving);
        arriving.retain(|file| !file.is_cancelled());
        Queued { turn, files: arriving.clone() }
    }

    /// A file is on its way until this is dropped.
    pub(super) fn arriving(&self) -> DropGuard {
        let file = CancellationToken::new();
        let mut arriving = lock(&self.arriving);
        arriving.retain(|file| !file.is_cancelled());
        arriving.push(file.clone());
        file.drop_guard()
    }
}

impl Queued {
    /// Waits until all that came before is out of the way.
    pub(super) async fn reached(self) -> Option<Turn> {
        join_all(self.files.iter().map(CancellationToken::cancelled)).await;
        Some(Arc::new(self.turn?.await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_kept_while_its_owner_does_something_else() {
        let queue = Queue::new();
        let first = queue.line_up(Some(Language::Python));
        let second = queue.line_up(Some(Language::Python));
        let mut third = Box::pin(queue.line_up(Some(Language::Python)).reached());
        assert!(queue.line_up(Some(Language::Shell)).reached().now_or_never().is_some());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none(), "it has overtaken the second");
        let turn = second.reached().await;
        assert!((&mut third).now_or_never().is_none());
        drop(turn);
        assert!(third.now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_leaves_the_queue_holds_nobody_up() {
        let queue = Queue::new();
        let first = queue.line_up(Some(Language::Python));
        drop(queue.line_up(Some(Language::Python)));
        let third = queue.line_up(Some(Language::Python));
        drop(first);
        assert!(third.reached().now_or_never().is_some_and(|turn| turn.is_some()));
    }

    #[tokio::test]
    async fn a_program_waits_for_the_files_that_were_sent_before_it() {
        let queue = Queue::new();
        let file = queue.arriving();
        let mut program = Box::pin(queue.line_up(None).reached());
        let later = queue.arriving();
        assert!((&mut program).now_or_never().is_none());
        drop(file);
        assert!(program.now_or_never().is_some());
        drop(later);
    }
}
