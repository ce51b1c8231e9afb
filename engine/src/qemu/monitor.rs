//! QEMU's monitor, as far as templates need it: save a VM's device state, load it in another.
//!
//! The state travels through a pipe in both directions: QEMU may write no file, and neither its oldest nor its newest
//! version agrees with the other on how it wants to be given one.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use futures_util::StreamExt;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::error::VmError;
use crate::qemu::command::SLOT_NODE;
use crate::wire::socket_pair;

/// Longest line of the monitor, in bytes. Its answers are a few hundred.
const LINE_MAX_BYTES: usize = 64 * 1024;

/// Largest device state that is taken, in bytes: some 150 KB are usual.
pub(crate) const STATE_MAX_BYTES: usize = 1024 * 1024;

/// What the command that saves is answered with.
const SAVING: &str = "saving";

/// What the command that ends a pause is answered with.
const CONTINUING: &str = "continuing";

/// The host end of a monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: FramedRead<UnixStream, LinesCodec>,
    /// Whether QEMU was told what both sides of a migration are told first. It refuses to hear it twice.
    is_prepared: bool,
}

impl Monitor {
    /// Both ends of a new monitor: ours, and the one that QEMU gets.
    pub(crate) fn pair() -> Result<(Monitor, StdUnixStream), VmError> {
        let (ours, theirs) = socket_pair().map_err(|error| VmError::Spawn(format!("creating the monitor: {error}")))?;
        let lines = FramedRead::new(ours, LinesCodec::new_with_max_length(LINE_MAX_BYTES));
        Ok((Monitor { lines, is_prepared: false }, theirs))
    }

    /// Has a QEMU that was started with `-incoming defer` load a state, upon which it runs. Only says so: QEMU reads it when it is
    /// up. Whether it worked shows on the wire, or in [`Monitor::failure`].
    pub(crate) async fn begin_restore(&mut self, state: &[u8]) -> Result<(), VmError> {
        let reader = pipe_holding(state).map_err(|error| VmError::Spawn(format!("handing over the state: {error}")))?;
        let mut commands = self.preamble();
        commands.push(json!({"execute": "getfd", "arguments": {"fdname": "state"}}));
        commands.push(json!({"execute": "migrate-incoming", "arguments": {"uri": "fd:state"}}));
        self.send(&commands, Some(reader)).await
    }

    /// Waits for bad news of [`Monitor::begin_restore`]; never ends when there is none. Cancel-safe.
    pub(crate) async fn failure(&mut self) -> VmError {
        loop {
            match self.next().await {
                Ok(message) => {
                    if let Some(error) = failure_in(&message) {
                        return VmError::Restore(error);
                    }
                }
                // The wire ends as well then, and says it better.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Takes the VM's device state, at which it stops. Its memory stays in the file behind it.
    ///
    /// It must not be stopped before: QEMU would save that as well, and a clone would wait to be told to go on.
    pub(crate) async fn save(&mut self) -> Result<Vec<u8>, VmError> {
        let failed = |error: std::io::Error| VmError::Spawn(format!("taking the state: {error}"));
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
        let mut commands = self.preamble();
        commands.push(json!({"execute": "getfd", "arguments": {"fdname": "state"}}));
        commands.push(json!({"execute": "migrate", "arguments": {"uri": "fd:state"}, "id": SAVING}));
        self.send(&commands, Some(writer)).await?;

        let mut state = Vec::new();
        let mut reader = reader.take(STATE_MAX_BYTES as u64 + 1);
        let read = reader.read_to_end(&mut state);
        // The pipe's end is not the migration's: QEMU closes it also when it gives up.
        let (read, completed) = tokio::join!(read, self.completion());
        read.map_err(failed)?;
        completed?;
        if state.len() > STATE_MAX_BYTES {
            return Err(VmError::Protocol(format!("a device state of over {STATE_MAX_BYTES} bytes")));
        }
        Ok(state)
    }

    /// Has the VM stop, and go on at once.
    pub(crate) async fn pause(&mut self) -> Result<(), VmError> {
        let mut commands = self.preamble();
        commands.push(json!({"execute": "stop"}));
        commands.push(json!({"execute": "cont", "id": CONTINUING}));
        self.send(&commands, None).await?;
        self.answer_to(CONTINUING).await
    }

    /// Waits until the command of this id is answered, and all before it; the first error among them.
    async fn answer_to(&mut self, id: &str) -> Result<(), VmError> {
        let mut fault = None;
        loop {
            let message = self.next().await?;
            fault = fault.or_else(|| failure_in(&message));
            if message["id"] == id {
                return fault.map_or(Ok(()), |error| Err(VmError::Spawn(error)));
            }
        }
    }

    /// Puts another disk into the slot for packages, which the VM reads and does not write. The `number`th that is put there.
    pub(crate) async fn change_disk(&mut self, disk: &OwnedFd, number: u32) -> Result<(), VmError> {
        let failed = |error: std::io::Error| VmError::Spawn(format!("handing over a disk: {error}"));
        let disk = disk.try_clone().map_err(failed)?;
        let file = |number| format!("disk-{number}");
        let id = format!("changed-{number}");
        let mut commands = self.preamble();
        commands.extend([
            json!({"execute": "add-fd", "arguments": {"fdset-id": number}}),
            json!({"execute": "blockdev-add", "arguments": {
                "driver": "file", "node-name": file(number), "filename": format!("/dev/fdset/{number}"),
                "read-only": true, "locking": "off",
            }}),
            json!({"execute": "blockdev-reopen", "id": id, "arguments": {"options": [
                {"driver": "raw", "node-name": SLOT_NODE, "read-only": true, "file": file(number)},
            ]}}),
        ]);
        self.send(&commands, Some(disk)).await?;
        self.answer_to(&id).await?;
        if number > 1 {
            // The one before is nobody's now.
            let before = number - 1;
            let id = format!("removed-{before}");
            let commands = [
                json!({"execute": "blockdev-del", "arguments": {"node-name": file(before)}}),
                json!({"execute": "remove-fd", "arguments": {"fdset-id": before}, "id": id}),
            ];
            self.send(&commands, None).await?;
            self.answer_to(&id).await?;
        }
        Ok(())
    }

    /// What both sides of a migration are told first. The memory is in a file, and stays there.
    fn preamble(&mut self) -> Vec<Value> {
        if std::mem::replace(&mut self.is_prepared, true) {
            return Vec::new();
        }
        let capabilities = ["x-ignore-shared", "events"].map(|name| json!({"capability": name, "state": true}));
        vec![
            json!({"execute": "qmp_capabilities"}),
            json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}}),
        ]
    }

