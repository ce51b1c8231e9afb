//! An entry, from its folder to the bucket: packed as it is sent, in memory a few pieces at a time. Its manifest comes last, so
//! that nobody sees an entry that is not all there; what was not finished is removed, and so is what another host was faster with.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use sandbox_schemas::image::Digest;
use sandbox_schemas::remote::{REMOTE_FORMAT, REMOTE_MANIFEST_MAX_BYTES, REMOTE_PARTS_MAX, RemoteManifest, RemotePart};
use sandbox_store::{Age, EntryId, FileError, Lease, Replaces, Untrusted, open_own, part_names};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bucket::{Bucket, BucketError, Condition};
use crate::frame::{Packed, pack};
use crate::manifest::{self, authenticated, part_digest, plain_mode};
use crate::names::{Names, UNVOUCHED};
use crate::secret::Secret;

/// An object that is longer is sent in pieces of this length and some more. S3 takes none below 5 MiB, and 10,000 of them.
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// Pieces of an entry that are on their way at the same time: with what is being packed, at most 70 MiB in memory.
const PIECES_AT_ONCE: usize = 2;

/// How long is spent on removing what was given up.
const REMOVAL: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was sent.
    Sent,
    /// It is there already.
    WasThere,
}

/// Why an entry was not sent.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It is not there, or cannot be read.
    #[error("it cannot be read: {0}")]
    Here(#[from] io::Error),
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of it may have been changed by somebody else.
    #[error("{name} {reason}")]
    Untrusted {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: Untrusted,
    },
    /// It consists of too many files.
    #[error("it has {0} files, more than {REMOTE_PARTS_MAX}")]
    TooManyParts(usize),
    /// Nobody could use it.
    #[error("without s3_hmac_key_file nobody could use it: QEMU trusts what is in it")]
    NoKey,
    /// This host has it from somebody who could be anybody.
    #[error("it came from a bucket without s3_hmac_key_file, so this host cannot vouch for it: build it anew")]
    Unvouched,
    /// The service does not answer, or refuses.
    #[error("{0}")]
    Failed(String),
    /// It was given up, since the program ends.
    #[error("it was given up")]
    Cancelled,
}

impl From<BucketError> for PushError {
    fn from(error: BucketError) -> PushError {
        PushError::Failed(error.to_string())
    }
}

/// What an entry is sent with.
pub(crate) struct Push<'a> {
    pub(crate) bucket: &'a Arc<Bucket>,
    pub(crate) names: &'a Names,
    pub(crate) secret: Option<&'a Secret>,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) age: Option<Age>,
    /// What is in the bucket was found to be damaged, though its manifest is not.
    pub(crate) is_damaged: bool,
    pub(crate) settle: Duration,
    /// Whether the bucket heeds conditions, once that is known.
    pub(crate) heeds_conditions: &'a OnceLock<bool>,
}

/// What is in the place of a manifest.
enum Found {
    Nothing,
    /// One that can be believed.
    Sound(Box<RemoteManifest>, Option<String>),
    /// Something else.
    Damaged(Option<String>),
}

/// What is in the bucket and not yet spoken of by a manifest.
#[derive(Default)]
struct Unfinished(Mutex<Leavings>);

#[derive(Default)]
struct Leavings {
    objects: Vec<String>,
    uploads: Vec<(String, String)>,
}

