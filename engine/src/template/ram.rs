//! The memory of a template: in the making a file in memory, kept a sparse file on disk, restored from either.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sandbox_schemas::image::Digest;
use sandbox_schemas::template::RamPart;
use sandbox_store::{PAGE_BYTES, RUN_MAX_BYTES, for_each_extent, for_each_run};
use sha2::{Digest as _, Sha256};

/// Copied at once.
const CHUNK_BYTES: usize = RUN_MAX_BYTES;

/// Memory for a VM: a file that has no name, gone with its last user.
pub(crate) fn create(size_bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create("template", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(size_bytes)?;
    Ok(file)
}

/// A file with nothing in it, which nobody can ever write to.
pub(crate) fn nothing(size_bytes: u64) -> io::Result<OwnedFd> {
    let file = create(size_bytes)?;
    seal(&file)?;
    Ok(file.into())
}

/// Writes the pages that hold anything to `to`, which is empty.
pub(crate) fn save(ram: &File, to: &File) -> io::Result<RamPart> {
    to.set_len(ram.metadata()?.len())?;
    summarise(ram, |offset, pages| to.write_all_at(pages, offset))
}

/// What a file holds.
pub(crate) fn hash(ram: &File) -> io::Result<RamPart> {
    summarise(ram, |_, _| Ok(()))
}

/// A copy in memory that nobody can ever write to: for a QEMU that opens for writing what it shall only read.
pub(crate) fn sealed_copy(ram: &File) -> io::Result<OwnedFd> {
    let copy = copy(ram)?;
    seal(&copy)?;
    Ok(copy.into())
}

/// A copy in memory.
pub(crate) fn copy(ram: &File) -> io::Result<File> {
    let copy = create(ram.metadata()?.len())?;
    let mut chunks = Vec::new();
    for_each_extent(ram, |start, end| {
        let starts = (start..end).step_by(CHUNK_BYTES);
        chunks.extend(starts.map(|at| (at, usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES))));
        Ok(())
    })?;
    // A first call waits for this, and the kernel has to find a page for each that is written: as much work for two.
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Some(&(at, length)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            ram.read_exact_at(&mut buffer[..length], at)?;
            copy.write_all_at(&buffer[..length], at)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        // One does where no more threads are to be had.
        let other = std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let join = |other: std::thread::ScopedJoinHandle<'_, _>| {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        work().and_then(|()| other.map_or(Ok(()), join))
    })?;
    Ok(copy)
}

/// From now on the content is what it is. Refused while somebody has it mapped for writing.
pub(crate) fn seal(ram: &impl AsFd) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(ram, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Hashes the pages that hold anything, each with its offset before it, and hands runs of them to `take`.
fn summarise(ram: &File, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<RamPart> {
    let (mut hasher, mut data_bytes) = (Sha256::new(), 0);
    for_each_run(ram, |start, run| {
        for (index, page) in run.chunks(PAGE_BYTES).enumerate() {
            hasher.update((start + (index * PAGE_BYTES) as u64).to_le_bytes());
            hasher.update(page);
        }
        data_bytes += run.len() as u64;
        take(start, run)
    })?;
    Ok(RamPart { size_bytes: ram.metadata()?.len(), data_bytes, sha256: Digest(hasher.finalize().into()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const SIZE: u64 = 8 * 1024 * 1024;

    /// Memory with a few pages in it, one of them written with zeros.
    fn memory() -> File {
        let ram = create(SIZE).unwrap();
        for (page, byte) in [(0, 1), (3, 2), (4, 3), (5, 0), (300, 4), (2047, 5)] {
            ram.write_all_at(&[byte; PAGE_BYTES], page * PAGE_BYTES as u64).unwrap();
        }
        ram
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; SIZE as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn memory_is_kept_without_its_zeros_and_comes_back() {
        let (ram, file) = (memory(), tempfile::tempfile().unwrap());
        let saved = save(&ram, &file).unwrap();
        assert_eq!((saved.size_bytes, saved.data_bytes), (SIZE, 5 * PAGE_BYTES as u64));
        assert!(content(&file) == content(&ram));
        assert_eq!(hash(&file).unwrap(), saved);
        assert_eq!(hash(&ram).unwrap(), saved, "a written zero is no content");
        let copy = File::from(sealed_copy(&file).unwrap());
        assert!(content(&copy) == content(&ram));
    }

    #[test]
    fn every_change_changes_the_hash() {
        let ram = memory();
        let before = hash(&ram).unwrap();
        for at in [0, 3 * PAGE_BYTES as u64 + 7, 100 * PAGE_BYTES as u64, SIZE - 1] {
            let mut byte = [0];
            ram.read_exact_at(&mut byte, at).unwrap();
            ram.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_ne!(hash(&ram).unwrap().sha256, before.sha256, "byte {at}");
            ram.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(hash(&ram).unwrap(), before);
        // The same pages elsewhere are other memory.
        let moved = create(SIZE).unwrap();
        moved.write_all_at(&[1; PAGE_BYTES], PAGE_BYTES as u64).unwrap();
        let first = create(SIZE).unwrap();
        first.write_all_at(&[1; PAGE_BYTES], 0).unwrap();
        assert_ne!(hash(&moved).unwrap().sha256, hash(&first).unwrap().sha256);
    }

    #[test]
    fn what_is_sealed_cannot_be_written() {
        for sealed in [sealed_copy(&memory()).unwrap(), nothing(SIZE).unwrap()] {
            // Opened once more for writing, as its user could: the seals hold, not the opening.
            let again = format!("/proc/self/fd/{}", sealed.as_raw_fd());
            let again = File::options().read(true).write(true).open(again).unwrap();
            for file in [File::from(sealed), again] {
                assert!(file.write_all_at(&[1], 0).is_err());
                assert!(file.set_len(0).is_err());
                assert!(file.set_len(2 * SIZE).is_err());
            }
        }
    }
}
