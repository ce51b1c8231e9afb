//! The host end of a VM's tunnel: the connections that a guest opens, each a stream for a handler.
//!
//! It has no task of its own: it advances while its VM is listened to ([`Tunnel::receive`]), beside the frames that are not
//! its own, and ends with it. Only the handlers run as tasks, which end with the tunnel.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use sandbox_schemas::limits::{
    TARGET_MAX_BYTES, TUNNEL_CHUNK_MAX_BYTES, TUNNEL_SPLIT_BYTES, TUNNEL_STREAMS_LIMIT, TUNNEL_WINDOW_MAX_BYTES,
};
use sandbox_schemas::tunnel::Target;
use sandbox_schemas::wire::{self, GuestFrame, HostFrame, PREFIX_BYTES};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split,
};
use tokio::task::JoinSet;
use tokio_util::bytes::{Buf, Bytes};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode, Stream};

use crate::error::VmError;
use crate::wire::{Wire, encode};

/// Serves what the programs of a VM connect to. Shared by the VMs that it is given to.
pub trait TunnelHandler: Send + Sync + 'static {
    /// Serves one connection. It is dropped, wherever it is, when the VM ends. It should end when the stream does: what it
    /// goes on with counts against the connections that the guest may have.
    fn serve(&self, target: Target, stream: TunnelStream) -> BoxFuture<'static, ()>;
}

impl<F, S> TunnelHandler for F
where
    F: Fn(Target, TunnelStream) -> S + Send + Sync + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    fn serve(&self, target: Target, stream: TunnelStream) -> BoxFuture<'static, ()> {
        Box::pin(self(target, stream))
    }
}

/// A connection that a program in a VM has opened. Untrusted. To drop it without `shutdown` resets it.
#[derive(Debug)]
pub struct TunnelStream(Compat<Stream>);

/// The host end of a tunnel.
pub(crate) struct Tunnel {
    handler: Arc<dyn TunnelHandler>,
    connection: Connection<Compat<DuplexStream>>,
    /// The other end of the pipe that the connection runs on.
    from_connection: ReadHalf<DuplexStream>,
    to_connection: WriteHalf<DuplexStream>,
    /// What the guest has sent and the connection has not taken. Until it has, no further frame is received.
    inbound: Bytes,
    /// Where the next chunk for the guest is read to.
    chunk: Box<[u8]>,
    verdicts: Verdicts,
    handlers: JoinSet<Result<(), VmError>>,
}

impl Tunnel {
    pub(crate) fn new(handler: Arc<dyn TunnelHandler>) -> Tunnel {
        let (theirs, ours) = duplex(TUNNEL_CHUNK_MAX_BYTES);
        let (from_connection, to_connection) = split(ours);
        Tunnel {
            handler,
            connection: Connection::new(theirs.compat(), config(), Mode::Server),
            from_connection,
            to_connection,
            inbound: Bytes::new(),
            chunk: vec![0; TUNNEL_CHUNK_MAX_BYTES].into(),
            verdicts: Verdicts::default(),
            handlers: JoinSet::new(),
        }
    }

