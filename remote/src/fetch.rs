//! An entry, from the bucket to a folder: several pieces at once, each checked before it is written, and no more of it in
//! memory than these.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sandbox_schemas::remote::{REMOTE_MANIFEST_MAX_BYTES, RemoteFrame, RemoteManifest};
use sandbox_store::EntryId;

use crate::bucket::{Bucket, BucketError, Coming, next};
use crate::config::Timing;
use crate::frame::{UnpackError, unpack};
use crate::manifest;
use crate::names::Names;
use crate::secret::Secret;

/// Bytes that are asked for at once, unless a single frame is longer.
const RANGE_BYTES: u64 = 8 * 1024 * 1024;

/// Ranges that are on their way, or being unpacked, at the same time: at most 70 MiB in memory.
const RANGES_AT_ONCE: usize = 4;

/// How often it is looked whether anything still comes.
const WATCH: Duration = Duration::from_millis(100);

/// A range that breaks off is asked for once more.
const ATTEMPTS: usize = 2;

/// Why an entry was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// There is none.
    #[error("there is none")]
    Missing,
    /// It is older than what is asked for.
    #[error("it is too old")]
    TooOld,
    /// It is not to be used, now or later.
    #[error("{0}")]
    Wrong(String),
    /// The service does not answer, or not well enough.
    #[error("{0}")]
    Failed(String),
    /// This host cannot write it.
    #[error("{0}")]
    Here(#[from] std::io::Error),
}

impl From<BucketError> for FetchError {
    fn from(error: BucketError) -> FetchError {
        match error {
            BucketError::Missing => FetchError::Missing,
            BucketError::TooLong { .. } => FetchError::Wrong(error.to_string()),
            error => FetchError::Failed(error.to_string()),
        }
    }
}

/// What an entry is fetched with.
pub(crate) struct Fetch<'a> {
    pub(crate) bucket: &'a Bucket,
    pub(crate) names: &'a Names,
    pub(crate) secret: Option<&'a Secret>,
    pub(crate) timing: &'a Timing,
    /// Counts what has come.
    pub(crate) received: &'a AtomicU64,
}

/// Some neighbouring frames of a part.
struct Range {
    key: Arc<str>,
    part: String,
    file: Arc<File>,
    size_bytes: u64,
    start: u64,
    frames: Vec<RemoteFrame>,
}

impl Range {
    fn length(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum()
    }
}

