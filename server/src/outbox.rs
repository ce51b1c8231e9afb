//! What goes out: one task alone writes to stdout. The channel to it is bounded, so that a client which does not read
//! slows its own calls down and fills no memory.

use std::io;
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

    /// Writes until every sender is gone, or until the client does not read any more, which is its right. Any other failure
    /// is one: answers were lost that somebody waits for.
    pub(crate) async fn write_to(mut self, mut out: impl AsyncWrite + Unpin) -> io::Result<()> {
        while let Some(message) = self.messages.recv().await {
            let framing = self.framing.get().copied().unwrap_or(Framing::Lines);
            match write(&mut out, &framing.frame(message.as_bytes())).await {
                Err(fault) if fault.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
        Ok(())
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    out.write_all(frame).await?;
    out.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// A stdout that cannot be written.
    struct Broken(io::ErrorKind);

    impl AsyncWrite for Broken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(self.0.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_reader_that_left_is_no_failure_and_all_else_is() {
        for (kind, is_failure) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
            let (outbox, writer) = outbox();
            outbox.send("{}".into()).await;
            assert_eq!(writer.write_to(Broken(kind)).await.is_err(), is_failure, "{kind}");
        }
    }
}
