//! A file that comes from a registry: written to the disk as it comes, read by all who want it meanwhile, and put into the
//! cache once its hash is right. Its last byte is held back until then: who has read it all has read what the index promises.
//! What has come of it when it ends early is kept, and the next transfer goes on from there.

use std::fs::File;
use std::sync::Arc;

use sandbox_download::{Checksum, DownloadError, FetchError, Progress as _, Wanted};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::blocking::{blocking, unusable};
use crate::part::Part;
use crate::upstream::Upstream;

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
    /// Begins one. What has come in full and is what it must hash to is given to `publish`.
    pub(crate) fn start(
        upstream: Arc<Upstream>,
        wanted: Wanted,
        part: Part,
        publish: impl FnOnce(Part, &Checksum) -> Result<(), FetchError> + Send + 'static,
    ) -> Result<Arc<Transfer>, FetchError> {
        let file = Arc::new(part.reopen().map_err(|error| unusable(&error))?);
        let (sender, progress) = watch::channel(Progress::default());
        let size_bytes = wanted.size_bytes;
        let task = tokio::spawn(async move {
            let end = receive(&upstream, wanted, part, &sender, publish).await;
            sender.send_modify(|progress| progress.end = Some(end));
        });
        Ok(Arc::new(Transfer { progress, file, size_bytes, task }))
    }

    /// Whether it will never be complete.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().end, Some(Err(_)))
    }

    /// How long it will be, if that is known already.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// Waits until it is complete and verified.
    pub(crate) async fn complete(&self) -> Result<(Arc<File>, u64), FetchError> {
        let mut progress = self.progress.clone();
        let ended = progress.wait_for(|progress| progress.end.is_some()).await.map_err(|error| unusable(&error))?;
        let bytes = ended.received_bytes;
        ended.end.clone().unwrap_or(Ok(())).map(|()| (self.file.clone(), bytes))
    }

    /// How far it can be read from `offset` on; no further only at its end.
    pub(crate) async fn available(&self, offset: u64) -> Result<Available, FetchError> {
        let mut progress = self.progress.clone();
        let is_there = |progress: &Progress| progress.end.is_some() || progress.received_bytes > offset + 1;
        let progress = progress.wait_for(is_there).await.map_err(|error| unusable(&error))?.clone();
        let file = self.file.clone();
        match progress.end {
            Some(Err(error)) => Err(error),
            Some(Ok(())) => Ok(Available { file, until: progress.received_bytes, is_end: true }),
            None => Ok(Available { file, until: progress.received_bytes - 1, is_end: false }),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What can be read of a file now.
pub(crate) struct Available {
    pub(crate) file: Arc<File>,
    pub(crate) until: u64,
    pub(crate) is_end: bool,
}

async fn receive(
    upstream: &Upstream,
    wanted: Wanted,
    part: Part,
    sender: &watch::Sender<Progress>,
    publish: impl FnOnce(Part, &Checksum) -> Result<(), FetchError> + Send + 'static,
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
    blocking(move || publish(part, &wanted.checksum)).await?
}

/// Lets those who read the file know how far it is.
struct Known<'s>(&'s watch::Sender<Progress>);

impl sandbox_download::Progress for Known<'_> {
    fn received(&mut self, received_bytes: u64) {
        self.0.send_modify(|progress| progress.received_bytes = received_bytes);
    }
}