    /// The next frame that is not the tunnel's; until it comes, the tunnel's are served. Cancel-safe.
    pub(crate) async fn receive(&mut self, wire: &mut Wire) -> Result<GuestFrame, VmError> {
        let Tunnel { handler, connection, from_connection, to_connection, inbound, chunk, verdicts, handlers } = self;
        loop {
            // One chunk at a time for the guest: what is said of the program never waits for more than that.
            let may_post = wire.is_idle();
            tokio::select! {
                frame = wire.turn(inbound.is_empty()) => match frame? {
                    None => {}
                    // None is empty: the wire lets none of these in.
                    Some(GuestFrame::Tunnel(bytes)) => *inbound = bytes.into(),
                    Some(other) => return Ok(other),
                },
                written = to_connection.write(inbound), if !inbound.is_empty() => inbound.advance(pipe(written)?),
                read = from_connection.read(chunk), if may_post => {
                    let bytes = &chunk[..pipe(read)?];
                    verdicts.read(bytes)?;
                    wire.post(&encode(&HostFrame::Tunnel(bytes.into()))?);
                }
                // This is also what moves the bytes of all streams.
                stream = poll_fn(|cx| connection.poll_next_inbound(cx)) => match stream {
                    Some(Ok(_)) if handlers.len() >= TUNNEL_STREAMS_LIMIT => {
                        let message = format!("more than {TUNNEL_STREAMS_LIMIT} connections at once");
                        return Err(VmError::Protocol(message));
                    }
                    Some(Ok(stream)) => drop(handlers.spawn(serve(handler.clone(), stream))),
                    Some(Err(error)) => return Err(VmError::Protocol(format!("in the tunnel: {error}"))),
                    None => return Err(VmError::Protocol("the tunnel was closed".into())),
                },
                Some(ended) = handlers.join_next() => match ended {
                    Ok(ended) => ended?,
                    Err(error) => tracing::error!(%error, "a connection of a guest was not served to its end"),
                },
            }
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("connections", &self.handlers.len()).finish_non_exhaustive()
    }
}

/// One connection, from what it says first. A guest that is honest always says it.
async fn serve(handler: Arc<dyn TunnelHandler>, stream: Stream) -> Result<(), VmError> {
    let mut stream = TunnelStream(stream.compat());
    let Some(target) = target(&mut stream).await? else { return Ok(()) };
    handler.serve(target, stream).await;
    Ok(())
}

/// Where a stream leads; `None` when it ends before it has said so.
async fn target(stream: &mut TunnelStream) -> Result<Option<Target>, VmError> {
    let wrong = |error: wire::FrameError| VmError::Protocol(format!("a stream of the tunnel begins with {error}"));
    let mut prefix = [0; PREFIX_BYTES];
    if stream.read_exact(&mut prefix).await.is_err() {
        return Ok(None);
    }
    let mut body = vec![0; wire::body_length(prefix, TARGET_MAX_BYTES).map_err(wrong)?];
    if stream.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    wire::decode(&body).map(Some).map_err(wrong)
}

fn config() -> Config {
    let mut config = Config::default();
    // In this order: yamux checks after each that the window suffices for the streams.
    config.set_max_num_streams(TUNNEL_STREAMS_LIMIT);
    config.set_max_connection_receive_window(Some(TUNNEL_WINDOW_MAX_BYTES));
    config.set_split_send_size(TUNNEL_SPLIT_BYTES);
    config
}

/// The pipe ends only when yamux has dropped its end, which it does not while it serves.
fn pipe(result: io::Result<usize>) -> Result<usize, VmError> {
    match result {
        Ok(0) | Err(_) => Err(VmError::Protocol("the tunnel was closed".into())),
        Ok(length) => Ok(length),
    }
}

/// Reads along in what yamux sends. When a peer breaks its rules (takes more than its window, opens a stream twice), yamux
/// says so to the peer alone, in a frame that asks it to go away, and goes on; we want to know, and to end such a VM.
#[derive(Debug, Default)]
struct Verdicts {
    header: Vec<u8>,
    /// Bytes of the current frame's body that are still to come.
    body: usize,
}

impl Verdicts {
    /// By yamux's specification: version, type, flags (2 bytes), stream (4), length (4).
    const HEADER_BYTES: usize = 12;
    const DATA: u8 = 0;
    const GO_AWAY: u8 = 3;

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), VmError> {
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes.advance(skipped);
            let missing = (Self::HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..missing]);
            bytes.advance(missing);
            if let [_, kind, _, _, _, _, _, _, length @ ..] = &self.header[..]
                && let Ok(length) = length.try_into()
            {
                match *kind {
                    Self::GO_AWAY => {
                        return Err(VmError::Protocol("it broke the rules of the tunnel's streams".into()));
                    }
                    Self::DATA => self.body = u32::from_be_bytes(length) as usize,
                    _ => {}
                }
                self.header.clear();
            }
        }
        Ok(())
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sandbox_schemas::wire::Stream as OutputStream;
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_verdict_is_found_wherever_the_bytes_are_split() {
        let frame = |kind: u8, length: u32| [&[0, kind, 0, 0, 0, 0, 0, 1][..], &length.to_be_bytes()].concat();
        // A body that looks like a verdict, one without a body, a ping whose length is its number, and a verdict.
        let harmless = [frame(0, 12), frame(3, 1), frame(0, 0), frame(2, 77), frame(1, 99)].concat();
        let bytes = [harmless.clone(), frame(3, 1)].concat();
        for size in 1..bytes.len() {
            let mut verdicts = Verdicts::default();
            assert!(harmless.chunks(size).all(|chunk| verdicts.read(chunk).is_ok()), "split by {size}");
            let mut verdicts = Verdicts::default();
            assert!(bytes.chunks(size).any(|chunk| verdicts.read(chunk).is_err()), "split by {size}");
        }
    }

    /// The guest's part: frames on one side, a yamux client's pipe on the other.
    async fn carry(wire: UnixStream, pipe: DuplexStream) {
        let (mut wire_reader, mut wire_writer) = wire.into_split();
        let (mut pipe_reader, mut pipe_writer) = split(pipe);
        let in_frames = async {
            let mut chunk = vec![0; 1000];
            while let Ok(length @ 1..) = pipe_reader.read(&mut chunk).await {
                let frame = wire::encode(&GuestFrame::Tunnel(chunk[..length].into())).unwrap();
                wire_writer.write_all(&frame).await.unwrap();
                let output = GuestFrame::Output { run: 1, stream: OutputStream::Stdout, bytes: vec![1] };
                wire_writer.write_all(&wire::encode(&output).unwrap()).await.unwrap();
            }
        };
        let from_frames = async {
            while let Ok(length) = wire_reader.read_u32_le().await {
                let mut body = vec![0; length as usize];
                wire_reader.read_exact(&mut body).await.unwrap();
                match wire::decode(&body).unwrap() {
                    HostFrame::Tunnel(bytes) => pipe_writer.write_all(&bytes).await.unwrap(),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::join!(in_frames, from_frames);
    }

    /// A stream there and back, while whoever listens gives up every now and then and begins again.
    #[tokio::test]
    async fn nothing_is_lost_when_listening_is_given_up() {
        let (mut host, guest) = Wire::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let (ours, theirs) = duplex(4096);
        let carried = tokio::spawn(carry(UnixStream::from_std(guest).unwrap(), theirs));

        let echo = |target, stream| async move {
            assert_eq!(target, Target::Registry);
            let (mut reader, mut writer) = split(stream);
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut tunnel = Tunnel::new(Arc::new(echo));

        let (echoed, mut is_echoed) = mpsc::channel(1);
        let guest = tokio::spawn(async move {
            let mut client = Connection::new(ours.compat(), config(), Mode::Client);
            let stream = poll_fn(|cx| client.poll_new_outbound(cx)).await.unwrap();
            let (mut reader, mut writer) = split(stream.compat());
            let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number * 7 / 3) as u8).collect();
            let expected = sent.clone();
            tokio::spawn(async move {
                writer.write_all(&wire::encode(&Target::Registry).unwrap()).await.unwrap();
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            tokio::spawn(async move {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).await.unwrap();
                echoed.send(received == expected).await.unwrap();
            });
            let _ = poll_fn(|cx| client.poll_next_inbound(cx)).await;
        });

        let mut outputs = 0_u64;
        let is_equal = loop {
            tokio::select! {
                biased;
                is_equal = is_echoed.recv() => break is_equal,
                () = tokio::time::sleep(Duration::from_micros(outputs % 50)) => {}
                frame = tunnel.receive(&mut host) => match frame.unwrap() {
                    GuestFrame::Output { .. } => outputs += 1,
                    other => panic!("{other:?}"),
                },
            }
        };
        assert_eq!(is_equal, Some(true));
        assert!(outputs > 3000, "{outputs}");
        guest.abort();
        carried.abort();
    }
}
