//! Files over HTTP, each of which is what it must hash to. Knows no registry, nothing of what is in a file, and not where it is
//! kept.
//!
//! ```text
//! Wanted -> HttpClient -> what comes, hashed and written -> the file, or why not
//! ```

// In the order in which to read them.
mod download;
pub use download::{Download, DownloadError, Progress, Wanted};

mod checksum;
pub use checksum::{Algorithm, Checksum, Hasher};

mod client;
pub use client::{HttpClient, Patience, TlsError, broken};

mod error;
pub use error::FetchError;

mod shown;
pub use shown::{ShownUrl, without_credentials};
