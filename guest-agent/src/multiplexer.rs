//! The tunnel's process: it takes connections on the guest's loopback and makes each a stream of the tunnel.

use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures_io::{AsyncRead, AsyncWrite};
use sandbox_schemas::limits::{TUNNEL_SPLIT_BYTES, TUNNEL_STREAMS_LIMIT, TUNNEL_STREAMS_MAX, TUNNEL_WINDOW_MAX_BYTES};
use sandbox_schemas::tunnel::Target;
use sandbox_schemas::wire;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode, Stream};

use crate::error::{Context, Error, Result};
use crate::tunnel::{LISTENER_FD, PIPE_FD};

/// Serves until the agent is gone, or the host talks nonsense. Must be called once, and before anything is opened.
pub(crate) fn run() -> Result<()> {
    #[allow(unsafe_code, reason = "the agent hands these two over by number")]
    // SAFETY: the agent has opened both for this process, which has not used them yet.
    let (pipe, listener) = unsafe { (OwnedFd::from_raw_fd(PIPE_FD), OwnedFd::from_raw_fd(LISTENER_FD)) };
    let (pipe, listener) = (StdUnixStream::from(pipe), std::net::TcpListener::from(listener));
    pipe.set_nonblocking(true).context("making the pipe non-blocking")?;
    listener.set_nonblocking(true).context("making the socket non-blocking")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("starting")?;
    runtime.block_on(async {
        let pipe = UnixStream::from_std(pipe).context("taking over the pipe")?;
        let listener = TcpListener::from_std(listener).context("taking over the socket")?;
        multiplex(pipe, listener).await
    })
}

async fn multiplex(pipe: UnixStream, listener: TcpListener) -> Result<()> {
    let mut tunnel = Connection::new(pipe.compat(), config(), Mode::Client);
    let places = Arc::new(Semaphore::new(TUNNEL_STREAMS_MAX));
    loop {
        tokio::select! {
            accepted = accept(&listener, &places) => {
                let (socket, place) = accepted?;
                let stream = poll_fn(|cx| tunnel.poll_new_outbound(cx)).await.context("opening a stream")?;
                tokio::spawn(async move {
                    carry(socket, stream).await;
                    drop(place);
                });
            }
            // This is what moves the bytes of all streams. The host opens none.
            inbound = poll_fn(|cx| tunnel.poll_next_inbound(cx)) => match inbound {
                Some(Ok(_)) => return Err(Error::new("the host", "it opens a stream, which only the guest does")),
                Some(Err(error)) => return Err(Error::new("the host", error)),
                None => return Ok(()),
            },
        }
    }
}

fn config() -> Config {
    let mut config = Config::default();
    // In this order: yamux checks after each that the window suffices for the streams.
    config.set_max_num_streams(TUNNEL_STREAMS_LIMIT);
    config.set_max_connection_receive_window(Some(TUNNEL_WINDOW_MAX_BYTES));
    config.set_split_send_size(TUNNEL_SPLIT_BYTES);
    config
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.context("waiting for a place")?;
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return Ok((socket, place)),
            // It was closed before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(Error::new("accepting a connection", error)),
        }
    }
}

/// Carries a connection's bytes until both directions have ended.
async fn carry(mut socket: TcpStream, stream: Stream) {
    let mut stream = Abortable { stream, is_closed: false }.compat();
    let carried = async {
        // What waits for an answer must not wait for more to send.
        socket.set_nodelay(true)?;
        let target = wire::encode(&Target::Registry).map_err(io::Error::other)?;
        stream.write_all(&target).await?;
        copy_bidirectional_with_sizes(&mut socket, &mut stream, TUNNEL_SPLIT_BYTES, TUNNEL_SPLIT_BYTES).await
    };
    if carried.await.is_err() {
        // The program must not take what was cut short for the whole. Without this it might have missed the difference.
        let _ = socket.set_zero_linger();
    }
}

/// A stream whose reset is an error; yamux makes it look like an end.
struct Abortable {
    stream: Stream,
    /// Whether we have closed our direction: then a stream that is closed may have ended well.
    is_closed: bool,
}

impl AsyncRead for Abortable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let is_end = matches!(read, Poll::Ready(Ok(0))) && !buffer.is_empty();
        if is_end && self.stream.is_closed() && !self.is_closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        read
    }
}

impl AsyncWrite for Abortable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.is_closed = true;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
