//! One stream of a program: read as it comes, sent up to a cap, counted to the end, which is sent as well.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::read;
use sandbox_schemas::limits::{OUTPUT_CHUNK_MAX_BYTES, PIPE_BYTES};
use sandbox_schemas::wire::{GuestFrame, RunId, Stream};

use crate::error::Result;
use crate::port::Port;

/// After a short read the stream rests for so long, so that a program that prints line by line is not interrupted at
/// each. It delays nothing else: the end of a run is taken in at once.
const REST: Duration = Duration::from_millis(10);

/// The reading end of a program's stdout or stderr.
pub(crate) struct Output {
    run: RunId,
    stream: Stream,
    pipe: Option<OwnedFd>,
    cap: u64,
    /// The last of what came after the cap, at most half as much as that: a program says last what has come of it.
    tail: VecDeque<u8>,
    /// All bytes that the program wrote, sent or not.
    pub(crate) bytes: u64,
    resting_until: Option<Instant>,
}

impl Output {
    pub(crate) fn new(run: RunId, stream: Stream, pipe: OwnedFd, cap: u64) -> Self {
        Output { run, stream, pipe: Some(pipe), cap, tail: VecDeque::new(), bytes: 0, resting_until: None }
    }

    /// What to wait for: nothing once the stream has ended, or while it rests.
    pub(crate) fn interest(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        if self.rest_end(now).is_some() { None } else { self.pipe.as_ref().map(|pipe| pipe.as_fd()) }
    }

    /// When its rest ends, if it rests.
    pub(crate) fn rest_end(&self, now: Instant) -> Option<Instant> {
        self.resting_until.filter(|&until| self.pipe.is_some() && until > now)
    }

    /// Whether nothing of it is sent any more.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.cap
    }

    /// Takes in what is there, one chunk, of which it sends at most what the window allows.
    pub(crate) fn pump(&mut self, window: &mut u64, port: &mut Port) -> Result<()> {
        let mut chunk = OUTPUT_CHUNK_MAX_BYTES;
        if !self.is_full() {
            chunk = chunk.min(usize::try_from(*window).unwrap_or(usize::MAX));
        }
        let room = self.cap.saturating_sub(self.bytes);
        let length = self.take_chunk(chunk, port)?;
        *window = window.saturating_sub(room.min(length as u64));
        if length < chunk {
            self.resting_until = Some(Instant::now() + REST);
        }
        Ok(())
    }

    /// Takes in what the program had written when it ended. No more than a pipe holds: a child that lives on and writes
    /// without end must not keep the run open.
    pub(crate) fn drain(&mut self, port: &mut Port) -> Result<()> {
        let end = self.bytes + PIPE_BYTES as u64;
        while self.bytes < end && self.take_chunk(OUTPUT_CHUNK_MAX_BYTES, port)? > 0 {}
        let tail = std::mem::take(&mut self.tail);
        Vec::from(tail).chunks(OUTPUT_CHUNK_MAX_BYTES).try_for_each(|chunk| self.send(chunk.to_vec(), port))
    }

    fn send(&self, bytes: Vec<u8>, port: &mut Port) -> Result<()> {
        port.send(&GuestFrame::Output { run: self.run, stream: self.stream, bytes })
    }

    /// Keeps the end of what is not sent as it comes.
    fn keep(&mut self, bytes: &[u8]) {
        let most = usize::try_from(self.cap / 2).unwrap_or(usize::MAX);
        self.tail.extend(&bytes[bytes.len().saturating_sub(most)..]);
        self.tail.drain(..self.tail.len().saturating_sub(most));
    }

    /// Bytes read; 0 when there are none, or no more.
    fn take_chunk(&mut self, length: usize, port: &mut Port) -> Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let mut chunk = vec![0; length];
        match read(pipe, &mut chunk) {
            Ok(0) => {
                self.pipe = None;
                Ok(0)
            }
            Ok(length) => {
                let room = self.cap.saturating_sub(self.bytes);
                self.bytes += length as u64;
                chunk.truncate(length);
                let rest = chunk.split_off(length.min(usize::try_from(room).unwrap_or(usize::MAX)));
                self.keep(&rest);
                if !chunk.is_empty() {
                    self.send(chunk, port)?;
                }
                Ok(length)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(_) => {
                self.pipe = None;
                Ok(0)
            }
        }
    }
}
