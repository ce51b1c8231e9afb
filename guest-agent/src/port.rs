//! The one wire out of the VM: frames over a virtio-serial port.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use sandbox_schemas::limits::HOST_FRAME_MAX_BYTES;
use sandbox_schemas::wire::{self, GuestFrame, HostFrame, PREFIX_BYTES};

use crate::error::{Context, Error, Result};

/// The name that the host gives the port.
const PORT_NAME: &str = "agent";

/// What the port's driver hands over in one read at most: a page.
const READ_BYTES: usize = 4096;

/// The open port. Reading never blocks after `poll` has said that there is something; writing blocks until the host has
/// taken it, which is what throttles a program that writes faster than the host reads.
pub(crate) struct Port {
    file: File,
    inbox: Vec<u8>,
}

impl Port {
    /// The device's number depends on the machine; its name does not.
    pub(crate) fn find() -> Option<PathBuf> {
        let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
        ports.flatten().find_map(|port| {
            let name = fs::read_to_string(port.path().join("name")).ok()?;
            (name.trim() == PORT_NAME).then(|| Path::new("/dev").join(port.file_name()))
        })
    }

    pub(crate) fn open(path: &Path) -> Result<Port> {
        let file = OpenOptions::new().read(true).write(true).open(path).context("opening the port")?;
        Ok(Port { file, inbox: Vec::new() })
    }

    pub(crate) fn send(&mut self, frame: &GuestFrame) -> Result<()> {
        let bytes = wire::encode(frame).context("encoding a frame")?;
        self.file.write_all(&bytes).context("writing to the port")
    }

    /// Takes in what has come, and the rest of a frame that has begun: the host sends frames whole, and what it does not send
    /// in one go it sends while we read. `Ok(false)` means that the host is gone.
    pub(crate) fn fill(&mut self) -> Result<bool> {
        loop {
            let start = self.inbox.len();
            self.inbox.resize(start + READ_BYTES, 0);
            let read = self.file.read(&mut self.inbox[start..]);
            self.inbox.truncate(start + *read.as_ref().unwrap_or(&0));
            if read.context("reading the port")? == 0 {
                return Ok(false);
            }
            if self.frame_end()?.is_some() {
                return Ok(true);
            }
        }
    }

    /// The next whole frame, if it is there.
    pub(crate) fn next_frame(&mut self) -> Result<Option<HostFrame>> {
        let Some(end) = self.frame_end()? else { return Ok(None) };
        let frame = wire::decode(&self.inbox[PREFIX_BYTES..end]).context("reading a frame")?;
        self.inbox.drain(..end);
        Ok(Some(frame))
    }

    /// Where the first frame ends, if it is there as a whole.
    fn frame_end(&self) -> Result<Option<usize>> {
        let Some(prefix) = self.inbox.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = wire::body_length(*prefix, HOST_FRAME_MAX_BYTES).map_err(|e| Error::new("reading a frame", e))?;
        Ok(Some(PREFIX_BYTES + length).filter(|&end| end <= self.inbox.len()))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
