//! Every limit, with its unit and the reason for its value.

/// Largest `code`, in bytes. A prompt-sized program is a few KiB; what is larger is data and belongs in `stdin`.
pub const CODE_MAX_BYTES: usize = 1024 * 1024;

/// Largest `stdin`, in bytes. It travels in the same frame as the code; bulk data will have a stream of its own.
pub const STDIN_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Most environment variables of one run. Far above any use seen; it bounds what the guest must hold.
pub const ENV_MAX_VARIABLES: usize = 256;

/// Largest environment of one run, names and values added up, in bytes. Linux refuses a single string over 128 KiB at
/// `execve`, so a larger one would make every subprocess of the user fail.
pub const ENV_MAX_BYTES: usize = 128 * 1024;

/// Shortest `timeout_seconds`.
pub const TIMEOUT_MIN_SECONDS: u64 = 1;

/// Longest `timeout_seconds`. Longer work needs a form that is polled: clients give up on a silent call before that.
pub const TIMEOUT_MAX_SECONDS: u64 = 300;

/// `timeout_seconds` when it is not given. Common clients give up after 60 s, so it stays well below that.
pub const TIMEOUT_DEFAULT_SECONDS: u64 = 30;

/// Least `memory_mb`: a warmed Node.js needs about 50 MiB before the first line of user code.
pub const MEMORY_MIN_MB: u64 = 64;

/// Most `memory_mb`: what common data work needs, and what a laptop can spare for a few VMs at once.
pub const MEMORY_MAX_MB: u64 = 2048;

/// `memory_mb` when it is not given: enough for the usual data work.
pub const MEMORY_DEFAULT_MB: u64 = 512;

/// What a VM has beyond `memory_mb`, in MiB: for the guest's kernel and agent, and for cached files of the image. Within
/// the VM a cgroup holds the program to `memory_mb`; the VM's size is the host's own bound.
pub const VM_OVERHEAD_MB: u64 = 256;

/// What QEMU has beside a VM that it translates (TCG), in MiB, for the code that it has translated: by default up to a gigabyte, which
/// no budget knew of. What fills it is thrown away and translated again.
pub const TCG_CODE_BUFFER_MB: u64 = 256;

/// Largest writable space of a run (`/workspace`, `/tmp`, `/dev/shm` and the home directory together), in MiB.
pub const WORKSPACE_MAX_MB: u64 = 1024;

/// Most files and directories in the writable space. An inode costs about 1 KiB of the guest kernel's memory.
pub const WORKSPACE_MAX_INODES: u64 = 200_000;

/// What an interpreter needs for itself, in MiB: of the three, a warmed Node.js needs most.
pub const INTERPRETER_MB: u64 = 48;

/// Writable space of a run that is given so much memory, in MiB. It is memory, and counts against `memory_mb`; so it has to be
/// full before that is used up, else a program that writes too much is killed instead of being told. Three quarters of what an
/// interpreter leaves: the last one is for what a program holds while it writes, and for the files' own bookkeeping.
pub const fn writable_mb(memory_mb: u64) -> u64 {
    let size_mb = memory_mb.saturating_sub(INTERPRETER_MB) * 3 / 4;
    if size_mb > WORKSPACE_MAX_MB { WORKSPACE_MAX_MB } else { size_mb }
}

/// Most files and directories in a writable space of so many MiB: as many for its size as the largest may have.
pub const fn writable_inodes(size_mb: u64) -> u64 {
    let inodes = size_mb * WORKSPACE_MAX_INODES / WORKSPACE_MAX_MB;
    if inodes > WORKSPACE_MAX_INODES { WORKSPACE_MAX_INODES } else { inodes }
}

/// Most processes and threads of a run. A fork bomb meets it at once; Node.js with a few workers needs about 40.
pub const PROCESSES_MAX: u64 = 512;

/// Most open files of one process of a run.
pub const OPEN_FILES_MAX: u64 = 4096;

/// Largest stdout in a result, in bytes; of more, the beginning and the end are kept and the rest is counted, while the run goes on.
pub const STDOUT_MAX_BYTES: usize = 1_000_000;

/// Largest stderr in a result, in bytes.
pub const STDERR_MAX_BYTES: usize = 100_000;

/// Largest JSON-RPC message from a client, in bytes. JSON may write each byte of code, stdin and environment as six
/// (`\u0001`); what is larger is discarded as it comes and answered with an error.
pub const MESSAGE_MAX_BYTES: usize = 6 * (CODE_MAX_BYTES + STDIN_MAX_BYTES + ENV_MAX_BYTES) + 64 * 1024;

/// Largest frame from the host to a guest, in bytes: code, stdin and environment, and room for the envelope.
pub const HOST_FRAME_MAX_BYTES: usize = CODE_MAX_BYTES + STDIN_MAX_BYTES + ENV_MAX_BYTES + 64 * 1024;

