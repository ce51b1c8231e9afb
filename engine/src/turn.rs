//! The right to build an entry of the cache, waited for without holding up the runtime.

use sandbox_store::{BuildLock, LOCK_POLL, Shelf, ShelfError, Turn};

/// Why the right cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("{0}")]
    Internal(#[from] tokio::task::JoinError),
}

/// Waits for the right to build entries of this name, but not for a process that has it and was stopped. Who does not want it any
/// more drops this.
pub(crate) async fn turn(shelf: &Shelf, name: &str) -> Result<BuildLock, TurnError> {
    let mut turn = Turn::new(shelf.clone(), name);
    let mut waits = false;
    loop {
        let (back, lock) = tokio::task::spawn_blocking(move || {
            let lock = turn.try_lock();
            (turn, lock)
        })
        .await?;
        if let Some(lock) = lock? {
            return Ok(lock);
        }
        if !waits {
            tracing::info!(name, "waiting for another server that builds the same");
            waits = true;
        }
        turn = back;
        tokio::time::sleep(LOCK_POLL).await;
    }
}
