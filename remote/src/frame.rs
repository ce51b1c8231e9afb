//! Files in frames: pieces that are compressed, sent, checked and written on their own. Holes, and pages of zeros, are in none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sandbox_schemas::image::Digest;
use sandbox_schemas::remote::{FRAME_DATA_MAX_BYTES, FRAME_EXTENTS_MAX, FRAME_PLAIN_MAX_BYTES, RemoteFrame};
use sandbox_store::for_each_run;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

/// zstd's own default: a template in 0.5 s. A level more saves a few parts in a hundred and takes half as long again.
const LEVEL: i32 = 3;

/// A compressed frame.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) frame: RemoteFrame,
    /// How many bytes of the file are in it.
    pub(crate) data_bytes: u64,
    pub(crate) stored: Vec<u8>,
}

/// Why a frame was not written to a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// It is not what the manifest says, or nothing that we would have made.
    #[error("{0}")]
    Wrong(&'static str),
    /// The disk.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Hands over a file's frames, in its order. An error of `take` ends it.
pub(crate) fn pack(file: &File, mut take: impl FnMut(Packed) -> io::Result<()>) -> io::Result<()> {
    let mut compressor = Compressor::new(LEVEL)?;
    let mut open = Open::default();
    for_each_run(file, |at, run| {
        if open.data.len() + run.len() > FRAME_DATA_MAX_BYTES {
            take(open.close(&mut compressor)?)?;
        }
        open.add(at, run);
        Ok(())
    })?;
    if open.data.is_empty() { Ok(()) } else { take(open.close(&mut compressor)?) }
}

/// A frame that is being filled.
#[derive(Default)]
struct Open {
    /// Where each begins, and how long it is.
    extents: Vec<(u64, u64)>,
    data: Vec<u8>,
}

impl Open {
    fn add(&mut self, at: u64, run: &[u8]) {
        match self.extents.last_mut() {
            Some((start, length)) if *start + *length == at => *length += run.len() as u64,
            _ => self.extents.push((at, run.len() as u64)),
        }
        self.data.extend_from_slice(run);
    }

    fn close(&mut self, compressor: &mut Compressor<'_>) -> io::Result<Packed> {
        let mut plain = Vec::with_capacity(4 + 16 * self.extents.len() + self.data.len());
        plain.extend_from_slice(&(self.extents.len() as u32).to_le_bytes());
        for (start, length) in self.extents.drain(..) {
            plain.extend_from_slice(&start.to_le_bytes());
            plain.extend_from_slice(&length.to_le_bytes());
        }
        plain.extend_from_slice(&self.data);
        let stored = compressor.compress(&plain)?;
        let frame = RemoteFrame {
            stored_bytes: stored.len() as u32,
            plain_bytes: plain.len() as u32,
            sha256: Digest(Sha256::digest(&plain).into()),
        };
        let data_bytes = self.data.len() as u64;
        self.data.clear();
        Ok(Packed { frame, data_bytes, stored })
    }
}

/// Writes a frame into a file of `size_bytes`, once all of it is what the manifest says.
pub(crate) fn unpack(stored: &[u8], frame: &RemoteFrame, file: &File, size_bytes: u64) -> Result<(), UnpackError> {
    let length = (frame.plain_bytes as usize).min(FRAME_PLAIN_MAX_BYTES);
    let plain = zstd::bulk::decompress(stored, length).map_err(|_| UnpackError::Wrong("a frame is not compressed"))?;
    if Digest(Sha256::digest(&plain).into()) != frame.sha256 {
        return Err(UnpackError::Wrong("a frame's SHA-256 is not the manifest's"));
    }
    // Without a key that vouches for it, what hashes right may still be made to harm.
    let malformed = UnpackError::Wrong("a frame is malformed");
    let Some((count, rest)) = plain.split_first_chunk() else { return Err(malformed) };
    let count = u32::from_le_bytes(*count) as usize;
    let Some((extents, mut data)) = rest.split_at_checked(16 * count.min(FRAME_EXTENTS_MAX + 1)) else {
        return Err(malformed);
    };
    for extent in extents.chunks_exact(16) {
        let Some((start, length)) = extent.split_first_chunk() else { return Err(malformed) };
        let (start, length) = (u64::from_le_bytes(*start), length.first_chunk().map_or(0, |l| u64::from_le_bytes(*l)));
        let is_within = start.checked_add(length).is_some_and(|end| end <= size_bytes);
        let taken = usize::try_from(length).ok().and_then(|length| data.split_at_checked(length));
        let (Some((bytes, rest)), true) = (taken, is_within) else { return Err(malformed) };
        file.write_all_at(bytes, start)?;
        data = rest;
    }
    if data.is_empty() { Ok(()) } else { Err(malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn packed(file: &File) -> Vec<Packed> {
        let mut all = Vec::new();
        let take = |packed| {
            all.push(packed);
            Ok(())
        };
        pack(file, take).unwrap();
        all
    }

    /// Packs, unpacks in any order, and compares. How many frames there were.
    #[track_caller]
    fn check(size_bytes: u64, content: &[(u64, Vec<u8>)]) -> usize {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for file in [&one, &other] {
            file.set_len(size_bytes).unwrap();
        }
        for (at, bytes) in content {
            one.write_all_at(bytes, *at).unwrap();
        }
        let all = packed(&one);
        for packed in all.iter().rev() {
            assert!(packed.frame.plain_bytes as usize <= FRAME_PLAIN_MAX_BYTES);
            assert_eq!(packed.frame.stored_bytes as usize, packed.stored.len());
            unpack(&packed.stored, &packed.frame, &other, size_bytes).unwrap();
        }
        for (at, bytes) in content {
            let mut found = vec![0; bytes.len()];
            other.read_exact_at(&mut found, *at).unwrap();
            assert!(found == *bytes);
        }
        other.sync_all().unwrap();
        let data: u64 = all.iter().map(|packed| packed.data_bytes).sum();
        assert!(other.metadata().unwrap().blocks() * 512 <= data + (1 << 20), "holes stay holes");
        all.len()
    }

    #[test]
    fn files_come_back_with_their_holes() {
        let noise = |bytes: usize, seed: u64| -> Vec<u8> {
            let mut state = seed;
            let next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            std::iter::repeat_with(next).take(bytes).collect()
        };
        assert_eq!(check(0, &[]), 0);
        assert_eq!(check(1 << 30, &[]), 0);
        assert_eq!(check(5, &[(0, b"hello".to_vec())]), 1);
        assert_eq!(
            check(1 << 30, &[(4096, vec![1; 4096]), (500 << 20, noise(3 << 20, 7)), ((1 << 30) - 3, vec![9; 3])]),
            1
        );
        assert_eq!(check(20 << 20, &[(0, noise(20 << 20, 8))]), 3);
        // As many extents as there can be.
        let every_other: Vec<_> = (0..3000).map(|page| (page * 8192, vec![3; 4096])).collect();
        assert_eq!(check(3000 * 8192, &every_other), 2);
    }

    #[test]
    fn what_was_changed_is_not_written() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 10_000], 0).unwrap();
        let Packed { frame, stored, .. } = packed(&file).remove(0);
        let target = tempfile::tempfile().unwrap();
        let wrong = |stored: &[u8], frame: RemoteFrame, size| {
            let error = unpack(stored, &frame, &target, size).unwrap_err();
            assert!(matches!(error, UnpackError::Wrong(_)), "{error}");
        };
        for at in 0..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            // A bit that zstd does not look at changes nothing.
            if let Err(error) = unpack(&changed, &frame, &target, 10_000) {
                assert!(matches!(error, UnpackError::Wrong(_)), "{error}");
            }
            if at > 0 {
                wrong(&stored[..at], frame, 10_000);
            }
        }
        wrong(&stored, RemoteFrame { sha256: Digest([0; 32]), ..frame }, 10_000);
        wrong(&stored, RemoteFrame { plain_bytes: 100, ..frame }, 10_000);
        wrong(&stored, frame, 9_999);
    }

    #[test]
    fn a_frame_made_to_harm_is_refused() {
        let target = tempfile::tempfile().unwrap();
        let refused = |plain: &[u8]| {
            let stored = zstd::bulk::compress(plain, 1).unwrap();
            let sha256 = Digest(Sha256::digest(plain).into());
            let (stored_bytes, plain_bytes) = (stored.len() as u32, plain.len() as u32);
            let error = unpack(&stored, &RemoteFrame { stored_bytes, plain_bytes, sha256 }, &target, 100).unwrap_err();
            assert_eq!(error.to_string(), "a frame is malformed");
        };
        let extent = |start: u64, length: u64| [start.to_le_bytes(), length.to_le_bytes()].concat();
        refused(b"");
        refused(&u32::MAX.to_le_bytes());
        refused(&1u32.to_le_bytes());
        refused(&[&1u32.to_le_bytes()[..], &extent(0, 4), b"xyz"].concat());
        refused(&[&1u32.to_le_bytes()[..], &extent(0, 4), b"xyz42"].concat());
        refused(&[&1u32.to_le_bytes()[..], &extent(97, 4), b"xyz4"].concat());
        refused(&[&1u32.to_le_bytes()[..], &extent(u64::MAX, 4), b"xyz4"].concat());
        assert_eq!(target.metadata().unwrap().len(), 4, "only the one that was right and had more behind it");
    }
}