impl Unfinished {
    fn with<T>(&self, change: impl FnOnce(&mut Leavings) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Push<'_> {
    /// Sends an entry, unless it is there.
    pub(crate) async fn push(&self, entry: &EntryId, folder: &Path) -> Result<Pushed, PushError> {
        if entry.kind.is_trusted_by_host() && self.secret.is_none() {
            return Err(PushError::NoKey);
        }
        // Nobody removes it meanwhile.
        let _lease = Lease::take(folder)?;
        if self.secret.is_some() && folder.join(UNVOUCHED).exists() {
            return Err(PushError::Unvouched);
        }
        let found = self.unless_cancelled(self.look(entry)).await??;
        if self.condition(&found, self.is_damaged).is_none() {
            return Ok(Pushed::WasThere);
        }
        let unfinished = Unfinished::default();
        let pushed = self.send(entry, folder, found, &unfinished).await;
        if !matches!(pushed, Ok(Pushed::Sent)) {
            let removing = self.remove(unfinished.with(std::mem::take));
            if tokio::time::timeout(REMOVAL, removing).await.is_err() {
                tracing::debug!(%entry, "what was not finished may still be in the bucket");
            }
        }
        pushed
    }

    async fn look(&self, entry: &EntryId) -> Result<Found, BucketError> {
        match self.bucket.get(&self.names.manifest(entry), REMOTE_MANIFEST_MAX_BYTES).await {
            Ok(object) => Ok(match manifest::read(&object.bytes, entry, self.secret) {
                Ok(manifest) => Found::Sound(Box::new(manifest), object.tag),
                Err(reason) => {
                    tracing::debug!(%entry, %reason, "what is in the bucket is replaced");
                    Found::Damaged(object.tag)
                }
            }),
            Err(BucketError::Missing) => Ok(Found::Nothing),
            Err(BucketError::TooLong { tag, .. }) => Ok(Found::Damaged(tag)),
            Err(error) => Err(error),
        }
    }

    /// On what condition a manifest is written where this was found; `None` when what is there is to stay.
    fn condition(&self, found: &Found, is_damaged: bool) -> Option<Condition> {
        let only = |tag: &Option<String>| tag.clone().map_or(Condition::None, Condition::Tag);
        match found {
            Found::Nothing => Some(Condition::Missing),
            Found::Damaged(tag) => Some(only(tag)),
            Found::Sound(manifest, tag) => (is_damaged || self.is_outdated(manifest)).then(|| only(tag)),
        }
    }

    fn is_outdated(&self, manifest: &RemoteManifest) -> bool {
        self.age.is_some_and(|age| match age.replaces {
            Replaces::Any => true,
            Replaces::MadeBefore(since) => age.made >= since && manifest::was_made_before(manifest, since),
        })
    }

    async fn send(
        &self,
        entry: &EntryId,
        folder: &Path,
        found: Found,
        unfinished: &Unfinished,
    ) -> Result<Pushed, PushError> {
        let names = part_names(folder)?;
        if names.len() > REMOTE_PARTS_MAX {
            return Err(PushError::TooManyParts(names.len()));
        }
        let upload = format!("{:016x}", getrandom::u64().map_err(io::Error::other)?);
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let opened = open_own(&folder.join(&name));
            let (file, metadata) = opened.map_err(|reason| PushError::Untrusted { name: name.clone(), reason })?;
            let part = RemotePart {
                size_bytes: metadata.len(),
                data_bytes: 0,
                mode: plain_mode(metadata.mode()),
                sha256: Digest([0; 32]),
                frames: Vec::new(),
                name,
            };
            let key = self.names.part(entry, &upload, &part.name);
            parts.push(self.send_part(part, file, key, unfinished).await?);
        }
        let mut manifest = RemoteManifest {
            format: REMOTE_FORMAT,
            kind: entry.kind.folder().into(),
            name: entry.name.clone(),
            key: entry.key,
            upload,
            made_unix_seconds: self.age.map(|age| age.made.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
            parts,
            hmac_sha256: None,
        };
        manifest.hmac_sha256 = self.secret.map(|secret| secret.authenticate(&authenticated(&manifest)));
        // Sending may have taken minutes, in which another host was faster: not every bucket would tell when the manifest is written.
        let now = self.unless_cancelled(self.look(entry)).await??;
        let is_another = match (&found, &now) {
            (Found::Sound(one, _), Found::Sound(other, _)) => one.upload != other.upload,
            _ => true,
        };
        let Some(condition) = self.condition(&now, self.is_damaged && !is_another) else { return Ok(Pushed::WasThere) };
        let pushed = self.publish(entry, &manifest, &condition, unfinished).await?;
        if let (Pushed::Sent, Found::Sound(replaced, _)) = (pushed, now) {
            let name = |part: &RemotePart| self.names.part(entry, &replaced.upload, &part.name);
            self.remove(Leavings { objects: replaced.parts.iter().map(name).collect(), uploads: Vec::new() }).await;
        }
        Ok(pushed)
    }

    /// Writes the manifest, and makes sure whose is there then: all but one host must remove what they have sent, and that one must
    /// not.
    async fn publish(
        &self,
        entry: &EntryId,
        manifest: &RemoteManifest,
        condition: &Condition,
        unfinished: &Unfinished,
    ) -> Result<Pushed, PushError> {
        let key = self.names.manifest(entry);
        let bytes = serde_json::to_vec(manifest).map_err(io::Error::from)?;
        let mut written = self.bucket.put(&key, bytes.clone(), condition.clone()).await;
        if let (Err(BucketError::Unsupported(_)), true) = (&written, *condition != Condition::None) {
            let _ = self.heeds_conditions.set(false);
            written = self.bucket.put(&key, bytes.clone(), Condition::None).await;
        }
        if written.is_ok() {
            if *condition == Condition::Missing && self.heeds_conditions(&key, bytes).await {
                return Ok(Pushed::Sent);
            }
            // The last of those who have written at the same time is the one. Who ends meanwhile need not know.
            let _ = self.unless_cancelled(tokio::time::sleep(self.settle)).await;
        }
        // It may be ours also where no answer came, sent by an attempt whose answer was lost: then what it speaks of must stay.
        // Another's is as good.
        let error = match (self.bucket.get(&key, REMOTE_MANIFEST_MAX_BYTES).await, written) {
            (Ok(found), written) => match (serde_json::from_slice(&found.bytes), condition, written) {
                (Ok(RemoteManifest { upload, .. }), _, _) if upload == manifest.upload => return Ok(Pushed::Sent),
                // Still the one that was to be replaced.
                (_, Condition::Tag(tag), Err(error)) if Some(tag) == found.tag.as_ref() => error,
                _ => return Ok(Pushed::WasThere),
            },
            (Err(BucketError::Missing), Err(error)) => error,
            (Err(BucketError::Missing), Ok(())) => {
                return Err(PushError::Failed("its manifest has been removed".into()));
            }
            (Err(error), Ok(())) | (Err(_), Err(error)) => {
                unfinished.with(std::mem::take);
                return Err(error.into());
            }
        };
        // What has failed may still be done, when nobody looks any more.
        if let BucketError::Failed(_) = error {
            unfinished.with(std::mem::take);
        }
        Err(error.into())
    }

    /// Whether a second manifest would not have been written in the place of the first. Found out once, by writing the same again.
    async fn heeds_conditions(&self, key: &str, bytes: Vec<u8>) -> bool {
        if let Some(heeds) = self.heeds_conditions.get() {
            return *heeds;
        }
        let heeds = match self.bucket.put(key, bytes, Condition::Missing).await {
            Err(BucketError::Changed) => true,
            Ok(()) | Err(BucketError::Unsupported(_)) => false,
            // Nothing is known: as if it did not.
            Err(_) => return false,
        };
        *self.heeds_conditions.get_or_init(|| heeds)
    }

    /// Sends a file, and says what it consists of.
    async fn send_part(
        &self,
        mut part: RemotePart,
        file: File,
        key: String,
        unfinished: &Unfinished,
    ) -> Result<RemotePart, PushError> {
        // Packing goes on while pieces are on their way, but not far ahead of them.
        let (frames, mut packed) = mpsc::channel::<Packed>(1);
        let packing = tokio::task::spawn_blocking(move || {
            pack(&file, |frame| frames.blocking_send(frame).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe)))
        });
        let mut object =
            Object { push: self, key, unfinished, upload: None, sending: JoinSet::new(), count: 0, pieces: Vec::new() };
        let mut open = Vec::new();
        while let Some(Packed { frame, data_bytes, stored }) = self.unless_cancelled(packed.recv()).await? {
            part.frames.push(frame);
            part.data_bytes += data_bytes;
            open.extend_from_slice(&stored);
            if open.len() >= PIECE_BYTES {
                object.send(std::mem::take(&mut open)).await?;
            }
        }
        packing.await.map_err(io::Error::other)??;
        object.finish(open).await?;
        part.sha256 = part_digest(&part);
        Ok(part)
    }

    /// Best effort: a bucket may not let us remove anything.
    async fn remove(&self, leavings: Leavings) {
        for (key, upload) in &leavings.uploads {
            if let Err(error) = self.bucket.abort(key, upload).await {
                tracing::debug!(key, %error, "an upload that was given up is still in the bucket");
            }
        }
        if !leavings.objects.is_empty()
            && let Err(error) = self.bucket.remove(&leavings.objects).await
        {
            tracing::debug!(%error, "objects that were given up are still in the bucket");
        }
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, PushError> {
        self.cancel.run_until_cancelled(work).await.ok_or(PushError::Cancelled)
    }
}

