//! A message on its way out, seen from both ends: its sender can call it back until it is being written, and learns when
//! it was. So a call that has ended, or was cancelled, leaves nothing in the queue that its client did not expect any more.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// The sender's end.
#[derive(Debug)]
pub(crate) struct Delivery(Arc<watch::Sender<Stage>>);

/// The writer's end. To drop it is to be done with the message.
#[derive(Debug)]
pub(crate) struct Parcel(Arc<watch::Sender<Stage>>);

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Writing,
    Written(Instant),
    /// Called back, or never to be written.
    Revoked,
}

impl Delivery {
    pub(crate) fn new() -> (Delivery, Parcel) {
        let stage = Arc::new(watch::Sender::new(Stage::Waiting));
        (Delivery(stage.clone()), Parcel(stage))
    }

    /// Whether the message is not with the client yet.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(*self.0.borrow(), Stage::Waiting | Stage::Writing)
    }

    /// Calls the message back. If it is too late for that, waits for its end; returns when that was.
    pub(crate) async fn settle(&self) -> Option<Instant> {
        self.0.send_if_modified(|stage| advance(stage, Stage::Waiting, Stage::Revoked));
        let mut stage = self.0.subscribe();
        // Not closed while we hold a sender.
        let ended = stage.wait_for(|stage| *stage != Stage::Writing).await.ok()?;
        if let Stage::Written(at) = *ended { Some(at) } else { None }
    }
}

impl Parcel {
    /// Whether the message is still to be written; it cannot be called back from then on.
    pub(crate) fn begin(&self) -> bool {
        self.0.send_if_modified(|stage| advance(stage, Stage::Waiting, Stage::Writing))
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.0.send_if_modified(|stage| {
            advance(stage, Stage::Writing, Stage::Written(Instant::now()))
                || advance(stage, Stage::Waiting, Stage::Revoked)
        });
    }
}

fn advance(stage: &mut Stage, from: Stage, to: Stage) -> bool {
    let is_due = *stage == from;
    if is_due {
        *stage = to;
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_is_being_written_is_waited_for() {
        let (delivery, parcel) = Delivery::new();
        assert!(parcel.begin() && !parcel.begin());
        let writing = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(parcel);
        });
        let begun = Instant::now();
        assert!(delivery.is_waiting());
        assert_eq!(delivery.settle().await, Some(begun + Duration::from_secs(3)));
        assert!(!delivery.is_waiting());
        writing.await.unwrap();
    }
}