/// Largest frame from a guest to the host, in bytes. A guest is untrusted, so this is also the most memory that one
/// guest can make the host set aside for reading.
pub const GUEST_FRAME_MAX_BYTES: usize = 128 * 1024;

/// Output bytes in one frame. Below [`GUEST_FRAME_MAX_BYTES`], large enough that framing costs nothing.
pub const OUTPUT_CHUNK_MAX_BYTES: usize = 64 * 1024;

/// Input bytes of a run in one frame: as for output.
pub const INPUT_CHUNK_MAX_BYTES: usize = 64 * 1024;

/// Output of a run of a session that may be under way to whoever listens to it, in bytes. What lies in the program's pipes at its end
/// comes on top of it ([`PIPE_BYTES`] each), so that this and two pipes are what a guest can make the host hold for a run.
pub const OUTPUT_WINDOW_BYTES: u64 = 256 * 1024;

/// Capacity of the pipes that a program writes to, in bytes. Linux allows root more than the usual 64 KiB, and fewer switches between
/// program and agent are what counts under TCG.
pub const PIPE_BYTES: usize = 1024 * 1024;

/// Most runs of a session at once: a call in each language, and the rest in the background. A few servers and a watcher are what agents
/// start; each is an interpreter of 10-50 MiB.
pub const SESSION_RUNS_MAX: usize = 16;

/// Largest file that is in a message itself, in bytes: as stdin. Larger ones come from a folder of the host.
pub const FILE_INLINE_MAX_BYTES: usize = STDIN_MAX_BYTES;

/// What is taken of a file of a VM at once, in bytes: as much as a VM can hold. A sparse file may claim to be larger.
pub const FILE_MAX_BYTES: u64 = MEMORY_MAX_MB * 1024 * 1024;

/// Most files, and patterns of files, of one call.
pub const FILES_MAX: usize = 100;

/// What a call returns of the files that it has left, in bytes: as much as it can bring. The others are only named.
pub const OUTPUTS_MAX_BYTES: u64 = FILE_INLINE_MAX_BYTES as u64;

/// What `read_file` returns if not told otherwise, in bytes: more is seldom what a model wants to pay for.
pub const FILE_READ_DEFAULT_BYTES: u64 = 100_000;

/// Longest path of a file, in bytes: the kernel takes no longer one.
pub const PATH_MAX_BYTES: usize = 4096;

/// Most entries of a folder, and of those within, that are looked at: more than a project has, its packages included.
pub const LISTED_FILES_MAX: usize = 20_000;

/// What their names may take together, in bytes, each with [`LISTED_ENTRY_BYTES`] more: a listing is held whole.
pub const LISTING_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What an entry takes beside its name, in bytes.
pub const LISTED_ENTRY_BYTES: usize = 64;

/// Most that `list_files` tells of them. A longer list is of no use to anybody.
pub const TOLD_FILES_MAX: usize = 1000;

/// Longest `idle_timeout_seconds` of a session, in seconds.
pub const IDLE_MAX_SECONDS: u64 = 24 * 60 * 60;

/// `idle_timeout_seconds` when it is not given, in seconds: a model that thinks, or a person who reads, takes minutes; what is forgotten
/// keeps a VM's memory from others.
pub const IDLE_DEFAULT_SECONDS: u64 = 15 * 60;

/// Longest `timeout_seconds` of a background run, in seconds.
pub const BACKGROUND_TIMEOUT_MAX_SECONDS: u64 = 24 * 60 * 60;

/// `timeout_seconds` of a background run when it is not given, in seconds: a server that is forgotten ends with its session, or so.
pub const BACKGROUND_TIMEOUT_DEFAULT_SECONDS: u64 = 60 * 60;

/// Longest `wait_seconds` of `get_run`, in seconds: clients give up on a silent call after a minute.
pub const WAIT_MAX_SECONDS: u64 = 50;

/// Output of a background run that is kept for who fetches it, in bytes: as much as a result can have.
pub const BACKGROUND_OUTPUT_MAX_BYTES: usize = STDOUT_MAX_BYTES;

/// Most packages of one request. A project's own requirements are 10 or 20; what they pull in is not counted.
pub const PACKAGES_MAX: usize = 50;

/// Memory of an installer and of all that it writes, in MiB: what is unpacked is kept in memory until it is packed, and the
/// largest usual sets come to some 1.5 GB. What is not used costs nothing.
pub const INSTALL_MEMORY_MB: u64 = 3072;

/// Least memory of an installer, in MiB, on a machine that has less than [`INSTALL_MEMORY_MB`] for it: enough for usual sets.
pub const INSTALL_MEMORY_MIN_MB: u64 = 1024;

