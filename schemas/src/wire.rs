//! The frames between host and guest, over the one virtio-serial port of a VM.
//!
//! A frame is a little-endian `u32` length and that many bytes of postcard. Each side caps what it reads: the guest is
//! untrusted, and a lying length must not make the host set memory aside.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::language::Language;

/// Version of this protocol. Host and agent are built together; it catches an image that was mixed by hand.
pub const PROTOCOL_VERSION: u32 = 6;

/// Names a run within its VM: the host counts them.
pub type RunId = u32;

/// Bytes of a frame's length prefix.
pub const PREFIX_BYTES: usize = 4;

/// What the host says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostFrame {
    /// The first frame of every VM, before any user byte runs: what makes this VM another than its origin. Comes again
    /// when a VM was restored.
    Hello(Hello),
    /// The wall clock, nanoseconds since the epoch: a VM that has waited is told it again.
    Clock(u64),
    /// Run a program; what it is allowed beside others is in its [`Kind`].
    Execute(Execute),
    /// A file that is wanted, or that comes. It has a number among the runs.
    File {
        /// Its number.
        run: RunId,
        /// As [`Execute::memory_bytes`]: the space that there is for files goes by it.
        memory_bytes: u64,
        /// What is wished for.
        wish: FileWish,
    },
    /// The disk of packages has more parts than before: so many in all. Answered with [`GuestFrame::Transferred`].
    Packages {
        /// A number among the runs.
        run: RunId,
        /// How many.
        parts: u8,
    },
    /// The next bytes of a run's standard input, at most [`crate::limits::INPUT_CHUNK_MAX_BYTES`]. Only for [`Kind::Beside`]; and of a file
    /// that comes.
    Input {
        /// Whose.
        run: RunId,
        /// May be none, where only the end is told.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// Whether there will be no more.
        is_last: bool,
    },
    /// So many bytes of a run's output more may be sent than [`Execute::window`] said.
    Credit {
        /// Whose.
        run: RunId,
        /// How many.
        bytes: u64,
    },
    /// Interrupt a run as Ctrl-C would: SIGINT, or what its processes are likelier to hear.
    Interrupt(RunId),
    /// Kill every process of a run.
    Kill(RunId),
    /// The next bytes of the tunnel, at most [`crate::limits::TUNNEL_CHUNK_MAX_BYTES`]. Only where the role has one.
    Tunnel(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What is wished for of a VM's files. Paths are the user's: absolute, or from `/workspace` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileWish {
    /// A file comes, by [`HostFrame::Input`]; it appears when it is whole, in the place of one that is there.
    Store {
        /// Where.
        path: String,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A file is wanted; it comes as the output of its number.
    Fetch {
        /// Which.
        path: String,
        /// From which byte on.
        offset: u64,
        /// How many bytes at most.
        length: u64,
        /// As [`Execute::window`].
        window: u64,
    },
    /// What is in a folder.
    List {
        /// Which.
        path: String,
        /// Whether what is in folders within is told as well.
        recursive: bool,
    },
}

/// What is in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path from that folder on; what is not UTF-8 stands as U+FFFD.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Its size, in bytes.
    pub size: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Folder,
    /// A symbolic link.
    Link,
    /// A FIFO, a socket, a device.
    Other,
}

impl EntryKind {
    /// How `list_files` calls it.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::File => "file",
            EntryKind::Folder => "folder",
            EntryKind::Link => "link",
            EntryKind::Other => "other",
        }
    }
}

/// What makes a VM itself, and what it shall have ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the host.
    pub protocol: u32,
    /// Wall clock, nanoseconds since the epoch.
    pub realtime_ns: u64,
    /// Fresh random bytes for the guest kernel's generator.
    pub entropy: [u8; 32],
    /// Identity of the VM: becomes its host name and machine id (32 hexadecimal digits).
    pub vm_id: String,
    /// Interpreters to start now, so that they are warm when a program comes.
    pub warm: Vec<Language>,
    /// What the VM is for.
    pub role: Role,
    /// How many parts of the second disk have packages that are to be mounted, before any interpreter starts: none, the first,
    /// or also what was added to that.
    pub parts: u8,
}