    async fn completion(&mut self) -> Result<(), VmError> {
        // What comes before the answer is of how the VM was restored, if it was.
        let mut has_begun = false;
        loop {
            let message = self.next().await?;
            if let Some(error) = failure_in(&message) {
                return Err(VmError::Spawn(error));
            }
            has_begun |= message["id"] == SAVING;
            if has_begun && message["event"] == "MIGRATION" && message["data"]["status"] == "completed" {
                return Ok(());
            }
        }
    }

    async fn next(&mut self) -> Result<Value, VmError> {
        match self.lines.next().await {
            Some(Ok(line)) => {
                serde_json::from_str(&line).map_err(|error| VmError::Protocol(format!("the monitor: {error}")))
            }
            Some(Err(error)) => Err(VmError::Protocol(format!("the monitor: {error}"))),
            None => Err(VmError::Ended(" (its monitor)".into())),
        }
    }

    /// Writes all commands at once, with a descriptor for the `getfd` among them. They are far smaller than the socket's
    /// buffer, so that this waits for nothing.
    async fn send(&mut self, commands: &[Value], descriptor: Option<OwnedFd>) -> Result<(), VmError> {
        let text: String = commands.iter().map(|command| format!("{command}\n")).collect();
        let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let attached = [ControlMessage::ScmRights(&descriptors)];
        let attached = if descriptors.is_empty() { &attached[..0] } else { &attached[..] };
        let socket = self.lines.get_ref();
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let text = [IoSlice::new(text.as_bytes())];
                Ok(sendmsg::<()>(socket.as_raw_fd(), &text, attached, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await
            .map_err(|error| VmError::Ended(format!(" (writing to its monitor: {error})")))?;
        if sent == text.len() { Ok(()) } else { Err(VmError::Protocol("the monitor takes no commands".into())) }
    }
}

fn failure_in(message: &Value) -> Option<String> {
    if let Some(error) = message.get("error") {
        return Some(format!("QEMU refused a command: {}", error["desc"].as_str().unwrap_or_default()));
    }
    (message["event"] == "MIGRATION" && message["data"]["status"] == "failed").then(|| "the migration failed".into())
}

/// The reading end of a pipe that holds all of `bytes` already.
fn pipe_holding(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let needed = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    let capacity = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(needed))?;
    if capacity < needed {
        return Err(std::io::Error::other(format!("a pipe of {needed} bytes cannot be had")));
    }
    let written = nix::unistd::write(&writer, bytes)?;
    if written < bytes.len() {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_holds_the_largest_state() {
        let state = vec![7; STATE_MAX_BYTES];
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(pipe_holding(&state).unwrap()), &mut read).unwrap();
        assert!(read == state);
    }

    #[test]
    fn refusals_and_failures_are_seen() {
        assert!(failure_in(&json!({"error": {"class": "GenericError", "desc": "no"}})).unwrap().contains("no"));
        assert!(failure_in(&json!({"event": "MIGRATION", "data": {"status": "failed"}})).is_some());
        assert!(failure_in(&json!({"event": "MIGRATION", "data": {"status": "active"}})).is_none());
        assert!(failure_in(&json!({"return": {}})).is_none());
    }
}