impl Fetch<'_> {
    /// Writes an entry's files into `folder`, and syncs them; unless it was made before `since`.
    pub(crate) async fn fetch(
        &self,
        wanted: &EntryId,
        since: Option<SystemTime>,
        folder: &Path,
        patience: Duration,
    ) -> Result<(), FetchError> {
        let manifest = self.manifest(wanted).await?;
        if since.is_some_and(|since| manifest::was_made_before(&manifest, since)) {
            return Err(FetchError::TooOld);
        }
        let Err(error) = self.transfer(wanted, &manifest, folder, patience).await else { return Ok(()) };
        // Whoever has replaced it meanwhile has removed what it spoke of: that is no damage.
        if let FetchError::Wrong(_) = error
            && self.manifest(wanted).await.is_ok_and(|now| now.upload != manifest.upload)
        {
            return Err(FetchError::Missing);
        }
        Err(error)
    }

    async fn transfer(
        &self,
        wanted: &EntryId,
        manifest: &RemoteManifest,
        folder: &Path,
        patience: Duration,
    ) -> Result<(), FetchError> {
        let ranges = self.ranges(wanted, manifest, folder)?;
        let total_bytes: u64 = ranges.iter().map(Range::length).sum();
        let files: Vec<_> = ranges.iter().map(|range| range.file.clone()).collect();
        let transfer = stream::iter(ranges.into_iter().map(|range| self.take(range)));
        let transfer = transfer.buffer_unordered(RANGES_AT_ONCE).try_for_each(|()| async { Ok(()) });
        tokio::select! {
            done = transfer => done?,
            reason = self.watch(total_bytes, patience) => return Err(FetchError::Failed(reason)),
        }
        in_background(move || files.iter().try_for_each(|file| file.sync_all())).await??;
        Ok(())
    }

    async fn manifest(&self, wanted: &EntryId) -> Result<RemoteManifest, FetchError> {
        let key = self.names.manifest(wanted);
        let reading = self.bucket.get(&key, REMOTE_MANIFEST_MAX_BYTES);
        let answer = tokio::time::timeout(self.timing.answer, reading).await;
        let late = |_| FetchError::Failed(format!("it did not answer within {:?}", self.timing.answer));
        let found = answer.map_err(late)??;
        manifest::read(&found.bytes, wanted, self.secret).map_err(|reason| FetchError::Wrong(reason.to_string()))
    }

    /// Makes the files, all holes, and says what is to come into them.
    fn ranges(&self, wanted: &EntryId, manifest: &RemoteManifest, folder: &Path) -> Result<Vec<Range>, FetchError> {
        let mut ranges: Vec<Range> = Vec::new();
        for part in &manifest.parts {
            let path = folder.join(&part.name);
            let file = File::create_new(&path)?;
            file.set_permissions(fs::Permissions::from_mode(part.mode))?;
            file.set_len(part.size_bytes)?;
            let (file, key) = (Arc::new(file), self.names.part(wanted, &manifest.upload, &part.name));
            let key: Arc<str> = key.into();
            let range = |start| Range {
                key: key.clone(),
                part: part.name.clone(),
                file: file.clone(),
                size_bytes: part.size_bytes,
                start,
                frames: Vec::new(),
            };
            let (mut open, mut at) = (range(0), 0);
            for frame in &part.frames {
                let stored_bytes = u64::from(frame.stored_bytes);
                if !open.frames.is_empty() && at - open.start + stored_bytes > RANGE_BYTES {
                    ranges.push(std::mem::replace(&mut open, range(at)));
                }
                open.frames.push(*frame);
                at += stored_bytes;
            }
            // A file of nothing has no frames, but is to be synced like the others.
            ranges.push(open);
        }
        Ok(ranges)
    }

    async fn take(&self, range: Range) -> Result<(), FetchError> {
        if range.frames.is_empty() {
            return Ok(());
        }
        let mut attempts = 1..=ATTEMPTS;
        let stored = loop {
            let is_last = attempts.next().is_none_or(|attempt| attempt == ATTEMPTS);
            match self.receive(&range).await {
                Ok(stored) => break stored,
                Err(FetchError::Failed(reason)) if !is_last => tracing::debug!(reason, key = &*range.key, "once more"),
                Err(error) => return Err(error),
            }
        };
        in_background(move || {
            let mut rest = &stored[..];
            for frame in &range.frames {
                let (stored, behind) = rest.split_at_checked(frame.stored_bytes as usize).unwrap_or((rest, &[]));
                unpack(stored, frame, &range.file, range.size_bytes).map_err(|error| match error {
                    UnpackError::Wrong(what) => FetchError::Wrong(format!("{}: {what}", range.part)),
                    UnpackError::Write(error) => FetchError::Here(error),
                })?;
                rest = behind;
            }
            Ok(())
        })
        .await?
    }

    async fn receive(&self, range: &Range) -> Result<Vec<u8>, FetchError> {
        let wanted = range.length();
        let wrong = |what: String| FetchError::Wrong(format!("{}: {what}", range.part));
        let Coming { length, mut body, .. } =
            match self.bucket.open(&range.key, Some((range.start, range.start + wanted - 1))).await {
                Err(BucketError::Missing) => return Err(wrong("its object is missing".into())),
                Err(BucketError::Refused(reason)) if reason.contains("HTTP status 416") => {
                    return Err(wrong("its object is too short".into()));
                }
                opened => opened?,
            };
        if length != wanted {
            return Err(wrong(format!("its object is too short: {length} bytes instead of {wanted}")));
        }
        let mut stored = Vec::with_capacity(wanted as usize);
        while let Some(piece) = next(&mut body).await? {
            self.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if stored.len() + piece.len() > wanted as usize {
                return Err(FetchError::Failed("more came than was asked for".into()));
            }
            stored.extend_from_slice(&piece);
        }
        if stored.len() as u64 == wanted { Ok(stored) } else { Err(FetchError::Failed("the answer broke off".into())) }
    }

    /// Ends when nothing comes any more, or too slowly; says which.
    async fn watch(&self, total_bytes: u64, patience: Duration) -> String {
        let begun = Instant::now();
        let at_first = self.received.load(Ordering::Relaxed);
        let (mut last, mut last_change) = (at_first, begun);
        loop {
            tokio::time::sleep(WATCH).await;
            let (now, received) = (Instant::now(), self.received.load(Ordering::Relaxed));
            if received != last {
                (last, last_change) = (received, now);
            }
            let so_far = received.saturating_sub(at_first);
            // What has come is being unpacked, and nothing more will.
            if so_far >= total_bytes {
                continue;
            }
            if now - last_change > self.timing.stall {
                return format!("nothing came for {:?}", self.timing.stall);
            }
            let elapsed = now - begun;
            let expected = elapsed.mul_f64(total_bytes as f64 / so_far.max(1) as f64);
            if elapsed > self.timing.estimate_after && expected > patience {
                return format!(
                    "it is too slow: {so_far} of {total_bytes} bytes came in {:.1} s",
                    elapsed.as_secs_f64()
                );
            }
        }
    }
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| FetchError::Here(std::io::Error::other(error)))
}
