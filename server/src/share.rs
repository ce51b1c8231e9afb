//! Folders of the host that tools may take from and put to, by path: `--share DIR` and `--share DIR:rw`. The kernel resolves beneath the
//! folder, and follows no link out of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};
use sandbox_engine::Id;

/// A folder that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) folder: PathBuf,
    pub(crate) is_writable: bool,
}

impl Share {
    /// Whether there is such a folder.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let found = self.folder.metadata().with_context(|| format!("share: {}", self.folder.display()))?;
        ensure!(found.is_dir(), "share: {} is no folder", self.folder.display());
        Ok(())
    }
}

/// Why a path of the host cannot be used. For a model to read.
pub(crate) type Refusal = String;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a file of the host for reading.
pub(crate) fn open(shares: &[Share], path: &str) -> Result<File, Refusal> {
    let (folder, rest) = find(shares, path, false)?;
    // Looked at before it is opened: opening a FIFO would wait, and a device may do something.
    let place = openat2(&folder, rest.as_path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH);
    let place = File::from(place.map_err(|error| fault(path, &error.into()))?);
    if !place.metadata().map_err(|error| fault(path, &error))?.is_file() {
        return Err(format!("host_path: {path:?} is no regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&folder, rest.as_path(), flags, Mode::empty(), BENEATH);
    file.map(File::from).map_err(|error| fault(path, &error.into()))
}

/// A file of the host that is written, and gets its name when it is whole.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    folder: OwnedFd,
    unfinished: Option<PathBuf>,
    name: PathBuf,
}

/// Begins to write a file of the host.
pub(crate) fn create(shares: &[Share], path: &str) -> Result<Incoming, Refusal> {
    let (root, rest) = find(shares, path, true)?;
    let name = PathBuf::from(rest.file_name().ok_or_else(|| format!("host_path: {path:?} names no file"))?);
    let parent = rest.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let folder = openat2(&root, parent, flags, Mode::empty(), BENEATH).map_err(|error| fault(path, &error.into()))?;
    check_writable(shares, &folder, path)?;
    // A name of nobody else's: another server may write to the same folder.
    let id = Id::new("f").map_err(|error| fault(path, &error))?;
    let unfinished = PathBuf::from(format!(".sandbox-mcp-{id}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, &unfinished, flags, Mode::from_raw_mode(0o644));
    let file = File::from(file.map_err(|error| fault(path, &error.into()))?);
    Ok(Incoming { file, folder, unfinished: Some(unfinished), name })
}

impl Incoming {
    /// What it is written to.
    pub(crate) fn file(&self) -> Result<File, Refusal> {
        self.file.try_clone().map_err(|error| format!("host_path: {error}"))
    }

    /// It is whole: whoever looks for its name finds it, in the place of what was there.
    pub(crate) fn finish(mut self) -> Result<(), Refusal> {
        let Some(unfinished) = self.unfinished.take() else { return Ok(()) };
        renameat(&self.folder, &unfinished, &self.folder, &self.name)
            .map_err(|error| fault(&self.name.to_string_lossy(), &error.into()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            let _ = unlinkat(&self.folder, unfinished, AtFlags::empty());
        }
    }
}

/// Whether a folder that was found beneath one that is shared for writing is not, by a link or by its own name, in one that is not.
fn check_writable(shares: &[Share], folder: &OwnedFd, path: &str) -> Result<(), Refusal> {
    let real =
        std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).map_err(|error| fault(path, &error))?;
    let places = shares.iter().filter_map(|share| Some((share.folder.canonicalize().ok()?, share)));
    let innermost =
        places.filter(|(place, _)| real.starts_with(place)).max_by_key(|(place, _)| place.as_os_str().len());
    match innermost {
        Some((_, share)) if !share.is_writable => Err(only_read(share)),
        _ => Ok(()),
    }
}

fn only_read(share: &Share) -> Refusal {
    let folder = share.folder.display();
    format!("host_path: {folder} is shared for reading; --share {folder}:rw lets tools write there")
}

/// The shared folder that a path is in, opened, and the path from there on.
fn find(shares: &[Share], path: &str, writes: bool) -> Result<(OwnedFd, PathBuf), Refusal> {
    let asked = match shares {
        // There is no doubt about where that is.
        [only] => only.folder.join(path),
        _ => PathBuf::from(path),
    };
    let is_in = |share: &&Share| asked.starts_with(&share.folder);
    let found = shares.iter().filter(is_in).max_by_key(|share| share.folder.as_os_str().len());
    let Some(share) = found.filter(|_| asked.is_absolute()) else {
        let folders: Vec<_> = shares.iter().map(|share| share.folder.display().to_string()).collect();
        return Err(match folders.is_empty() {
            true => "host_path: no folder is shared; the user can share one with --share DIR".into(),
            false => format!("host_path: {path:?} is in no shared folder: {}", folders.join(", ")),
        });
    };
    if writes && !share.is_writable {
        return Err(only_read(share));
    }
    let rest = Path::new(".").join(asked.strip_prefix(&share.folder).unwrap_or(&asked));
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&share.folder, flags, Mode::empty());
    Ok((folder.map_err(|error| fault(path, &error.into()))?, rest))
}

fn fault(path: &str, error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(nix::libc::EXDEV) => format!("host_path: {path:?} leads out of the shared folder"),
        _ => format!("host_path: {path:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_beneath_a_shared_folder_is_reached() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let shared = tempfile::tempdir().unwrap();
        let at = |name: &str| shared.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("a b"), "x").unwrap();
        symlink(outside.path().join("secret"), at("out")).unwrap();
        symlink(outside.path(), at("folder")).unwrap();
        symlink("a b", at("in")).unwrap();
        nix::unistd::mkfifo(Path::new(&at("fifo")), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let shares = [Share { folder: shared.path().into(), is_writable: false }];
        assert!(open(&shares, &at("a b")).is_ok() && open(&shares, "a b").is_ok() && open(&shares, &at("in")).is_ok());
        for (path, words) in [
            (at("out"), "leads out of"),
            (at("folder/secret"), "leads out of"),
            (at("../x"), "leads out of"),
            (at("fifo"), "no regular file"),
            (at("."), "no regular file"),
            (at("none"), "No such file"),
            ("/etc/passwd".into(), "in no shared folder"),
            (at("a\\0b"), "No such file"),
        ] {
            let error = open(&shares, &path).unwrap_err();
            assert!(error.contains(words), "{path}: {error}");
        }
        assert!(create(&shares, &at("new")).unwrap_err().contains(":rw"));
        assert!(open(&[], &at("a b")).unwrap_err().contains("--share"));
        fs::create_dir(at("inner")).unwrap();
        symlink("inner", at("way")).unwrap();
        let shares = [
            Share { folder: shared.path().into(), is_writable: true },
            Share { folder: at("inner").into(), is_writable: false },
        ];
        for path in ["inner/new", "way/new", "x/../inner/new"] {
            fs::create_dir_all(at("x")).unwrap();
            assert!(create(&shares, &at(path)).unwrap_err().contains("is shared for reading"), "{path}");
        }
        fs::remove_file(at("way")).unwrap();
        fs::remove_dir(at("x")).unwrap();
        fs::remove_dir(at("inner")).unwrap();
        let shares = [Share { folder: shared.path().into(), is_writable: true }];
        assert!(create(&shares, &at("folder/new")).unwrap_err().contains("leads out of"));
        drop(create(&shares, &at("half")).unwrap());
        let whole = create(&shares, &at("a b")).unwrap();
        whole.file().unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(at("a b")).unwrap(), "x");
        whole.finish().unwrap();
        assert_eq!(fs::read_to_string(at("a b")).unwrap(), "new");
        let mut names: Vec<_> = fs::read_dir(shared.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a b", "fifo", "folder", "in", "out"]);
    }
}