/// What a VM is for. Only the host gives it more than a program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It runs programs, which reach nothing.
    Runs,
    /// It installs packages: what listens on [`crate::tunnel::REGISTRY_PORT`] leads to the host.
    Installs {
        /// Size of the writable space, in MiB, in place of the usual one.
        writable_mb: u64,
        /// Whether there is a second disk, which the program shall write its result to.
        has_disk: bool,
    },
}

/// A program and its limits, validated by the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execute {
    /// Its name in all that is said of it.
    pub run: RunId,
    /// Which interpreter runs it.
    pub language: Language,
    /// What becomes of the interpreter, and what may run beside it.
    pub kind: Kind,
    /// The program.
    pub code: String,
    /// All that its standard input holds; of [`Kind::Beside`] only its beginning.
    pub stdin: String,
    /// Environment variables, name and value.
    pub env: Vec<(String, String)>,
    /// Memory limit, in bytes.
    pub memory_bytes: u64,
    /// Bytes of stdout that are sent as they come; what comes after is counted, and its end, half as much, sent when the program has ended.
    pub stdout_max: u64,
    /// The same of stderr.
    pub stderr_max: u64,
    /// Bytes of output that may be sent before there is [`HostFrame::Credit`] for more, so that a run to which nobody listens keeps no
    /// other from being heard. What lies in its pipes at its end is sent all the same.
    pub window: u64,
}

/// What a program is to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The VM's only program, and its last: whatever else runs ends with it.
    Only,
    /// A program of the host's own, run so that the next one finds everything touched and translated: the interpreter stays, and
    /// waits for another.
    Rehearsal,
    /// A call of a session: the interpreter stays, with what the program leaves in it. One at a time in a language.
    Call {
        /// The how manieth of its session it is, from 1 on: tracebacks say so.
        number: u32,
    },
    /// A process of its own, beside all others.
    Beside,
}

/// What the guest says. Untrusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestFrame {
    /// The interpreters that [`Hello`] asked for are warm.
    Ready,
    /// The program is handed to its interpreter now: from here on it may have run.
    Started(RunId),
    /// Output, in order within a stream.
    Output {
        /// Whose.
        run: RunId,
        /// Which stream.
        stream: Stream,
        /// At most [`crate::limits::OUTPUT_CHUNK_MAX_BYTES`] bytes, as written.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// So many bytes of what was given by [`HostFrame::Input`] are the program's to read now, or nobody's: it has closed the pipe.
    Taken {
        /// Whose.
        run: RunId,
        /// How many.
        bytes: u64,
    },
    /// Something in a folder that was asked for.
    Listed {
        /// The number of the wish.
        run: RunId,
        /// What.
        entry: Entry,
    },
    /// What was wished for of files is done.
    Transferred {
        /// The number of the wish.
        run: RunId,
        /// The whole size of the file, in bytes; of a folder, 1 if it has more than was told.
        size: u64,
    },
    /// The program has ended and all its output was sent.
    Finished(Finished),
    /// The guest could not do what it was asked; the program did not run.
    Failed {
        /// Which one, where it is about one.
        run: Option<RunId>,
        /// Why, for a person.
        reason: String,
    },
    /// The next bytes of the tunnel, at most [`crate::limits::TUNNEL_CHUNK_MAX_BYTES`] and at least one. Only where the role
    /// has a tunnel.
    Tunnel(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// A stream of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// What it is called in results.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which program.
    pub run: RunId,
    /// Its exit status.
    pub exit: Exit,
    /// Of a call: whether an interpreter has ended that held what earlier calls had left in it, with this one or before it.
    pub state_lost: bool,
    /// All bytes written to stdout, those not sent included.
    pub stdout_bytes: u64,
    /// All bytes written to stderr, those not sent included.
    pub stderr_bytes: u64,
    /// Starting its interpreter took so long, in microseconds.
    pub spawn_us: u64,
    /// From its start to its end, in microseconds of the guest's monotonic clock.
    pub process_us: u64,
    /// CPU time of all its processes, in microseconds.
    pub cpu_us: u64,
    /// Most memory that all its processes and files had at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// Exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl Exit {
    /// The shell's convention: 128+N for signal N.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => i32::from(code),
            Exit::Signal(signal) => 128 + i32::from(signal),
        }
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The prefix announces more than the reader allows.
    #[error("a frame of {length} bytes; at most {max} are allowed")]
    TooLarge {
        /// Announced length, in bytes.
        length: usize,
        /// What the reader allows, in bytes.
        max: usize,
    },
    /// The body is not a frame of the expected kind.
    #[error("a malformed frame of {length} bytes: {reason}")]
    Malformed {
        /// Length of the body, in bytes.
        length: usize,
        /// postcard's word for it.
        reason: String,
    },
}

