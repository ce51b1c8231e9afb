//! The tier: fetches for whoever waits, sends in the background, and remembers what was wrong.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sandbox_schemas::status::TierStatus;
use sandbox_store::{Age, EntryId, KeyHasher, Kind, Tier, create_anew};
use tokio::runtime::{Builder, Runtime};

use crate::bucket::Bucket;
use crate::config::{S3Config, Timing};
use crate::fetch::{Fetch, FetchError};
use crate::health::{Health, chance};
use crate::names::{Names, UNVOUCHED};
use crate::push::{Push, PushError, Pushed};
use crate::queue::{Pending, Queue};
use crate::secret::Secret;

/// The nice value of threads that send: the least there is.
const SENDING_NICE: i32 = 19;

/// How often an entry is sent that could not be. A bucket that is gone for longer gets it when it is next used.
const ATTEMPTS: u32 = 3;

/// Entries whose objects were wrong and are not asked for: more than a host uses, and a bound on what a bucket can make us hold.
const REJECTED_MAX: usize = 1024;

/// What an entry's folder is marked with when the bucket has it, with the digits of which bucket that is behind it.
const MARK: &str = ".sent-";

/// How long a mark is believed: buckets have rules by which objects expire.
const MARK_HOLDS: Duration = Duration::from_secs(24 * 3600);

/// A bucket as a tier. Nothing is contacted before it is asked.
pub struct S3 {
    shared: Arc<Shared>,
    /// Apart from one another: what is fetched must not wait behind what is sent.
    receiving: Option<Runtime>,
    sending: Option<Runtime>,
}

struct Shared {
    timing: Timing,
    secret: Option<Secret>,
    names: Names,
    mark: String,
    /// Apart from one another: a host that may not write reads all the same, and one that cannot read still writes.
    reading: Health,
    writing: Health,
    queue: Arc<Queue>,
    from: Bucket,
    to: Arc<Bucket>,
    /// The same for who waits: a client's connections belong to the threads that use it.
    to_by_hand: Arc<Bucket>,
    heeds_conditions: OnceLock<bool>,
    rejected: Mutex<HashMap<EntryId, Rejected>>,
    counts: Counts,
}

/// What is known of an entry that was not used.
#[derive(Debug, Clone, Copy)]
struct Rejected {
    /// It is not asked for before.
    until: Instant,
    /// It is not what was sent. What is merely of no use to its user is left as it is: to others it may be.
    is_damaged: bool,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    rejected: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: Arc<AtomicU64>,
    sent: AtomicU64,
    not_sent: AtomicU64,
}

impl S3 {
    /// A bucket. Fails only when this process cannot have threads.
    pub fn new(config: S3Config) -> std::io::Result<S3> {
        let names = Names { prefix: config.prefix.clone(), key_id: config.secret.as_ref().map(Secret::id) };
        let S3Config { timing, .. } = config;
        let counts = Counts::default();
        let new_bucket = |patience| Bucket::new(&config, patience, counts.sent_bytes.clone());
        let shared = Arc::new(Shared {
            mark: mark(&config, &names),
            names,
            reading: Health::new(timing.retry, timing.retry_max),
            writing: Health::new(timing.retry, timing.retry_max),
            queue: Queue::new(config.uploads),
            from: new_bucket(timing.answer),
            to: Arc::new(new_bucket(timing.send)),
            to_by_hand: Arc::new(new_bucket(timing.send)),
            heeds_conditions: OnceLock::new(),
            rejected: Mutex::default(),
            counts,
            secret: config.secret,
            timing,
        });
        let receiving = Builder::new_multi_thread().worker_threads(1).thread_name("s3-fetch").enable_all().build()?;
        let lower = || {
            if let Err(error) = rustix::process::setpriority_process(None, SENDING_NICE) {
                tracing::debug!(%error, "a thread that sends has the usual priority");
            }
        };
        let sending = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3-send")
            .on_thread_start(lower)
            .enable_all()
            .build()?;
        Ok(S3 { shared, receiving: Some(receiving), sending: Some(sending) })
    }

    /// Sends an entry now, and waits for it; not in the background, and so not at its priority.
    pub fn push(&self, entry: &EntryId, folder: &Path, age: Option<Age>) -> Result<Pushed, PushError> {
        let Some(runtime) = &self.receiving else { return Err(PushError::Cancelled) };
        runtime.block_on(self.shared.push(&self.shared.to_by_hand, entry, folder, age))
    }

