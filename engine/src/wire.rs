//! The host end of a VM's wire: whole frames, with what a guest may make us hold bounded.

use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::StreamExt;
use sandbox_schemas::limits::GUEST_FRAME_MAX_BYTES;
use sandbox_schemas::wire::{self, GuestFrame, PREFIX_BYTES};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use crate::error::VmError;

/// The host end.
#[derive(Debug)]
pub(crate) struct Wire {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    writer: OwnedWriteHalf,
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
        Ok((Wire { frames: FramedRead::new(reader, codec), writer }, theirs))
    }

    /// Sends whole frames. Not cancel-safe: a caller that gives up in the middle gives up the VM.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> Result<(), VmError> {
        self.writer.write_all(frames).await.map_err(|error| VmError::Ended(format!(" (writing to it: {error})")))
    }

    /// The next frame; an error when the guest is gone or talks nonsense. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<GuestFrame, VmError> {
        let body: BytesMut = match self.frames.next().await {
            Some(Ok(body)) => body,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(VmError::Protocol(error.to_string()));
            }
            Some(Err(error)) => return Err(VmError::Ended(format!(" (reading from it: {error})"))),
            None => return Err(VmError::Ended(String::new())),
        };
        wire::decode(&body).map_err(|error| VmError::Protocol(error.to_string()))
    }
}

/// Two connected sockets: ours, and one for QEMU, which has no path and so no other who could connect.
pub(crate) fn socket_pair() -> std::io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}
