//! The task that holds a session's VM: says what calls want said, and passes on what the guest says of them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use sandbox_schemas::limits::{
    LISTED_ENTRY_BYTES, LISTED_FILES_MAX, LISTING_MAX_BYTES, OUTPUT_WINDOW_BYTES, PIPE_BYTES,
};
use sandbox_schemas::wire::{GuestFrame, RunId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::error::VmError;
use crate::session::state::{Ended, State};
use crate::vm::Open;

/// What a guest may send of a run beyond what it was granted, in bytes: what lies in two pipes when the run ends.
const BEYOND_WINDOW_BYTES: u64 = 2 * PIPE_BYTES as u64;

/// Frames of a run that nobody has heard yet, at most: a window of single bytes, and the largest folder.
const UNHEARD_MAX: usize = OUTPUT_WINDOW_BYTES as usize + LISTED_FILES_MAX + 1024;

/// Where what is said of a run goes, and where it is heard.
pub(super) fn listening() -> (Sender<GuestFrame>, Receiver<GuestFrame>) {
    channel(UNHEARD_MAX)
}

/// What calls ask of the owner.
pub(super) enum Command {
    /// A program, encoded, and who listens to what is said of it.
    Begin { run: RunId, frames: Vec<u8>, listener: Sender<GuestFrame> },
    /// So much more output may come.
    Grant { run: RunId, bytes: u64, frames: Vec<u8> },
    /// Another frame.
    Post(Vec<u8>),
    /// Another disk for the slot, and who waits for it.
    ChangeDisk { disk: Arc<OwnedFd>, number: u32, done: oneshot::Sender<Result<(), VmError>> },
}

/// Says what calls want said.
pub(super) type Commands = UnboundedSender<Command>;

struct Listener {
    frames: Sender<GuestFrame>,
    /// Bytes of output that may still come.
    allowed: u64,
    /// The same of listings.
    listable: usize,
}

struct Owner {
    vm: Open,
    commands: UnboundedReceiver<Command>,
    listeners: HashMap<RunId, Listener>,
    state: Arc<State>,
}

/// Holds the VM until the session ends. `keep` is dropped when the VM is.
pub(super) fn spawn(vm: Open, state: Arc<State>, tasks: &TaskTracker, keep: impl Send + 'static) -> Commands {
    let (sender, commands) = unbounded_channel();
    let owner = Owner { vm, commands, listeners: HashMap::new(), state };
    tasks.spawn(async move {
        let _keep = keep;
        owner.hold().await;
    });
    sender
}

impl Owner {
    async fn hold(mut self) {
        let state = self.state.clone();
        let served = tokio::select! {
            why = state.is_to_end() => Err(why),
            error = self.serve() => Ok(error),
        };
        state.end(match served {
            Err(why) => why,
            // QEMU's own words make it understandable.
            Ok(Some(error)) => Ended::Failed(self.vm.explain(error).await.to_string()),
            Ok(None) => Ended::Closed,
        });
        // The listeners hear of it by the end of their channels, and the VM goes with this.
    }

    /// Until the guest ends, or nobody is left who could say anything.
    async fn serve(&mut self) -> Option<VmError> {
        loop {
            tokio::select! {
                frame = self.vm.next() => {
                    if let Err(error) = frame.and_then(|frame| self.pass_on(frame)) {
                        return Some(error);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return None,
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Begin { run, frames, listener } => {
                let allowed = OUTPUT_WINDOW_BYTES + BEYOND_WINDOW_BYTES;
                self.listeners.insert(run, Listener { frames: listener, allowed, listable: LISTING_MAX_BYTES });
                self.vm.post(&frames);
            }
            Command::Grant { run, bytes, frames } => {
                if let Some(listener) = self.listeners.get_mut(&run) {
                    listener.allowed = listener.allowed.saturating_add(bytes);
                    self.vm.post(&frames);
                }
            }
            Command::Post(frames) => self.vm.post(&frames),
            Command::ChangeDisk { disk, number, done } => {
                // Whatever has come of it is for whoever asked; he may have gone.
                let _ = done.send(self.vm.change_disk(&disk, number).await);
            }
        }
    }

    /// Gives a frame to whoever listens. One who does not any more misses nothing.
    fn pass_on(&mut self, frame: GuestFrame) -> Result<(), VmError> {
        let run = match &frame {
            GuestFrame::Started(run) | GuestFrame::Output { run, .. } | GuestFrame::Taken { run, .. } => *run,
            GuestFrame::Listed { run, .. } | GuestFrame::Transferred { run, .. } => *run,
            GuestFrame::Finished(finished) => finished.run,
            GuestFrame::Failed { run: Some(run), .. } => *run,
            other => return Err(crate::wire::unexpected("something of a run", other)),
        };
        let Some(listener) = self.listeners.get_mut(&run) else {
            return Err(VmError::Protocol(format!("it speaks of run {run}, which there is not")));
        };
        if let GuestFrame::Output { bytes, .. } = &frame {
            let left = listener.allowed.checked_sub(bytes.len() as u64);
            listener.allowed = left.ok_or_else(|| VmError::Protocol("it sends more than it was granted".into()))?;
        }
        if let GuestFrame::Listed { entry, .. } = &frame {
            let left = listener.listable.checked_sub(entry.name.len() + LISTED_ENTRY_BYTES);
            listener.listable = left.ok_or_else(|| VmError::Protocol("it lists more than may be".into()))?;
        }
        let is_last =
            matches!(frame, GuestFrame::Finished(_) | GuestFrame::Transferred { .. } | GuestFrame::Failed { .. });
        match listener.frames.try_send(frame) {
            Err(TrySendError::Full(_)) => return Err(VmError::Protocol("it says more than anybody can hear".into())),
            // Who listens may have gone.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
        }
        if is_last {
            self.listeners.remove(&run);
        }
        Ok(())
    }
}