    /// The entries whose key begins with these digits.
    pub fn find(&self, digits: &str) -> Result<Vec<EntryId>, PushError> {
        let Some(runtime) = &self.receiving else { return Err(PushError::Cancelled) };
        let shared = &self.shared;
        runtime.block_on(async {
            let mut found = Vec::new();
            for kind in Kind::ALL {
                let parent = shared.names.kind(kind);
                let folders = shared.from.folders(&parent).await?;
                found.extend(folders.iter().filter_map(|folder| {
                    let (name, key) = folder.strip_prefix(&parent)?.strip_suffix('/')?.rsplit_once('-')?;
                    let key = key.starts_with(digits).then(|| key.parse().ok())??;
                    Some(EntryId { kind, name: name.into(), key })
                }));
            }
            Ok(found)
        })
    }
}

impl Tier for S3 {
    fn fetch(&self, wanted: &EntryId, since: Option<SystemTime>, folder: &Path, patience: Duration) -> bool {
        let (Shared { timing, secret, names, reading, from, counts, .. }, Some(runtime)) =
            (&*self.shared, &self.receiving)
        else {
            return false;
        };
        let is_asked = reading.left_alone_for(Instant::now()).is_none() && self.shared.rejected(wanted).is_none();
        // Whoever can write to the bucket could have made it.
        if !is_asked || (wanted.kind.is_trusted_by_host() && secret.is_none()) {
            counts.misses.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let fetch = Fetch { bucket: from, names, secret: secret.as_ref(), timing, received: &counts.received_bytes };
        let begun = Instant::now();
        let fetched = runtime.block_on(async {
            let late = || FetchError::Failed(format!("it was not there within {patience:?}"));
            let fetching = fetch.fetch(wanted, since, folder, patience);
            tokio::time::timeout(patience, fetching).await.unwrap_or_else(|_| Err(late()))
        });
        match fetched {
            Ok(()) => {
                reading.note_answer();
                counts.hits.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%wanted, took_ms = begun.elapsed().as_millis() as u64, "fetched from S3");
                self.shared.set_mark(folder, &self.shared.mark);
                if secret.is_none() {
                    self.shared.set_mark(folder, UNVOUCHED);
                }
                return true;
            }
            Err(FetchError::Missing) => reading.note_answer(),
            Err(FetchError::TooOld) => {
                reading.note_answer();
                tracing::info!(%wanted, "what S3 has is too old");
            }
            Err(FetchError::Wrong(reason)) => {
                reading.note_answer();
                self.shared.reject(wanted, &reason, true);
            }
            Err(FetchError::Failed(reason)) => {
                tracing::warn!(%wanted, reason, "S3 does not serve; what it may have is built here");
                reading.note_failure(reason, Instant::now(), chance());
            }
            Err(FetchError::Here(error)) => {
                tracing::warn!(%wanted, %error, "what S3 has cannot be written here");
                reading.note_error(error.to_string());
            }
        }
        counts.misses.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn reject(&self, fetched: &EntryId, reason: &str) {
        self.shared.reject(fetched, reason, false);
    }

    fn offer(&self, entry: &EntryId, folder: &Path, age: Option<Age>) {
        let (shared, Some(runtime)) = (&self.shared, &self.sending) else { return };
        if (entry.kind.is_trusted_by_host() && shared.secret.is_none()) || shared.is_marked(folder) {
            return;
        }
        if let Some(pending) = shared.queue.enter(entry, folder) {
            runtime.spawn(shared.clone().send(entry.clone(), folder.to_owned(), age, pending));
        }
    }

    fn status(&self) -> TierStatus {
        let Shared { reading, writing, queue, counts, names, .. } = &*self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (state, last_error) = Health::status_of(reading, writing);
        TierStatus {
            state,
            last_error,
            hmac_key_id: names.key_id.clone(),
            hits: count(&counts.hits),
            misses: count(&counts.misses),
            rejected: count(&counts.rejected),
            downloaded_mb: count(&counts.received_bytes) as f64 / 1e6,
            uploaded_mb: count(&counts.sent_bytes) as f64 / 1e6,
            uploads_pending: queue.len() as u64,
            uploads_done: count(&counts.sent),
            uploads_failed: count(&counts.not_sent),
            ..TierStatus::new("s3")
        }
    }

    fn flush(&self, patience: Duration) -> bool {
        self.shared.queue.wait(patience)
    }

    fn close(&self, patience: Duration) {
        self.shared.queue.closing.cancel();
        if !self.shared.queue.wait(patience) {
            tracing::debug!("an upload was given up that could not be ended in time");
        }
    }
}

impl Shared {
    /// Sends an entry in its turn, and again some time later if that fails.
    async fn send(self: Arc<Shared>, entry: EntryId, folder: PathBuf, age: Option<Age>, pending: Pending) {
        let sending = async {
            let Ok(_turn) = self.queue.turns.acquire().await else { return };
            for attempt in 1..=ATTEMPTS {
                self.queue.closing.run_until_cancelled(self.wait_until_it_may_answer()).await;
                match self.push(&self.to, &entry, &folder, age).await {
                    Err(PushError::Failed(reason)) if attempt < ATTEMPTS => {
                        tracing::debug!(%entry, reason, attempt, "it was not sent to S3, and is sent again");
                    }
                    Err(PushError::Cancelled) => return,
                    Err(reason) => {
                        self.counts.not_sent.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%entry, %reason, "it was not sent to S3");
                        return;
                    }
                    Ok(_) => return,
                }
            }
        };
        sending.await;
        drop(pending);
    }

