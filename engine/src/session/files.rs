//! One file that is put into a VM or taken out of it, or a folder that is listed.

use std::sync::Arc;
use std::time::Duration;

use sandbox_schemas::limits::{INPUT_CHUNK_MAX_BYTES, LISTED_FILES_MAX};
use sandbox_schemas::wire::{Entry, GuestFrame, HostFrame, RunId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;

use crate::error::{ExecuteError, VmError};
use crate::session::owner::{Command, Commands, listening};
use crate::session::state::{Ended, InUse, State};
use crate::wire::{encode, unexpected};

/// Bytes that may be under way to a guest: it takes them into its memory as they come.
const UNDER_WAY_MAX_BYTES: u64 = 1024 * 1024;

/// So much is taken in before the guest is granted as much again.
const GRANT_BYTES: u64 = 64 * 1024;

/// How long a guest may do nothing with a file that it has all of, or wants to send: milliseconds, if it is not hung.
const MOVEMENT_DEADLINE: Duration = Duration::from_secs(30);

/// One file under way.
#[derive(Debug)]
pub(super) struct Transfer {
    run: RunId,
    state: Arc<State>,
    commands: Commands,
    frames: Receiver<GuestFrame>,
    is_done: bool,
    _in_use: InUse,
}

impl Transfer {
    pub(super) fn begin(
        run: RunId,
        wish: &HostFrame,
        state: Arc<State>,
        commands: Commands,
        in_use: InUse,
    ) -> Result<Transfer, ExecuteError> {
        let (listener, frames) = listening();
        let begun = encode(wish).map_err(ExecuteError::before_run)?;
        let transfer = Transfer { run, state, commands, frames, is_done: false, _in_use: in_use };
        transfer.tell(Command::Begin { run, frames: begun, listener });
        Ok(transfer)
    }

    /// Waits until what was wished for is done at once.
    pub(super) async fn done(mut self) -> Result<(), ExecuteError> {
        match self.next().await? {
            GuestFrame::Transferred { .. } => Ok(()),
            other => Err(ExecuteError::before_run(unexpected("that it is done", &other))),
        }
    }

    /// Sends a file; its size.
    pub(super) async fn store(mut self, mut source: impl AsyncRead + Unpin) -> Result<u64, ExecuteError> {
        match self.next().await? {
            GuestFrame::Started(_) => {}
            other => return Err(ExecuteError::before_run(unexpected("started", &other))),
        }
        let (mut sent, mut under_way) = (0_u64, 0_u64);
        loop {
            let mut bytes = Vec::with_capacity(INPUT_CHUNK_MAX_BYTES);
            let mut limited = (&mut source).take(INPUT_CHUNK_MAX_BYTES as u64);
            limited.read_to_end(&mut bytes).await.map_err(|error| source_fault(&error))?;
            let is_last = bytes.len() < INPUT_CHUNK_MAX_BYTES;
            sent += bytes.len() as u64;
            under_way += bytes.len() as u64;
            let frame =
                encode(&HostFrame::Input { run: self.run, bytes, is_last }).map_err(ExecuteError::before_run)?;
            self.tell(Command::Post(frame));
            while is_last || under_way > UNDER_WAY_MAX_BYTES {
                match self.next().await? {
                    // One that takes nothing could say so for ever.
                    GuestFrame::Taken { bytes: bytes @ 1.., .. } if bytes <= under_way => under_way -= bytes,
                    GuestFrame::Transferred { size, .. } if is_last && size == sent => return Ok(size),
                    other => return Err(ExecuteError::before_run(unexpected("that a file was taken", &other))),
                }
            }
        }
    }

    /// Takes the bytes of a file from `offset` on, `most` at most; its whole size.
    pub(super) async fn fetch(
        mut self,
        offset: u64,
        most: u64,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<u64, ExecuteError> {
        match self.next().await? {
            GuestFrame::Started(_) => {}
            other => return Err(ExecuteError::before_run(unexpected("started", &other))),
        }
        let (mut ungranted, mut left) = (0, most);
        loop {
            match self.next().await? {
                GuestFrame::Output { bytes, .. } => {
                    // A guest may say anything of itself, and fill no disk of the host's with it.
                    let more = || VmError::Protocol("it sends more of a file than was asked for".into());
                    left = left.checked_sub(bytes.len() as u64).ok_or_else(|| ExecuteError::before_run(more()))?;
                    to.write_all(&bytes).await.map_err(|error| source_fault(&error))?;
                    ungranted += bytes.len() as u64;
                    if ungranted >= GRANT_BYTES {
                        let (run, bytes) = (self.run, std::mem::take(&mut ungranted));
                        let frames = encode(&HostFrame::Credit { run, bytes }).map_err(ExecuteError::before_run)?;
                        self.tell(Command::Grant { run, bytes, frames });
                    }
                }
                GuestFrame::Transferred { size, .. } if most - left == size.saturating_sub(offset).min(most) => {
                    return Ok(size);
                }
                other => return Err(ExecuteError::before_run(unexpected("all that was asked of a file", &other))),
            }
        }
    }

    /// What is in a folder, and whether there is more.
    pub(super) async fn list(mut self) -> Result<(Vec<Entry>, bool), ExecuteError> {
        let mut entries = Vec::new();
        loop {
            match self.next().await? {
                GuestFrame::Listed { entry, .. } if entries.len() < LISTED_FILES_MAX => entries.push(entry),
                GuestFrame::Transferred { size, .. } => return Ok((entries, size > 0)),
                other => return Err(ExecuteError::before_run(unexpected("what is in a folder", &other))),
            }
        }
    }

    async fn next(&mut self) -> Result<GuestFrame, ExecuteError> {
        let heard = tokio::time::timeout(MOVEMENT_DEADLINE, self.frames.recv()).await;
        let Some(frame) = heard.map_err(|_| ExecuteError::before_run(VmError::Deadline(MOVEMENT_DEADLINE)))? else {
            self.is_done = true;
            return Err(match self.state.ended() {
                Some(why @ (Ended::Closed | Ended::Idle(_) | Ended::ServerEnds)) => {
                    ExecuteError::NotFound { reason: format!("session_id: the session {why}") }
                }
                Some(why) => ExecuteError::before_run(VmError::Ended(format!(": its session {why}"))),
                None => ExecuteError::before_run(VmError::Ended(String::new())),
            });
        };
        match frame {
            GuestFrame::Failed { reason, .. } => {
                self.is_done = true;
                Err(ExecuteError::File { reason })
            }
            GuestFrame::Transferred { .. } => {
                self.is_done = true;
                Ok(frame)
            }
            frame => Ok(frame),
        }
    }

    fn tell(&self, command: Command) {
        // A session that has ended is noticed by the end of what it says.
        let _ = self.commands.send(command);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // No half file stays.
        if !self.is_done
            && let Ok(frame) = encode(&HostFrame::Kill(self.run))
        {
            self.tell(Command::Post(frame));
        }
    }
}

fn source_fault(error: &std::io::Error) -> ExecuteError {
    ExecuteError::File { reason: format!("host_path: {error}") }
}
