//! A file that comes from a registry: written to the disk as it comes, read by all who want it meanwhile, and put into the
//! cache once its hash is right. Its last byte is held back until then: who has read it all has read what the index promises.
//! What has come of it when it ends early is kept, and the next transfer goes on from there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use sandbox_download::{DownloadError, FetchError, Progress as _, Wanted};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::files::{Files, Found, blocking, unusable};
use crate::part::Part;
use crate::upstream::Upstream;

/// What is read from the disk at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// A file on its way. Ends when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Transfer {
    progress: watch::Receiver<Progress>,
    file: Arc<File>,
    size_bytes: Option<u64>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// So much is in the file.
    received_bytes: u64,
    /// It is complete and verified, or never will be.
    end: Option<Result<(), FetchError>>,
}

impl Transfer {
    pub(crate) fn start(
        upstream: Arc<Upstream>,
        files: Arc<Files>,
        wanted: Wanted,
        part: Part,
    ) -> Result<Arc<Transfer>, FetchError> {
        let file = Arc::new(part.reopen().map_err(|error| unusable(&error))?);
        let (sender, progress) = watch::channel(Progress::default());
        let size_bytes = wanted.size_bytes;
        let task = tokio::spawn(async move {
            let end = receive(&upstream, &files, wanted, part, &sender).await;
            sender.send_modify(|progress| progress.end = Some(end));
        });
        Ok(Arc::new(Transfer { progress, file, size_bytes, task }))
    }

    /// Whether it will never be complete.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().end, Some(Err(_)))
    }

    /// Waits until it is complete and verified.
    async fn complete(&self) -> Result<u64, FetchError> {
        let mut progress = self.progress.clone();
        let ended = progress.wait_for(|progress| progress.end.is_some()).await.map_err(|error| unusable(&error))?;
        let bytes = ended.received_bytes;
        ended.end.clone().unwrap_or(Ok(())).map(|()| bytes)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(
    upstream: &Upstream,
    files: &Arc<Files>,
    wanted: Wanted,
    part: Part,
    sender: &watch::Sender<Progress>,
) -> Result<(), FetchError> {
    let _permit = upstream.permit().await;
    let writer = part.reopen().map_err(|error| unusable(&error))?;
    let checksum = wanted.checksum.clone();
    let (part, hashed) = blocking(move || {
        let hashed = part.hash(&checksum);
        (part, hashed)
    })
    .await?;
    let (hasher, received_bytes) = hashed.map_err(|error| unusable(&error))?;
    let mut known = Known(sender);
    known.received(received_bytes);
    match upstream.file(&wanted).receive(writer, (hasher, received_bytes), &mut known).await {
        Ok(()) => {}
        Err(DownloadError::Write(error)) => return Err(unusable(&error)),
        Err(DownloadError::Fetch(error)) => {
            if error.is_of_content() {
                part.discard();
            }
            return Err(error);
        }
    }
    let files = files.clone();
    blocking(move || files.publish(part, &wanted.checksum)).await?
}

/// Lets those who read the file know how far it is.
struct Known<'s>(&'s watch::Sender<Progress>);

impl sandbox_download::Progress for Known<'_> {
    fn received(&mut self, received_bytes: u64) {
        self.0.send_modify(|progress| progress.received_bytes = received_bytes);
    }
}

impl Found {
    /// How long it is, if that is known already.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        match self {
            Found::Cached { size_bytes, .. } => Some(*size_bytes),
            Found::Coming(transfer) => transfer.size_bytes,
        }
    }

    pub(crate) fn is_cached(&self) -> bool {
        matches!(self, Found::Cached { .. })
    }

    /// The whole file, verified.
    pub(crate) async fn complete(&self) -> Result<(Arc<File>, u64), FetchError> {
        match self {
            Found::Cached { file, size_bytes } => Ok((file.clone(), *size_bytes)),
            Found::Coming(transfer) => Ok((transfer.file.clone(), transfer.complete().await?)),
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

    /// How far it can be read from `offset` on; no further only at its end.
    async fn available(&self, offset: u64) -> Result<Available, FetchError> {
        let transfer = match self {
            Found::Cached { file, size_bytes } => {
                return Ok(Available { file: file.clone(), until: *size_bytes, is_end: true });
            }
            Found::Coming(transfer) => transfer,
        };
        let mut progress = transfer.progress.clone();
        let is_there = |progress: &Progress| progress.end.is_some() || progress.received_bytes > offset + 1;
        let progress = progress.wait_for(is_there).await.map_err(|error| unusable(&error))?.clone();
        let file = transfer.file.clone();
        match progress.end {
            Some(Err(error)) => Err(error),
            Some(Ok(())) => Ok(Available { file, until: progress.received_bytes, is_end: true }),
            None => Ok(Available { file, until: progress.received_bytes - 1, is_end: false }),
        }
    }
}

/// What can be read of a file now.
struct Available {
    file: Arc<File>,
    until: u64,
    is_end: bool,
}
