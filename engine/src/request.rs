//! A program that is to run, and the files that it finds.

use std::fmt;

use sandbox_schemas::execute::ExecuteInput;
use tokio::io::AsyncRead;

/// What is to run.
#[derive(Debug)]
pub struct Request {
    /// The program. Its `files` are not looked at: where they come from is for who asks.
    pub input: ExecuteInput,
    /// The files that it finds.
    pub files: Vec<FileSource>,
}

impl From<ExecuteInput> for Request {
    fn from(input: ExecuteInput) -> Request {
        Request { input, files: Vec::new() }
    }
}

/// A file that is put into a VM.
pub struct FileSource {
    /// Where, from `/workspace` on, or absolute.
    pub path: String,
    /// Whether it may be executed.
    pub executable: bool,
    /// What it shall hold.
    pub contents: Box<dyn AsyncRead + Send + Sync + Unpin>,
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("path", &self.path).finish_non_exhaustive()
    }
}