/// A whole frame, prefix included.
pub fn encode<T: Serialize>(frame: &T) -> Result<Vec<u8>, FrameError> {
    let malformed = |reason: postcard::Error| FrameError::Malformed { length: 0, reason: reason.to_string() };
    let mut bytes = postcard::to_extend(frame, vec![0; PREFIX_BYTES]).map_err(malformed)?;
    let length = bytes.len() - PREFIX_BYTES;
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLarge { length, max: u32::MAX as usize })?;
    bytes[..PREFIX_BYTES].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// The body's length that a prefix announces, if `max` allows it.
pub fn body_length(prefix: [u8; PREFIX_BYTES], max: usize) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > max { Err(FrameError::TooLarge { length, max }) } else { Ok(length) }
}

/// The frame in a body. Bytes left over are an error: nothing may hide behind a frame.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let malformed = |reason: String| FrameError::Malformed { length: body.len(), reason };
    match postcard::take_from_bytes(body) {
        Ok((frame, [])) => Ok(frame),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    fn output() -> GuestFrame {
        GuestFrame::Output { run: 1, stream: Stream::Stderr, bytes: vec![0xff, 0, 7] }
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let bytes = encode(&output()).unwrap();
        let (prefix, body) = bytes.split_first_chunk::<PREFIX_BYTES>().unwrap();
        assert_eq!(body_length(*prefix, 1024).unwrap(), body.len());
        assert_eq!(decode::<GuestFrame>(body).unwrap(), output());
    }

    #[test]
    fn a_lying_length_is_refused_before_anything_is_read() {
        assert_eq!(
            body_length(u32::MAX.to_le_bytes(), 1024),
            Err(FrameError::TooLarge { length: u32::MAX as usize, max: 1024 })
        );
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_malformed() {
        let bytes = encode(&output()).unwrap();
        let body = &bytes[PREFIX_BYTES..];
        for length in 0..body.len() {
            assert!(decode::<GuestFrame>(&body[..length]).is_err(), "{length} bytes were accepted");
        }
        assert!(decode::<GuestFrame>(&[body, &[0]].concat()).is_err());
        assert!(decode::<GuestFrame>(&[200]).is_err(), "an unknown kind was accepted");
    }

    #[test]
    fn the_largest_chunk_of_the_tunnel_fits_a_frame_either_way() {
        let chunk = vec![0xff; limits::TUNNEL_CHUNK_MAX_BYTES];
        let from_guest = encode(&GuestFrame::Tunnel(chunk.clone())).unwrap();
        let from_host = encode(&HostFrame::Tunnel(chunk)).unwrap();
        assert!(from_guest.len() - PREFIX_BYTES <= limits::GUEST_FRAME_MAX_BYTES);
        assert!(from_host.len() - PREFIX_BYTES <= limits::HOST_FRAME_MAX_BYTES);
    }
}
