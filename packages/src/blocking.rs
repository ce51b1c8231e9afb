//! Work that takes its time, and what the download cache says when it cannot do its own.

use sandbox_download::FetchError;

/// What reads or writes much, or computes long, does so where nobody waits.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| unusable(&error))
}

pub(crate) fn unusable(error: &dyn std::error::Error) -> FetchError {
    FetchError::Cache { reason: error.to_string() }
}