/// An object on its way.
struct Object<'a> {
    push: &'a Push<'a>,
    key: String,
    unfinished: &'a Unfinished,
    /// Once it has turned out to be longer than a piece.
    upload: Option<String>,
    sending: JoinSet<Result<aws_sdk_s3::types::CompletedPart, BucketError>>,
    count: i32,
    pieces: Vec<aws_sdk_s3::types::CompletedPart>,
}

impl Object<'_> {
    /// Sends a piece that is not the last.
    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), PushError> {
        let upload = match &self.upload {
            Some(upload) => upload.clone(),
            None => {
                // Not cut off by a cancel: what has begun must have a name to be ended by.
                let upload = self.push.bucket.begin(&self.key).await?;
                self.unfinished.with(|leavings| leavings.uploads.push((self.key.clone(), upload.clone())));
                self.upload.insert(upload).clone()
            }
        };
        while self.sending.len() >= PIECES_AT_ONCE {
            self.collect().await?;
        }
        self.count += 1;
        let (bucket, key, number) = (self.push.bucket.clone(), self.key.clone(), self.count);
        self.sending.spawn(async move { bucket.piece(&key, &upload, number, bytes).await });
        Ok(())
    }

    /// Sends the last piece, or all.
    async fn finish(mut self, bytes: Vec<u8>) -> Result<(), PushError> {
        let push = self.push;
        if self.upload.is_none() {
            self.unfinished.with(|leavings| leavings.objects.push(self.key.clone()));
            push.unless_cancelled(push.bucket.put(&self.key, bytes, Condition::None)).await??;
            return Ok(());
        }
        if !bytes.is_empty() {
            self.send(bytes).await?;
        }
        while !self.sending.is_empty() {
            self.collect().await?;
        }
        if let Some(upload) = self.upload {
            push.bucket.finish(&self.key, &upload, self.pieces).await?;
            self.unfinished.with(|leavings| {
                leavings.uploads.retain(|(_, other)| *other != upload);
                leavings.objects.push(self.key);
            });
        }
        Ok(())
    }

    async fn collect(&mut self) -> Result<(), PushError> {
        if let Some(piece) = self.push.unless_cancelled(self.sending.join_next()).await? {
            self.pieces.push(piece.map_err(io::Error::other)??);
        }
        Ok(())
    }
}
