//! Files that are mostly holes: what a VM's memory is on disk. Only pages that hold anything are read, written or sent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// What is stored or left out as a whole.
pub const PAGE_BYTES: usize = 4096;

/// The longest run: large enough that calls do not count.
pub const RUN_MAX_BYTES: usize = 1024 * 1024;

/// Hands over the pages that hold anything, with where they begin: runs of neighbours, in the file's order. Only the file's
/// last page can be shorter than the others.
pub fn for_each_run(file: &File, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let size_bytes = file.metadata()?.len();
    let mut chunk = vec![0; RUN_MAX_BYTES];
    for_each_extent(file, |start, end| {
        // Extents need not begin at a page where the file system's blocks are smaller.
        let mut at = start - start % PAGE_BYTES as u64;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(RUN_MAX_BYTES).min(RUN_MAX_BYTES);
            let length =
                length.next_multiple_of(PAGE_BYTES).min(usize::try_from(size_bytes - at).unwrap_or(RUN_MAX_BYTES));
            file.read_exact_at(&mut chunk[..length], at)?;
            let mut run_start = None;
            for (index, page) in chunk[..length].chunks(PAGE_BYTES).enumerate() {
                let offset = index * PAGE_BYTES;
                if !is_zero(page) {
                    run_start.get_or_insert(offset);
                } else if let Some(run) = run_start.take() {
                    take(at + run as u64, &chunk[run..offset])?;
                }
            }
            if let Some(run) = run_start {
                take(at + run as u64, &chunk[run..length])?;
            }
            at += length as u64;
        }
        Ok(())
    })
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|&byte| byte == 0)
}

/// Each part of a file that is not a hole, from its first byte to the one behind its last.
pub fn for_each_extent(file: &File, mut take: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = lseek(file, start, Whence::SeekHole)?;
        take(start.unsigned_abs(), at.unsigned_abs())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_is_not_zero_whether_written_or_a_hole() {
        let file = tempfile::tempfile().unwrap();
        let page = PAGE_BYTES as u64;
        file.set_len(1000 * page + 10).unwrap();
        for (at, length, byte) in [(0, 2 * page, 1), (2 * page, page, 0), (3 * page + 5, 1, 2), (1000 * page, 10, 3)] {
            file.write_all_at(&vec![byte; length as usize], at).unwrap();
        }
        let mut runs = Vec::new();
        let mut take = |at, run: &[u8]| {
            runs.push((at, run.len(), run.iter().map(|&byte| usize::from(byte)).sum()));
            Ok(())
        };
        for_each_run(&file, &mut take).unwrap();
        let pages = 2 * PAGE_BYTES;
        assert_eq!(runs, [(0, pages, pages), (3 * page, PAGE_BYTES, 2), (1000 * page, 10, 30)]);
        for_each_run(&tempfile::tempfile().unwrap(), |_, _| panic!("there is nothing")).unwrap();
    }
}
