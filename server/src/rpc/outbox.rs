//! What goes out: one task alone writes to stdout. The channel to it is bounded, so that a client which does not read
//! slows its own calls down and fills no memory.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender, WeakSender};

use crate::rpc::delivery::{Delivery, Parcel};
use crate::rpc::framing::Framing;

/// Messages that wait for the client to read. A message is at most some megabytes.
const CAPACITY: usize = 16;

/// The sending end; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    messages: Sender<Outgoing>,
    framing: Arc<OnceLock<Framing>>,
}

/// A sending end that does not keep the writer waiting for more.
#[derive(Debug)]
pub(crate) struct WeakOutbox {
    messages: WeakSender<Outgoing>,
    framing: Arc<OnceLock<Framing>>,
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Writer {
    messages: Receiver<Outgoing>,
    framing: Arc<OnceLock<Framing>>,
}

/// A message, and what tells its sender how far it has come, if that is of interest.
#[derive(Debug)]
struct Outgoing {
    text: String,
    parcel: Option<Parcel>,
}

/// Both ends.
pub(crate) fn outbox() -> (Outbox, Writer) {
    let (sender, messages) = mpsc::channel(CAPACITY);
    let framing = Arc::new(OnceLock::new());
    (Outbox { messages: sender, framing: framing.clone() }, Writer { messages, framing })
}

impl Outbox {
    pub(crate) fn downgrade(&self) -> WeakOutbox {
        WeakOutbox { messages: self.messages.downgrade(), framing: self.framing.clone() }
    }

    /// Answers are framed as the client's first message was.
    pub(crate) fn set_framing(&self, framing: Framing) {
        let _ = self.framing.set(framing);
    }

    /// Sends a message, waiting for room. One that finds stdout closed is lost, as its reader is.
    pub(crate) async fn send(&self, text: String) {
        let _ = self.messages.send(Outgoing { text, parcel: None }).await;
    }

    /// Sends a message if there is room now.
    pub(crate) fn try_send(&self, text: String) -> bool {
        self.messages.try_send(Outgoing { text, parcel: None }).is_ok()
    }

    /// The same, for a message that can be called back while it waits.
    pub(crate) fn try_send_revocable(&self, text: String) -> Option<Delivery> {
        let (delivery, parcel) = Delivery::new();
        self.messages.try_send(Outgoing { text, parcel: Some(parcel) }).ok().map(|()| delivery)
    }
}

impl WeakOutbox {
    /// `None` once nobody else sends any more.
    pub(crate) fn upgrade(&self) -> Option<Outbox> {
        Some(Outbox { messages: self.messages.upgrade()?, framing: self.framing.clone() })
    }
}

impl Writer {
    /// Writes until every sender is gone, or until the client does not read any more, which is its right. Any other failure
    /// is one: answers were lost that somebody waits for.
    pub(crate) async fn write_to(mut self, mut out: impl AsyncWrite + Unpin) -> io::Result<()> {
        while let Some(message) = self.messages.recv().await {
            if message.parcel.as_ref().is_some_and(|parcel| !parcel.begin()) {
                continue;
            }
            let framing = self.framing.get().copied().unwrap_or(Framing::Lines);
            match write(&mut out, &framing.frame(message.text.as_bytes())).await {
                Err(fault) if fault.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            // A parcel that is dropped after it was begun has been written: now.
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

    #[tokio::test]
    async fn what_was_called_back_is_not_written() {
        let (outbox, writer) = outbox();
        let first = outbox.try_send_revocable("1".into()).unwrap();
        let second = outbox.try_send_revocable("2".into()).unwrap();
        outbox.send("3".into()).await;
        assert_eq!(first.settle().await, None);
        drop(outbox);
        let mut written = Vec::new();
        writer.write_to(&mut written).await.unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "2\n3\n");
        assert!(second.settle().await.is_some());
    }

    #[tokio::test]
    async fn what_a_gone_writer_leaves_keeps_nobody_waiting() {
        let (outbox, writer) = outbox();
        let delivery = outbox.try_send_revocable("1".into()).unwrap();
        drop(writer);
        assert!(!delivery.is_waiting());
        assert_eq!(delivery.settle().await, None);
    }
}
