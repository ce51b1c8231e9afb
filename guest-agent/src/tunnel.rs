//! The agent's end of the tunnel: it carries bytes between the port and the process that makes streams of connections.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{read, write};
use rustix::thread::CapabilitySet;
use sandbox_schemas::limits::{TUNNEL_CHUNK_MAX_BYTES, TUNNEL_WINDOW_MAX_BYTES};
use sandbox_schemas::tunnel::REGISTRY_PORT;
use sandbox_schemas::wire::GuestFrame;

use crate::cgroup::Cgroup;
use crate::confine::{self, TUNNEL_UID};
use crate::error::{Context, Error, Result};
use crate::port::Port;
use crate::runner::place;

/// The argument that makes this binary the tunnel's process.
pub(crate) const MULTIPLEXER: &str = "multiplexer";

/// The descriptors in that process: the other end of the agent's, and the socket that listens. Far above those that are open
/// at its start.
pub(crate) const PIPE_FD: RawFd = 1000;
pub(crate) const LISTENER_FD: RawFd = 1001;

/// The agent's end of the tunnel.
pub(crate) struct Tunnel {
    socket: OwnedFd,
    /// What the host has sent and the tunnel's process has not taken.
    queue: VecDeque<u8>,
    stderr: ChildStderr,
}

impl Tunnel {
    /// Starts the tunnel's process. Connections are taken from here on.
    pub(crate) fn open() -> Result<Tunnel> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .context("creating the tunnel's sockets")?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("making the tunnel non-blocking")?;
        // A second one finds the address in use, and says so.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, REGISTRY_PORT)).context("listening for the tunnel")?;

        let filter = confine::filter()?;
        let join_file = Cgroup::named("tunnel")?.join_file();
        #[allow(clippy::disallowed_methods, reason = "the agent starts itself, as another user")]
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("/init")
            .arg(MULTIPLEXER)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let prepare = move || {
            place(&theirs, PIPE_FD)?;
            place(&listener, LISTENER_FD)?;
            confine::become_user(TUNNEL_UID, CapabilitySet::empty(), &filter, &join_file)
        };
        #[allow(unsafe_code, reason = "rights are given up between fork and exec")]
        // SAFETY: the agent has one thread, so that nothing in the child can wait for a lock that another thread held.
        unsafe {
            command.pre_exec(prepare)
        };
        let mut child = command.spawn().context("starting the tunnel's process")?;
        let stderr = child.stderr.take().ok_or_else(|| Error::new("starting the tunnel's process", "no stderr"))?;
        Ok(Tunnel { socket: ours, queue: VecDeque::new(), stderr })
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.queue.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }

    /// Whether no more should come from the host for now.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() > TUNNEL_WINDOW_MAX_BYTES
    }

    /// Takes in what the host has sent.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        // Mostly all of it fits into the socket.
        let written = if self.queue.is_empty() { self.write(bytes)? } else { 0 };
        self.queue.extend(&bytes[written..]);
        Ok(())
    }

    /// Hands on what fits of what has come.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            match self.write(self.queue.as_slices().0)? {
                0 => return Ok(()),
                length => drop(self.queue.drain(..length)),
            }
        }
        // What a burst has needed is not kept.
        self.queue = VecDeque::new();
        Ok(())
    }

    /// Sends one chunk to the host. `Ok(false)` when the tunnel's process has ended.
    pub(crate) fn pump(&mut self, port: &mut Port) -> Result<bool> {
        let mut chunk = vec![0; TUNNEL_CHUNK_MAX_BYTES];
        match read(&self.socket, &mut chunk) {
            Ok(0) => Ok(false),
            Ok(length) => {
                chunk.truncate(length);
                port.send(&GuestFrame::Tunnel(chunk)).map(|()| true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(Errno::ECONNRESET) => Ok(false),
            Err(error) => Err(Error::new("reading from the tunnel", error)),
        }
    }

    /// Why it has ended.
    pub(crate) fn last_words(&mut self) -> String {
        // It has ended, and so has its pipe; what it says is a line.
        let mut words = vec![0; 4096];
        let length = self.stderr.read(&mut words).unwrap_or(0);
        format!("the tunnel has ended: {}", String::from_utf8_lossy(&words[..length]).trim())
    }

    /// Bytes that were taken.
    fn write(&self, bytes: &[u8]) -> Result<usize> {
        match write(&self.socket, bytes) {
            Ok(length) => Ok(length),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            // Its end is noticed by reading.
            Err(Errno::EPIPE) => Ok(bytes.len()),
            Err(error) => Err(Error::new("writing to the tunnel", error)),
        }
    }
}

impl AsFd for Tunnel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
