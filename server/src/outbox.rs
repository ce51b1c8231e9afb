//! What goes out: one task alone writes to stdout. The channel to it is bounded, so that a client which does not read
//! slows its own calls down and fills no memory.

use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::framing::Framing;

/// Messages that wait for the client to read. A message is at most some megabytes.
const CAPACITY: usize = 16;

/// The sending end; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    messages: Sender<String>,
    framing: Arc<OnceLock<Framing>>,
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Writer {
    messages: Receiver<String>,
    framing: Arc<OnceLock<Framing>>,
}

/// Both ends.
pub(crate) fn outbox() -> (Outbox, Writer) {
    let (sender, messages) = mpsc::channel(CAPACITY);
    let framing = Arc::new(OnceLock::new());
    (Outbox { messages: sender, framing: framing.clone() }, Writer { messages, framing })
}

impl Outbox {
    /// Answers are framed as the client's first message was.
    pub(crate) fn set_framing(&self, framing: Framing) {
        let _ = self.framing.set(framing);
    }

    /// Sends a message, waiting for room. One that finds stdout closed is lost, as its reader is.
    pub(crate) async fn send(&self, message: String) {
        let _ = self.messages.send(message).await;
    }

    /// Sends a message if there is room now.
    pub(crate) fn try_send(&self, message: String) -> bool {
        self.messages.try_send(message).is_ok()
    }
}

impl Writer {
    #[cfg(test)]
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.messages.recv().await
    }

    /// Writes until every sender is gone, or until the client does not take it any more.
    pub(crate) async fn write_to(mut self, mut out: impl AsyncWrite + Unpin) -> std::io::Result<()> {
        while let Some(message) = self.messages.recv().await {
            let framing = self.framing.get().copied().unwrap_or(Framing::Lines);
            out.write_all(&framing.frame(message.as_bytes())).await?;
            out.flush().await?;
        }
        Ok(())
    }
}
