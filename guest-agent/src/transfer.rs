//! Files that the host puts into the guest, takes from it, or wants to know of. All of it is done with the user's rights.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use sandbox_schemas::files::PLACES;
use sandbox_schemas::limits::{
    LISTED_ENTRY_BYTES, LISTED_FILES_MAX, LISTING_MAX_BYTES, OUTPUT_CHUNK_MAX_BYTES, PATH_MAX_BYTES,
};
use sandbox_schemas::wire::{Entry, EntryKind, FileWish, GuestFrame, RunId, Stream};

use crate::boot::WORKSPACE_DIR;
use crate::confine::{USER_GID, USER_UID};
use crate::error::{Context, Error, Result};
use crate::port::Port;

/// What is under way.
pub(crate) struct Transfer {
    pub(crate) id: RunId,
    what: What,
}

enum What {
    /// Into a file that gets its name when it is whole.
    Store { file: File, unfinished: Option<PathBuf>, path: PathBuf, bytes: u64 },
    /// Out of one.
    Fetch { file: File, left: u64, version: Version, window: u64 },
}

/// What tells whether a file is another than it was: its size, and when it was changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version(u64, i64, i64);

impl Version {
    fn of(known: &fs::Metadata) -> Version {
        Version(known.size(), known.mtime(), known.mtime_nsec())
    }
}

impl Transfer {
    /// Begins what the host wishes; `None` for what is done at once.
    pub(crate) fn begin(id: RunId, wish: FileWish, port: &mut Port) -> Result<Option<Transfer>> {
        let what = match wish {
            FileWish::Store { path, executable } => as_user(|| store(id, &path, executable))?,
            FileWish::Fetch { path, offset, length, window } => as_user(|| fetch(&path, offset, length, window))?,
            FileWish::List { path, recursive } => {
                let (entries, is_cut) = as_user(|| list(&path, recursive))?;
                for entry in entries {
                    port.send(&GuestFrame::Listed { run: id, entry })?;
                }
                port.send(&GuestFrame::Transferred { run: id, size: u64::from(is_cut) })?;
                return Ok(None);
            }
        };
        port.send(&GuestFrame::Started(id))?;
        Ok(Some(Transfer { id, what }))
    }

    /// More of what is stored. `true` when that was all.
    pub(crate) fn give(&mut self, chunk: &[u8], is_last: bool, port: &mut Port) -> Result<bool> {
        let What::Store { file, unfinished, path, bytes } = &mut self.what else {
            return Err(Error::new("a file", "it is read, not written"));
        };
        file.write_all(chunk).context(format!("writing {}", path.display()))?;
        *bytes += chunk.len() as u64;
        if !chunk.is_empty() {
            port.send(&GuestFrame::Taken { run: self.id, bytes: chunk.len() as u64 })?;
        }
        if is_last {
            let doing = || format!("writing {}", path.display());
            if let Some(whole) = unfinished.as_ref() {
                as_user(|| fs::rename(whole, &path).context(doing()))?;
            }
            *unfinished = None;
            port.send(&GuestFrame::Transferred { run: self.id, size: *bytes })?;
        }
        Ok(is_last)
    }

    /// So much more may be sent.
    pub(crate) fn credit(&mut self, bytes: u64) {
        if let What::Fetch { window, .. } = &mut self.what {
            *window = window.saturating_add(bytes);
        }
    }

    /// Whether there is something to send now.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.what, What::Fetch { window: 1.., .. })
    }

    /// Sends a chunk of what is fetched. `true` when that was all.
    pub(crate) fn pump(&mut self, port: &mut Port) -> Result<bool> {
        let What::Fetch { file, left, version, window } = &mut self.what else { return Ok(false) };
        let most = (*left).min(*window).min(OUTPUT_CHUNK_MAX_BYTES as u64) as usize;
        let mut bytes = vec![0; most];
        let length = file.read(&mut bytes).context("reading a file")?;
        bytes.truncate(length);
        if length == 0 && *left > 0 {
            return Err(Error::new("reading a file", "it has become shorter meanwhile"));
        }
        *left -= length as u64;
        *window -= length as u64;
        if length > 0 {
            port.send(&GuestFrame::Output { run: self.id, stream: Stream::Stdout, bytes })?;
        }
        if *left == 0 {
            if Version::of(&file.metadata().context("reading a file")?) != *version {
                return Err(Error::new("reading a file", "it was changed meanwhile"));
            }
            port.send(&GuestFrame::Transferred { run: self.id, size: version.0 })?;
        }
        Ok(*left == 0)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let What::Store { unfinished: Some(unfinished), .. } = &self.what {
            let _ = as_user(|| fs::remove_file(unfinished).context("removing what is not whole"));
        }
    }
}

