//! A file of the host that has to stay as it is while it is read: half of what it was and half of what it is would be a file that
//! there never was.

use std::fs::{File, Metadata};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use tokio::io::{AsyncRead, ReadBuf};

/// Reads a file, and fails at its end if it has changed meanwhile.
#[derive(Debug)]
pub(crate) struct Steady {
    contents: tokio::fs::File,
    file: File,
    begun: Stamp,
}

/// What changes with a file. Not the time of its last change of state: that also tells of a new name, or of none.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    fn of(found: &Metadata) -> io::Result<Stamp> {
        Ok(Stamp { bytes: found.len(), modified: found.modified()? })
    }
}

impl Steady {
    /// Reads what is in `file`.
    pub(crate) fn new(file: File) -> io::Result<Steady> {
        let begun = Stamp::of(&file.metadata()?)?;
        Ok(Steady { contents: tokio::fs::File::from_std(file.try_clone()?), file, begun })
    }
}

impl AsyncRead for Steady {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.contents).poll_read(context, into))?;
        let is_end = into.filled().len() == before && into.remaining() > 0;
        if is_end && Stamp::of(&self.file.metadata()?)? != self.begun {
            return Poll::Ready(Err(io::Error::other("it was changed while it was read")));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_an_error_and_one_that_is_replaced_is_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let open = || Steady::new(File::open(&path).unwrap()).unwrap();
        fs::write(&path, b"abcdef").unwrap();
        let mut text = String::new();

        let mut file = open();
        file.read_exact(&mut [0; 2]).await.unwrap();
        fs::write(folder.path().join("other"), b"other").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        file.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "cdef");

        let mut file = open();
        file.read_exact(&mut [0; 2]).await.unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b" more").unwrap();
        let error = file.read_to_string(&mut text).await.unwrap_err();
        assert_eq!(error.to_string(), "it was changed while it was read");
    }
}
