//! A file that is there or coming, as whoever wants it reads it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use sandbox_download::FetchError;

use crate::blocking::{blocking, unusable};
use crate::transfer::{Available, Transfer};

/// What is read from the disk at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// A file that is there or coming.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// It was in the cache.
    Cached { file: Arc<File>, size_bytes: u64 },
    /// It comes from its registry.
    Coming(Arc<Transfer>),
}

impl Found {
    /// How long it is, if that is known already.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        match self {
            Found::Cached { size_bytes, .. } => Some(*size_bytes),
            Found::Coming(transfer) => transfer.size_bytes(),
        }
    }

    pub(crate) fn is_cached(&self) -> bool {
        matches!(self, Found::Cached { .. })
    }

    /// The whole file, verified.
    pub(crate) async fn complete(&self) -> Result<(Arc<File>, u64), FetchError> {
        match self {
            Found::Cached { file, size_bytes } => Ok((file.clone(), *size_bytes)),
            Found::Coming(transfer) => transfer.complete().await,
        }
    }

    /// Its content, as it comes. An error takes the place of the last byte; where there is none, `ended` is told how long it
    /// was. Who knows the length beforehand asks for nothing after the last byte, so it is told with that.
    pub(crate) fn stream(self, ended: impl FnOnce(u64) + Send) -> impl Stream<Item = Result<Bytes, FetchError>> + Send {
        stream::try_unfold((self, 0, Some(ended)), |(found, offset, ended)| async move {
            let Available { file, until, is_end } = found.available(offset).await?;
            let length = (until - offset).min(CHUNK_BYTES as u64) as usize;
            let next = offset + length as u64;
            let mut ended = ended;
            if is_end
                && next == until
                && let Some(ended) = ended.take()
            {
                ended(until);
            }
            if length == 0 {
                return Ok(None);
            }
            let read = move || {
                let mut chunk = vec![0; length];
                file.read_exact_at(&mut chunk, offset).map(|()| Bytes::from(chunk))
            };
            let chunk = blocking(read).await?.map_err(|error| unusable(&error))?;
            Ok(Some((chunk, (found, next, ended))))
        })
    }

    async fn available(&self, offset: u64) -> Result<Available, FetchError> {
        match self {
            Found::Cached { file, size_bytes } => {
                Ok(Available { file: file.clone(), until: *size_bytes, is_end: true })
            }
            Found::Coming(transfer) => transfer.available(offset).await,
        }
    }
}
