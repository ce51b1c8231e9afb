//! What goes out with a request, told of piece by piece: so that it is waited for as long as anything moves, however slow the line
//! is, and no longer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// Bytes that are given to the connection at once: few enough that they are gone in time where the line is slow.
const SLICE_BYTES: usize = 64 * 1024;

/// How far a request is.
#[derive(Debug)]
pub(crate) struct Outgoing {
    moved: Notify,
    /// Counts what has gone out, of all requests.
    sent: Arc<AtomicU64>,
}

impl Outgoing {
    pub(crate) fn new(sent: Arc<AtomicU64>) -> Arc<Outgoing> {
        Arc::new(Outgoing { moved: Notify::new(), sent })
    }

    /// Ends when nothing has moved for so long.
    pub(crate) async fn stalled(&self, patience: Duration) {
        while tokio::time::timeout(patience, self.moved.notified()).await.is_ok() {}
    }

    fn note(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved.notify_one();
    }
}

/// Puts [`Slices`] between a request's body and the connection. Comes after the body was hashed and signed, at every attempt.
#[derive(Debug)]
pub(crate) struct Slicing(pub(crate) Arc<Outgoing>);

impl Intercept for Slicing {
    fn name(&self) -> &'static str {
        "Slicing"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.request_mut().body_mut();
        let outgoing = self.0.clone();
        let sliced = std::mem::replace(body, SdkBody::taken()).map_preserve_contents(move |whole| {
            SdkBody::from_body_1_x(Slices { whole, open: Bytes::new(), outgoing: outgoing.clone() })
        });
        *body = sliced;
        Ok(())
    }
}

/// A body that comes in slices. What is in memory is not copied.
struct Slices {
    whole: SdkBody,
    /// What has been taken out of it, and is still to go.
    open: Bytes,
    outgoing: Arc<Outgoing>,
}

impl Body for Slices {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        while this.open.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.whole).poll_frame(cx)) else { return Poll::Ready(None) };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => this.open = data,
                Ok(Err(other)) => return Poll::Ready(Some(Ok(other))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let slice = this.open.split_to(this.open.len().min(SLICE_BYTES));
        this.outgoing.note(slice.len());
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_empty() && self.whole.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, open) = (Body::size_hint(&self.whole), self.open.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + open);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + open);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_in_slices_and_is_the_same() {
        let whole: Vec<u8> = (0..3 * SLICE_BYTES + 5).map(|at| (at % 251) as u8).collect();
        let sent = Arc::new(AtomicU64::new(0));
        let (outgoing, open) = (Outgoing::new(sent.clone()), Bytes::new());
        let mut body = Slices { whole: SdkBody::from(whole.clone()), open, outgoing };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut lengths = Vec::new();
        let mut found = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - found.len()) as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else { panic!("no frame") };
            let data = frame.into_data().unwrap();
            lengths.push(data.len());
            found.extend_from_slice(&data);
            assert_eq!(sent.load(Ordering::Relaxed), found.len() as u64);
        }
        assert!(found == whole);
        assert_eq!(lengths, [SLICE_BYTES, SLICE_BYTES, SLICE_BYTES, 5]);
    }
}
