//! Why something could not be had from where it is.

use std::fmt;

use url::Url;

use crate::checksum::Checksum;
use crate::shown::ShownUrl;

/// Why a page or a file could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The server does not have it.
    #[error("{url} does not exist")]
    NotFound {
        /// Where it was to be.
        url: ShownUrl,
    },
    /// The server will not give it.
    #[error("{url} was answered with status {status}")]
    Status {
        /// Where it was to be.
        url: ShownUrl,
        /// What it answered.
        status: u16,
    },
    /// The server cannot be reached, or broke off.
    #[error("{url} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was to be.
        url: ShownUrl,
        /// What happened.
        reason: String,
    },
    /// The server does not go on.
    #[error("{url} did not answer in time")]
    Stalled {
        /// Where it was to be.
        url: ShownUrl,
    },
    /// It ended without an error, and too early.
    #[error("{url} ended after {received_bytes} of {size_bytes} bytes")]
    Short {
        /// Where it is.
        url: ShownUrl,
        /// So much came.
        received_bytes: u64,
        /// So much was announced.
        size_bytes: u64,
    },
    /// More came than can be, or than was announced.
    #[error("{url} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Where it is.
        url: ShownUrl,
        /// The limit.
        limit_bytes: u64,
    },
    /// What came is not what the index says.
    #[error("{url} is not what the index promises: its hash is {actual}, not {expected}")]
    Hash {
        /// Where it is.
        url: ShownUrl,
        /// What the index says.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// What came cannot be read.
    #[error("{url} makes no sense: {reason}")]
    Malformed {
        /// Where it is.
        url: ShownUrl,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be kept.
    #[error("the download cache cannot be used: {reason}")]
    Cache {
        /// What the system said.
        reason: String,
    },
}

impl FetchError {
    /// Whether it may go better the next time.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Unreachable { .. } | FetchError::Stalled { .. } | FetchError::Short { .. } => true,
            FetchError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether what has come is no beginning of the file, so that nobody should go on from there.
    pub fn is_of_content(&self) -> bool {
        match self {
            FetchError::TooLarge { .. } | FetchError::Hash { .. } => true,
            // There is nothing behind what has come.
            FetchError::Status { status, .. } => *status == 416,
            _ => false,
        }
    }

    /// That something hashes to something else.
    pub fn hash(url: &Url, expected: &Checksum, actual: &Checksum) -> FetchError {
        FetchError::Hash { url: url.into(), expected: expected.to_string(), actual: actual.to_string() }
    }

    /// That something cannot be read.
    pub fn malformed(url: &Url, reason: impl fmt::Display) -> FetchError {
        FetchError::Malformed { url: url.into(), reason: reason.to_string() }
    }
}