fn store(id: RunId, path: &str, executable: bool) -> Result<What> {
    let path = resolve(path)?;
    let doing = || format!("writing {}", path.display());
    match fs::symlink_metadata(&path).map(|known| known.file_type()) {
        Ok(kind) if kind.is_dir() => return Err(Error::new(doing(), "it is a directory")),
        Ok(kind) if !kind.is_file() && !kind.is_symlink() => return Err(Error::new(doing(), "it is no regular file")),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new(WORKSPACE_DIR));
    fs::create_dir_all(folder).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::new(doing(), "Not a directory: a part of its path is a file"),
        _ => Error::new(doing(), error),
    })?;
    // In the same folder, so that it gets its name at once.
    let unfinished = folder.join(format!(".sandbox-mcp-{id}"));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = if executable { 0o755 } else { 0o644 };
    let file = File::from(open(&unfinished, flags, Mode::from_bits_truncate(mode)).context(doing())?);
    Ok(What::Store { file, unfinished: Some(unfinished), path, bytes: 0 })
}

fn fetch(path: &str, offset: u64, length: u64, window: u64) -> Result<What> {
    let path = resolve(path)?;
    let doing = || format!("reading {}", path.display());
    // Looked at before it is opened: opening a FIFO would wait, and a device may do something.
    let place = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).context(doing())?;
    let known = fs::metadata(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())).context(doing())?;
    if !known.is_file() {
        let kind = if known.is_dir() { "a directory; list_files lists it" } else { "no regular file" };
        return Err(Error::new(doing(), format!("it is {kind}")));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = open(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd()).as_str(), flags, Mode::empty());
    let mut file = File::from(file.context(doing())?);
    file.seek(SeekFrom::Start(offset)).context(doing())?;
    Ok(What::Fetch {
        file,
        left: known.size().saturating_sub(offset).min(length),
        version: Version::of(&known),
        window,
    })
}

/// What is in a folder, by name, and whether there is more than is told.
fn list(path: &str, recursive: bool) -> Result<(Vec<Entry>, bool)> {
    let root = resolve(path)?;
    let (mut entries, mut folders) = (Vec::new(), vec![root.clone()]);
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        let found = match fs::read_dir(&folder) {
            Ok(found) => found,
            // One within may have gone meanwhile, or be nobody's to read.
            Err(_) if folder != root => continue,
            Err(error) => return Err(Error::new(format!("listing {}", folder.display()), error)),
        };
        // A folder of a million files is not sorted for those that can be told.
        let mut found: Vec<_> = found.flatten().take(LISTED_FILES_MAX + 1).collect();
        found.sort_by_key(fs::DirEntry::file_name);
        for one in found {
            let Ok(known) = one.metadata() else { continue };
            let kind = match known.file_type() {
                kind if kind.is_dir() => EntryKind::Folder,
                kind if kind.is_file() => EntryKind::File,
                kind if kind.is_symlink() => EntryKind::Link,
                _ => EntryKind::Other,
            };
            let path = one.path();
            let name = path.strip_prefix(&root).unwrap_or(&path).as_os_str();
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            bytes += name.len() + LISTED_ENTRY_BYTES;
            if entries.len() == LISTED_FILES_MAX || bytes > LISTING_MAX_BYTES {
                return Ok((entries, true));
            }
            entries.push(Entry { name, kind, size: known.len() });
            if recursive && kind == EntryKind::Folder {
                folders.push(path);
            }
        }
    }
    Ok((entries, false))
}

/// A path of the user's, absolute. Links are followed by the kernel, with the user's rights.
fn resolve(path: &str) -> Result<PathBuf> {
    let refuse = |why: &str| Err(Error::new(format!("path {path:?}"), why));
    if path.len() > PATH_MAX_BYTES {
        return refuse("is too long");
    }
    if path.contains('\0') {
        return refuse("has a NUL byte");
    }
    if Path::new(path).components().any(|component| component == Component::ParentDir) {
        return refuse("has `..`; give it without");
    }
    let path = Path::new(WORKSPACE_DIR).join(path);
    match PLACES.iter().any(|place| path.starts_with(place)) {
        true => Ok(path),
        false => refuse("is outside of what is the user's"),
    }
}

/// Does something with the rights that the user has on files.
fn as_user<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    setfsgid(Gid::from_raw(USER_GID));
    // The kernel takes root's rights on files away with it.
    setfsuid(Uid::from_raw(USER_UID));
    let done = work();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    done
}