/// Of an installer's memory what it must not fill with files, in MiB: uv and npm take 100-300 themselves.
pub const INSTALL_PROGRAM_MB: u64 = 512;

/// How long an installation may take, in seconds. Half a gigabyte under TCG takes some 5 minutes.
pub const INSTALL_TIMEOUT_SECONDS: u64 = 900;

/// Size of the disk that a package layer is in, in bytes. All have the same, since a clone keeps the disk size of its template;
/// what a layer does not fill is a hole that takes nothing. Larger than any usual set: torch without CUDA unpacks to 0.9 GB.
pub const LAYER_SLOT_BYTES: u64 = LAYER_FIRST_PART_BYTES + (LAYER_PARTS_MAX as u64 - 1) * LAYER_ADDED_PART_BYTES;

/// How many parts that disk has: a layer, and what was added to it, one after the other. Agents find out what they need one package at a
/// time; behind the last there is no room, and all is installed anew, as one part.
pub const LAYER_PARTS_MAX: usize = 12;

/// The first part, in bytes.
pub const LAYER_FIRST_PART_BYTES: u64 = 3 * 1024 * 1024 * 1024;

/// Each of the others. What is before one is the layer that its packages were added to, byte by byte: a VM that has that one mounted
/// can be given the other.
pub const LAYER_ADDED_PART_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes of the tunnel in one frame, either way. Large enough that a frame's own cost is lost in it, small enough that what is
/// said of the program meanwhile does not wait for long.
pub const TUNNEL_CHUNK_MAX_BYTES: usize = 64 * 1024;

/// Most connections of a guest that are in the tunnel at once; further ones wait to be accepted. uv opens up to 50, npm 15.
pub const TUNNEL_STREAMS_MAX: usize = 64;

/// Most streams that an end of the tunnel takes. What the guest has closed, its host may still be serving, so it is more than
/// a guest has open; who opens more than this is none of our agents.
pub const TUNNEL_STREAMS_LIMIT: usize = 2 * TUNNEL_STREAMS_MAX;

/// Most bytes of the tunnel that an end can be made to hold because nobody reads them. yamux promises 256 KiB to each stream;
/// the rest is for streams whose bandwidth asks for more.
pub const TUNNEL_WINDOW_MAX_BYTES: usize = TUNNEL_STREAMS_LIMIT * 256 * 1024 + 16 * 1024 * 1024;

/// Most bytes of one data frame within the tunnel. A stream may have a dozen of them queued, so it bounds memory too.
pub const TUNNEL_SPLIT_BYTES: usize = 32 * 1024;

/// Most bytes that say where a stream of the tunnel leads: a DNS name has at most 253, and there is some room.
pub const TARGET_MAX_BYTES: usize = 512;

/// How old a part of the image may be that Debian's packages are in, in days. Its key names the packages and not their versions, so only
/// its age tells that there are newer ones. Debian publishes security updates every few days and a point release every two months; a
/// month is what a build of some minutes, and new templates after it, can be asked for.
pub const IMAGE_MAX_AGE_DAYS: u64 = 30;

/// Largest writable space that a VM may be given in place of [`WORKSPACE_MAX_MB`], in MiB: more than any VM has memory for.
pub const WRITABLE_MAX_MB: u64 = 64 * 1024;

const _: () = {
    assert!(OUTPUT_CHUNK_MAX_BYTES + 1024 < GUEST_FRAME_MAX_BYTES);
    assert!(TUNNEL_CHUNK_MAX_BYTES + 1024 < GUEST_FRAME_MAX_BYTES);
    assert!(TUNNEL_CHUNK_MAX_BYTES + 1024 < HOST_FRAME_MAX_BYTES);
    assert!(INPUT_CHUNK_MAX_BYTES + 1024 < HOST_FRAME_MAX_BYTES);
    assert!(TIMEOUT_DEFAULT_SECONDS < 60);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// What an empty file takes of the kernel's memory, in bytes: an inode and a name.
    const INODE_BYTES: u64 = 1280;

    #[test]
    fn what_may_be_written_leaves_an_interpreter_its_memory() {
        for memory_mb in MEMORY_MIN_MB..=MEMORY_MAX_MB {
            let size_mb = writable_mb(memory_mb);
            let inodes_mb = writable_inodes(size_mb) * INODE_BYTES / (1024 * 1024);
            assert!(size_mb > 0 && INTERPRETER_MB + size_mb + inodes_mb <= memory_mb, "{size_mb} of {memory_mb} MiB");
        }
        assert_eq!(writable_mb(MEMORY_MAX_MB), WORKSPACE_MAX_MB);
        assert_eq!(writable_inodes(WRITABLE_MAX_MB), WORKSPACE_MAX_INODES);
    }
}
