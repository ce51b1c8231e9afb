//! The parts of a disk. Which they are the agent says, not the disk: no table is read, and one file can hold several file systems.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc::{c_char, c_int, c_void};

use crate::error::{Context, Result};

/// `BLKPG_ADD_PARTITION` of linux/blkpg.h.
const ADD_PARTITION: c_int = 1;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Change {
    operation: c_int,
    flags: c_int,
    length: c_int,
    partition: *mut c_void,
}

/// `struct blkpg_partition`. Its names mean nothing to the kernel any more.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: c_int,
    names: [c_char; 128],
}

nix::ioctl_write_ptr_bad!(change_partition, nix::request_code_none!(0x12, 105), Change);

/// Makes parts of the disk at `path`, one behind the other, of so many bytes each.
pub(crate) fn divide(path: &str, parts: impl Iterator<Item = u64>) -> Result<()> {
    let disk = File::open(path).context(format!("opening {path}"))?;
    let mut start = 0;
    for (number, length) in (1..).zip(parts) {
        let mut partition = Partition { start, length: length as i64, number, names: [0; 128] };
        start += partition.length;
        let change = Change {
            operation: ADD_PARTITION,
            flags: 0,
            length: size_of::<Partition>() as c_int,
            partition: (&raw mut partition).cast(),
        };
        #[allow(unsafe_code, reason = "the one way to divide a disk without a table on it")]
        // SAFETY: the disk is open, and both are whole structures of the kernel's that outlive the call.
        unsafe { change_partition(disk.as_raw_fd(), &change) }.context(format!("dividing {path}"))?;
    }
    Ok(())
}
