//! What can go wrong, for whoever asked for an image.

use std::path::{Path, PathBuf};

use sandbox_schemas::image::Component;
use sandbox_store::{FileError, ShelfError, Untrusted};

pub use crate::failure::{DownloadError, Forbidden, ToolError};
pub use crate::host_tool::MissingTools;
pub use crate::pins::PinsError;
pub use crate::room::{Full, NoRoom};

/// Why there is no image to boot.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A component was never built from the inputs that this binary holds.
    #[error("no VM image: run `{} image build`", program())]
    Missing {
        /// Which component.
        component: Component,
    },
    /// A component is not what was built, or that cannot be told.
    #[error("corrupt VM image: {path}: {reason}: run `{} image build`", program())]
    Corrupt {
        /// Which component.
        component: Component,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A component may be what it should be, but this host cannot look at it.
    #[error("the VM image cannot be read: {path}: {reason}")]
    Unreadable {
        /// Which component.
        component: Component,
        /// Its file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The guest agent could not be written into the cache.
    #[error(transparent)]
    Agent(#[from] BuildError),
}

/// Why an image was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The host lacks tools.
    #[error(transparent)]
    MissingTools(#[from] MissingTools),
    /// The host forbids what Debian's packages are installed with.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The host has too little room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The lock file that this binary was built with is malformed.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The kernel's configuration did not take every option.
    #[error("the kernel does not take these options of config.fragment:\n  {}", .0.join("\n  "))]
    LostOptions(Vec<String>),
    /// What was built is not what the manifest just written says. The disk or the memory is to be doubted.
    #[error("{path}: {reason}")]
    Unverified {
        /// The component's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A component may be there, but this host cannot look at it; it is not built anew for that.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The component's file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Others than this user can change what is in the cache.
    #[error("{path} {reason}; give it to this user alone (chown, chmod go-w), or name another folder with --cache-dir")]
    Untrusted {
        /// The directory that is to be used.
        path: PathBuf,
        /// What is wrong with it.
        reason: Untrusted,
    },
    /// A component is to be built anew, but a process opens its file by its path again and again.
    #[error("{component} cannot be built anew while a process uses it: end the servers that run, then try again")]
    InUse {
        /// Which component.
        component: Component,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another component failed, so this one was given up.
    #[error("stopped, because another component failed")]
    Stopped,
}

/// What a user has to run: this program, wherever it is, as a shell takes it. Clients start servers from places that are in no
/// PATH.
pub fn program() -> String {
    let path = std::env::current_exe().ok().filter(|path| path.is_file());
    path.map_or_else(|| "sandbox-mcp".into(), |path| for_shell(&path))
}

fn for_shell(path: &Path) -> String {
    let path = path.to_string_lossy();
    shlex::try_quote(&path).map_or_else(|_| path.to_string(), Into::into)
}

impl From<ShelfError> for BuildError {
    fn from(error: ShelfError) -> BuildError {
        match error {
            ShelfError::File(error) => BuildError::File(error),
            ShelfError::Untrusted { path, reason } => BuildError::Untrusted { path, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_run_can_be_pasted_into_a_shell() {
        for (path, shown) in [
            ("/opt/sandbox-mcp/bin/sandbox-mcp", "/opt/sandbox-mcp/bin/sandbox-mcp"),
            ("/home/me/My Tools/sandbox-mcp", "'/home/me/My Tools/sandbox-mcp'"),
        ] {
            assert_eq!(for_shell(Path::new(path)), shown);
        }
    }
}
