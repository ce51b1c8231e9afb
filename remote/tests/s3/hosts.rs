//! Hosts that share a bucket: each a cache directory and a tier. And the bucket itself, as its owner sees it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use sandbox_remote::{S3, S3Config, Secret, Timing};
use sandbox_schemas::image::Digest;
use sandbox_store::{CacheDir, EntryId, Fetched, Kind, Lease, ShelfError, Tier};
use tempfile::TempDir;

use crate::weed::Weed;

/// Long enough for anything that works, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const KEY: Digest = Digest([7; 32]);

pub fn secret(byte: u8) -> Option<Secret> {
    Secret::new(&[byte; 32])
}

pub fn entry(kind: Kind) -> EntryId {
    EntryId { kind, name: "base".into(), key: KEY }
}

/// A bucket and how to get there.
pub fn config(bucket: &str, url: &str, secret: Option<Secret>) -> S3Config {
    S3Config {
        bucket: bucket.into(),
        region: None,
        prefix: "some/prefix/".into(),
        endpoint_url: Some(url.into()),
        force_path_style: true,
        uploads: 2,
        secret,
        // As in the product, but what a busy machine may need, and what a test would wait for.
        timing: Timing {
            answer: Duration::from_secs(10),
            settle: Duration::from_millis(1500),
            retry: Duration::from_millis(300),
            retry_max: Duration::from_millis(600),
            ..Timing::default()
        },
    }
}

/// A host.
pub struct Host {
    pub cache: CacheDir,
    pub s3: Arc<S3>,
    folder: TempDir,
}

impl Host {
    pub fn new(config: S3Config) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let s3 = Arc::new(S3::new(config).unwrap());
        let cache = CacheDir::new(folder.path().join("cache"), u64::MAX).with_tiers(vec![s3.clone() as Arc<dyn Tier>]);
        Host { cache, s3, folder }
    }

    pub fn path(&self, entry: &EntryId) -> PathBuf {
        self.cache.shelf(entry.kind).entry(&entry.name, entry.key)
    }

    /// Builds an entry with the files of `content`.
    pub fn build(&self, entry: &EntryId, content: &Content) -> Lease {
        let shelf = self.cache.shelf(entry.kind);
        let lock = shelf.try_lock(&entry.name).unwrap().unwrap();
        let place = shelf.begin(lock, entry.key).unwrap();
        content.write(place.made());
        place.publish().unwrap()
    }

    /// Whether the tiers have it; then it is on this host's disk.
    pub fn fetch(&self, entry: &EntryId) -> bool {
        self.fetch_within(entry, PATIENCE)
    }

    pub fn fetch_within(&self, entry: &EntryId, patience: Duration) -> bool {
        let shelf = self.cache.shelf(entry.kind);
        let lock = shelf.lock::<ShelfError>(&entry.name, || Ok(())).unwrap();
        let fetched = self.cache.fetch(entry, lock, patience, |_| Ok(())).unwrap();
        let left = fs::read_dir(shelf.folder()).unwrap().map(|found| found.unwrap().file_name());
        match fetched {
            Fetched::Entry((), _) => assert!(self.path(entry).is_dir()),
            Fetched::Nothing(_) => assert!(!self.path(entry).exists()),
        }
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".building")).collect();
        assert!(left.is_empty(), "{left:?}");
        self.path(entry).is_dir()
    }

    /// Removes what is on this host's disk.
    pub fn forget(&self) {
        let _ = fs::remove_dir_all(self.folder.path().join("cache"));
    }
}