    async fn wait_until_it_may_answer(&self) {
        while let Some(left) = self.writing.left_alone_for(Instant::now()) {
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
    }

    async fn push(
        &self,
        to: &Arc<Bucket>,
        entry: &EntryId,
        folder: &Path,
        age: Option<Age>,
    ) -> Result<Pushed, PushError> {
        let push = Push {
            bucket: to,
            names: &self.names,
            secret: self.secret.as_ref(),
            cancel: &self.queue.closing,
            age,
            is_damaged: self.rejected(entry).is_some_and(|rejected| rejected.is_damaged),
            settle: self.timing.settle,
            heeds_conditions: &self.heeds_conditions,
        };
        let pushed = push.push(entry, folder).await;
        match &pushed {
            Ok(pushed) => {
                self.writing.note_answer();
                // What was wrong with it is in the past.
                self.lock_rejected().remove(entry);
                if *pushed == Pushed::Sent {
                    self.counts.sent.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(%entry, "sent to S3");
                }
                self.set_mark(folder, &self.mark);
            }
            Err(PushError::Failed(reason)) => {
                self.writing.note_failure(reason.clone(), Instant::now(), chance());
            }
            Err(_) => {}
        }
        pushed
    }

    fn rejected(&self, entry: &EntryId) -> Option<Rejected> {
        self.lock_rejected().get(entry).copied().filter(|rejected| rejected.until > Instant::now())
    }

    fn lock_rejected(&self) -> MutexGuard<'_, HashMap<EntryId, Rejected>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reject(&self, entry: &EntryId, reason: &str, is_damaged: bool) {
        tracing::warn!(%entry, reason, "what S3 has is not used");
        self.counts.rejected.fetch_add(1, Ordering::Relaxed);
        self.reading.note_error(format!("{entry}: {reason}"));
        let mut rejected = self.lock_rejected();
        let now = Instant::now();
        if rejected.len() >= REJECTED_MAX {
            rejected.retain(|_, rejected| rejected.until > now);
        }
        if rejected.len() < REJECTED_MAX {
            rejected.insert(entry.clone(), Rejected { until: now + self.timing.rejected, is_damaged });
        }
    }

    /// Whether the bucket is known to have it. A mark that cannot be written or read costs a request and nothing else.
    fn is_marked(&self, folder: &Path) -> bool {
        let marked = fs::metadata(folder.join(&self.mark)).and_then(|metadata| metadata.modified());
        marked.is_ok_and(|marked| marked.elapsed().is_ok_and(|age| age < MARK_HOLDS))
    }

    fn set_mark(&self, folder: &Path, mark: &str) {
        let marked = create_anew(&folder.join(mark));
        let _ = marked.and_then(|file| file.set_modified(std::time::SystemTime::now()));
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("names", &self.shared.names).finish_non_exhaustive()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.shared.queue.closing.cancel();
        // A runtime that is dropped waits for its threads, which nobody may do in another runtime.
        for runtime in [self.receiving.take(), self.sending.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

/// One bucket, prefix and key have one mark.
fn mark(config: &S3Config, names: &Names) -> String {
    let S3Config { bucket, endpoint_url, prefix, .. } = config;
    let mut hasher = KeyHasher::new("place of entries");
    let endpoint_url = endpoint_url.as_deref().unwrap_or_default();
    for (name, value) in [("bucket", bucket.as_str()), ("endpoint", endpoint_url), ("prefix", prefix)] {
        hasher = hasher.field(name, value.as_bytes());
    }
    let hasher = hasher.field("key", names.key_id.as_deref().unwrap_or_default().as_bytes());
    format!("{MARK}{}", hasher.finish().short())
}
