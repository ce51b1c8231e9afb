//! The host end of a VM's wire: whole frames, with what a guest may make us hold bounded.

use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::StreamExt;
use sandbox_schemas::limits::GUEST_FRAME_MAX_BYTES;
use sandbox_schemas::wire::{self, GuestFrame, HostFrame, PREFIX_BYTES};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use crate::error::VmError;

/// A frame as it goes over the wire.
pub(crate) fn encode(frame: &HostFrame) -> Result<Vec<u8>, VmError> {
    wire::encode(frame).map_err(|error| VmError::Protocol(error.to_string()))
}

/// The host end.
#[derive(Debug)]
pub(crate) struct Wire {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    writer: OwnedWriteHalf,
    /// What was posted and has not been written.
    outbox: BytesMut,
}

impl Wire {
    /// Both ends of a new wire: ours, and the one that QEMU gets.
    pub(crate) fn pair() -> Result<(Wire, StdUnixStream), VmError> {
        let (ours, theirs) = socket_pair().map_err(|error| VmError::Spawn(format!("creating the wire: {error}")))?;
        let (reader, writer) = ours.into_split();
        let codec = LengthDelimitedCodec::builder()
            .little_endian()
            .length_field_length(PREFIX_BYTES)
            .max_frame_length(GUEST_FRAME_MAX_BYTES)
            .new_codec();
        Ok((Wire { frames: FramedRead::new(reader, codec), writer, outbox: BytesMut::new() }, theirs))
    }

    /// Sends whole frames. Not cancel-safe: a caller that gives up in the middle gives up the VM. Only while the guest says
    /// nothing of its own accord: it does not read while it waits for us to.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> Result<(), VmError> {
        let written = async {
            // The rest of a frame may be among it.
            self.writer.write_all_buf(&mut self.outbox).await?;
            self.writer.write_all(frames).await
        };
        written.await.map_err(|error| VmError::Ended(format!(" (writing to it: {error})")))
    }

    /// Leaves whole frames to be sent while frames are received.
    pub(crate) fn post(&mut self, frames: &[u8]) {
        self.outbox.extend_from_slice(frames);
    }

    /// Whether all that was posted has been written.
    pub(crate) fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// The next frame; an error when the guest is gone or talks nonsense. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<GuestFrame, VmError> {
        loop {
            if let Some(frame) = self.turn(true).await? {
                return Ok(frame);
            }
        }
    }

    /// What happens next: a frame, if one may come, or the end of what was posted. Cancel-safe.
    pub(crate) async fn turn(&mut self, may_receive: bool) -> Result<Option<GuestFrame>, VmError> {
        let Wire { frames, writer, outbox } = self;
        loop {
            tokio::select! {
                written = writer.write(outbox), if !outbox.is_empty() => {
                    match written {
                        Ok(length) => outbox.advance(length),
                        // Nobody reads any more. What can still be read says why, or is the result.
                        Err(_) => outbox.clear(),
                    }
                    if outbox.is_empty() {
                        return Ok(None);
                    }
                }
                frame = frames.next(), if may_receive => return decode(frame).map(Some),
                else => std::future::pending().await,
            }
        }
    }
}

fn decode(body: Option<std::io::Result<BytesMut>>) -> Result<GuestFrame, VmError> {
    let body = match body {
        Some(Ok(body)) => body,
        Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(VmError::Protocol(error.to_string()));
        }
        Some(Err(error)) => return Err(VmError::Ended(format!(" (reading from it: {error})"))),
        None => return Err(VmError::Ended(String::new())),
    };
    match wire::decode(&body).map_err(|error| VmError::Protocol(error.to_string()))? {
        // Nobody has a reason to send one, and one after the other they would cost the host its processor and count for nothing.
        GuestFrame::Output { bytes, .. } | GuestFrame::Tunnel(bytes) if bytes.is_empty() => {
            Err(VmError::Protocol("an empty frame".into()))
        }
        frame => Ok(frame),
    }
}

/// Two connected sockets: ours, and one for QEMU, which has no path and so no other who could connect.
pub(crate) fn socket_pair() -> std::io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// What a guest says although something else was to come.
pub(crate) fn unexpected(expected: &str, found: &GuestFrame) -> VmError {
    let found = match found {
        GuestFrame::Ready => "ready",
        GuestFrame::Started(_) => "started",
        GuestFrame::Output { .. } => "output",
        GuestFrame::Taken { .. } => "that input was taken",
        GuestFrame::Listed { .. } => "what is in a folder",
        GuestFrame::Transferred { .. } => "that a file is whole",
        GuestFrame::Finished(_) => "finished",
        GuestFrame::Failed { .. } => "failed",
        GuestFrame::Tunnel(_) => "a tunnel's bytes",
    };
    VmError::Protocol(format!("{expected} was expected, {found} came"))
}
