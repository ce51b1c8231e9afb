//! How what is on the disk is opened: never so that it can hold this process up, whatever has been put into a file's place
//! (a FIFO waits for who writes to it, for ever), and so that a host that is short of something is not taken for damage.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Error, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};

/// Opens a file for reading. Something else in its place is an error at once.
pub fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    open_with(File::options().read(true), path, 0)
}

/// The same for a file of the cache's own, which is none of those that a user may have put somewhere else behind a link.
pub(crate) fn open_entry_file(path: &Path) -> io::Result<(File, Metadata)> {
    open_with(File::options().read(true), path, O_NOFOLLOW)
}

/// Opens a file that processes lock, which is made if `creates` and it is not there.
pub(crate) fn open_lock(path: &Path, creates: bool) -> io::Result<File> {
    let mut options = File::options();
    let (file, _) = open_with(options.write(true).create(creates).truncate(false), path, O_NOFOLLOW)?;
    Ok(file)
}

/// Opens a file of the user's alone that grows, which is made if it is not there.
pub fn open_growing(path: &Path) -> io::Result<(File, Metadata)> {
    open_with(File::options().read(true).append(true).create(true).mode(0o600), path, O_NOFOLLOW)
}

/// Opens a directory. Something else in its place is an error at once.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(O_DIRECTORY).open(path)
}

/// What is in a file, if it is no longer than `max_bytes`: all that we keep in single files is small.
pub fn read_regular(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut content = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes {
        return Err(Error::new(ErrorKind::InvalidData, format!("it has more than {max_bytes} bytes")));
    }
    Ok(content)
}

/// A new, empty file in the place of whatever is there.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(path)
}

/// Whether an error of opening or reading a file says something about the file. All others are of the host, which may be short
/// of descriptors or memory, or forbid it, or have a disk that fails: what was built is as good as before, and is neither
/// removed nor built anew.
pub fn is_damage(error: &Error) -> bool {
    if matches!(error.raw_os_error(), Some(code) if code == Errno::ELOOP as i32) {
        return true;
    }
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof
    )
}

fn open_with(options: &mut OpenOptions, path: &Path, flags: i32) -> io::Result<(File, Metadata)> {
    // `O_NONBLOCK` means nothing to a file. A FIFO that nobody reads cannot be opened for writing with it, nor can a socket.
    let file = match options.custom_flags(O_NONBLOCK | flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Err(no_file()),
        file => file?,
    };
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() { Ok((file, metadata)) } else { Err(no_file()) }
}

fn no_file() -> Error {
    Error::new(ErrorKind::InvalidData, "it is no regular file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_but_a_file_is_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink(at("file"), at("link")).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_regular(&at("file"), 4).unwrap(), b"text");
        assert_eq!(read_regular(&at("link"), 4).unwrap(), b"text");
        assert!(open_lock(&at("file"), false).is_ok() && open_lock(&at("new"), true).is_ok());
        assert!(open_directory(&at("directory")).is_ok());
        for name in ["fifo", "socket", "directory"] {
            for result in [
                open_regular(&at(name)).map(drop),
                open_entry_file(&at(name)).map(drop),
                open_lock(&at(name), true).map(drop),
                read_regular(&at(name), 9).map(drop),
            ] {
                let error = result.unwrap_err();
                assert!(is_damage(&error), "{name}: {error:?}");
            }
        }
        for name in ["fifo", "file"] {
            assert!(is_damage(&open_directory(&at(name)).unwrap_err()), "{name}");
        }
        assert!(is_damage(&open_entry_file(&at("link")).unwrap_err()), "an entry's file is no link");
        assert!(is_damage(&read_regular(&at("file"), 3).unwrap_err()));
        create_anew(&at("fifo")).unwrap();
        assert_eq!(read_regular(&at("fifo"), 3).unwrap(), b"");
    }

    #[test]
    fn what_the_host_lacks_is_no_damage() {
        for errno in
            [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EACCES, Errno::EIO, Errno::EINTR, Errno::ENOLCK]
        {
            assert!(!is_damage(&errno.into()), "{errno}");
        }
        for errno in [Errno::ENOENT, Errno::ENOTDIR, Errno::EISDIR, Errno::ELOOP] {
            assert!(is_damage(&errno.into()), "{errno}");
        }
    }
}