/// The files of an entry: each a name, a mode, a length, and what is where in it.
#[derive(Debug, Clone)]
pub struct Content(pub Vec<(&'static str, u32, u64, Vec<(u64, Vec<u8>)>)>);

impl Content {
    /// Like a template: a large sparse file of which so many MiB hold something, a state, a manifest; and nothing in one.
    pub fn template(data_mb: u64, seed: u64) -> Content {
        let memory = (0..data_mb).map(|mb| (mb * (16 << 20), noise(1 << 20, seed + mb))).collect();
        Content(vec![
            ("manifest.json", 0o600, 15, vec![(0, b"{\"a\": \"manifest\"".to_vec())]),
            ("nothing", 0o644, 0, vec![]),
            ("ram", 0o644, (1 << 30) + 5, memory),
            ("state", 0o600, 130_000, vec![(0, noise(130_000, seed))]),
        ])
    }

    pub fn small(text: &str) -> Content {
        Content(vec![("file", 0o644, text.len() as u64, vec![(0, text.into())])])
    }

    fn write(&self, folder: &Path) {
        for (name, mode, length, pieces) in &self.0 {
            let file = File::create_new(folder.join(name)).unwrap();
            file.set_len(*length).unwrap();
            file.set_permissions(fs::Permissions::from_mode(*mode)).unwrap();
            for (at, bytes) in pieces {
                file.write_all_at(&bytes[..bytes.len().min((length - at) as usize)], *at).unwrap();
            }
            file.sync_all().unwrap();
        }
    }

    /// Whether a folder has these files and no others, as small as they were.
    #[track_caller]
    pub fn check(&self, folder: &Path) {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        assert_eq!(names, self.0.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
        for (name, mode, length, pieces) in &self.0 {
            let file = File::open(folder.join(name)).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.len(), metadata.mode() & 0o7777), (*length, *mode), "{name}");
            let mut data_bytes = 0;
            for (at, bytes) in pieces {
                let mut found = vec![0; bytes.len().min((length - at) as usize)];
                file.read_exact_at(&mut found, *at).unwrap();
                assert!(found == bytes[..found.len()], "{name} differs at {at}");
                data_bytes += found.len() as u64;
            }
            assert!(metadata.blocks() * 512 <= data_bytes + (1 << 20), "{name} has lost its holes");
        }
    }
}

/// Half of it compresses, as memory does.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if state >> 63 == 0 { (state >> 40) as u8 } else { 42 }
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// The bucket as its owner sees it, past the product.
pub struct Owner {
    runtime: tokio::runtime::Runtime,
    client: Client,
    pub bucket: String,
}

impl Owner {
    /// Makes a bucket.
    pub fn of_new_bucket(weed: &Weed) -> Owner {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .endpoint_url(weed.url())
            .region(aws_config::Region::new("us-east-1"))
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        let config = aws_sdk_s3::config::Builder::from(&runtime.block_on(config.load())).force_path_style(true).build();
        let (client, bucket) = (Client::from_conf(config), weed.make_bucket());
        Owner { runtime, client, bucket }
    }

    /// All keys, in their order.
    pub fn keys(&self) -> Vec<String> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).send();
        let objects = self.runtime.block_on(request).unwrap().contents.unwrap_or_default();
        objects.into_iter().map(|object| object.key.unwrap()).collect()
    }

    /// Uploads in pieces that were neither finished nor given up.
    pub fn open_uploads(&self) -> usize {
        let request = self.client.list_multipart_uploads().bucket(&self.bucket).send();
        self.runtime.block_on(request).unwrap().uploads.unwrap_or_default().len()
    }

    pub fn read(&self, key: &str) -> Vec<u8> {
        self.runtime.block_on(async {
            let object = self.client.get_object().bucket(&self.bucket).key(key).send().await.unwrap();
            object.body.collect().await.unwrap().to_vec()
        })
    }

    pub fn write(&self, key: &str, bytes: Vec<u8>) {
        let request = self.client.put_object().bucket(&self.bucket).key(key).body(bytes.into()).send();
        self.runtime.block_on(request).unwrap();
    }

    pub fn remove(&self, key: &str) {
        self.runtime.block_on(self.client.delete_object().bucket(&self.bucket).key(key).send()).unwrap();
    }

    /// The one whose name ends so.
    pub fn key_of(&self, end: &str) -> String {
        let keys: Vec<_> = self.keys().into_iter().filter(|key| key.ends_with(end)).collect();
        assert_eq!(keys.len(), 1, "{:?}", self.keys());
        keys.into_iter().next().unwrap()
    }
}
