//! Fetches pinned files. What is kept under a hash is hashed again on each use, so the cache need not be trusted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sandbox_download::{FetchError, HttpClient, Patience};
use sandbox_store::open_regular;
use tokio::runtime::{Builder, Runtime};

use crate::error::BuildError;
use crate::failure::DownloadError;
use crate::pins::Download;
use crate::progress::{Stage, Unit};
use crate::recipe::Workshop;

/// Whoever waits for a build waits longer than a program does: a registry that is slow today is better than none.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(20),
    stall: Duration::from_secs(60),
    page: Duration::from_secs(60),
    attempts: 5,
};

/// How often it is looked whether the file is still wanted. Shorter than any pause between attempts.
const STOP_POLL: Duration = Duration::from_millis(100);

/// No download takes longer.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// The path of `download` in the cache, to which it is fetched unless it is there. What has arrived is kept in `work`
/// meanwhile, which is swept when this process is killed.
pub(crate) fn fetch(download: &Download, work: &Path, workshop: &Workshop<'_>) -> Result<PathBuf, BuildError> {
    let name = download.hash.hex();
    let path = workshop.downloads.join(&name);
    if is_kept(&path, download).unwrap_or(false) {
        return Ok(path);
    }
    workshop.check()?;
    let title = format!("{} {}: fetching", download.name, download.version);
    let mut stage = workshop.progress.stage(&title, Some(download.size_bytes), Unit::Bytes);
    let partial = work.join(&name);
    let file = File::create(&partial).map_err(|source| DownloadError::Write { path: partial.clone(), source })?;
    receive(download, &file, &partial, stage.as_mut(), workshop)?;
    file.sync_all().map_err(|source| DownloadError::Write { path: partial.clone(), source })?;
    fs::rename(&partial, &path).map_err(|source| DownloadError::Write { path: path.clone(), source })?;
    stage.finish();
    Ok(path)
}

/// Has `download` sent into `file`, as long as the build goes on.
fn receive(
    download: &Download,
    file: &File,
    path: &Path,
    stage: &mut dyn Stage,
    workshop: &Workshop<'_>,
) -> Result<(), BuildError> {
    let write_error = |source| DownloadError::Write { path: path.to_owned(), source };
    let runtime = runtime().map_err(|source| DownloadError::Thread { source })?;
    let client = HttpClient::new(PATIENCE).map_err(DownloadError::from)?;
    let wanted = download.wanted();
    let nothing = (download.hash.hasher(), 0);
    let asked =
        sandbox_download::Download { client: &client, wanted: &wanted, authorization: None, max_bytes: u64::MAX };
    let mut told = Told { stage, workshop, received_bytes: 0, attempt: 1 };
    let writer = file.try_clone().map_err(write_error)?;
    let received = runtime.block_on(async {
        tokio::select! {
            biased;
            error = stopped(workshop) => Err(error),
            received = asked.receive(writer, nothing, &mut told) => Ok(received),
        }
    })?;
    Ok(received.map_err(|error| match error {
        sandbox_download::DownloadError::Write(source) => write_error(source),
        sandbox_download::DownloadError::Fetch(FetchError::Hash { url, expected, actual }) => {
            DownloadError::Hash { url: url.to_string(), expected, actual }
        }
        sandbox_download::DownloadError::Fetch(reason) => {
            DownloadError::Fetch { attempt: told.attempt, attempts: PATIENCE.attempts, reason }
        }
    })?)
}

/// One that works on this thread. What it needs another one for (a name's addresses, writing) has that from the start: tokio
/// panics where it cannot have it later.
fn runtime() -> io::Result<Runtime> {
    // That it can be had is tried before.
    let _ = thread::Builder::new().spawn(|| ())?.join();
    let runtime =
        Builder::new_current_thread().enable_all().max_blocking_threads(1).thread_keep_alive(FOR_GOOD).build()?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// Ends when the build has been given up.
async fn stopped(workshop: &Workshop<'_>) -> BuildError {
    loop {
        if let Err(error) = workshop.check() {
            return error;
        }
        tokio::time::sleep(STOP_POLL).await;
    }
}

/// Tells whoever watches the build.
struct Told<'a> {
    stage: &'a mut dyn Stage,
    workshop: &'a Workshop<'a>,
    received_bytes: u64,
    attempt: u32,
}

impl sandbox_download::Progress for Told<'_> {
    fn received(&mut self, received_bytes: u64) {
        self.stage.advance(received_bytes - self.received_bytes);
        self.received_bytes = received_bytes;
    }

    fn retrying(&mut self, reason: &FetchError) {
        self.attempt += 1;
        if self.workshop.check().is_ok() {
            self.stage.message(&format!("trying again: {reason}"));
        }
    }
}

/// Whether a file is the one that is pinned.
fn is_kept(path: &Path, download: &Download) -> io::Result<bool> {
    let (mut file, metadata) = open_regular(path)?;
    if metadata.len() != download.size_bytes {
        return Ok(false);
    }
    let (hasher, _) = download.hash.hasher().read_all(&mut file)?;
    Ok(download.hash.compare(hasher).is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use sandbox_download::Checksum;

    use super::{DownloadError, fetch};
    use crate::error::BuildError;
    use crate::pins::Download;
    use crate::progress::{Progress, Silent, Stage, Unit};
    use crate::recipe::Workshop;

    const CONTENT: &[u8] = b"some content that comes in two parts";

    /// Serves CONTENT on loopback, one connection per response; a response says where it starts and where it breaks off.
    fn serve(responses: &'static [(&'static str, usize, usize)]) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let mut requests = Vec::new();
            for (status, from, to) in responses {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with("\r\n\r\n") {
                    assert_ne!(reader.read_line(&mut request).unwrap(), 0);
                }
                requests.push(request.to_lowercase());
                let length = CONTENT.len() - from;
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").unwrap();
                stream.write_all(&CONTENT[*from..*to]).unwrap();
            }
            requests
        });
        (url, server)
    }

    fn pinned(url: String, content: &[u8]) -> Download {
        let zero = Checksum::from_hex("sha256", &"0".repeat(64)).unwrap();
        let mut hasher = zero.hasher();
        hasher.update(content);
        let hash = zero.compare(hasher).unwrap_err();
        let (name, version, file) = ("a file".to_owned(), "1".to_owned(), "file".to_owned());
        let url = url.parse().unwrap();
        Download { name, version, file, url, size_bytes: content.len() as u64, hash }
    }

    fn fetch_to(dir: &std::path::Path, download: &Download) -> Result<std::path::PathBuf, BuildError> {
        let stop = AtomicBool::new(false);
        let work = tempfile::tempdir_in(dir).unwrap();
        fetch(download, work.path(), &Workshop { progress: &Silent, downloads: dir, logs: dir, stop: &stop })
    }

    /// Gives the build up when the first bytes arrive, and does not want to hear of another attempt.
    #[derive(Clone)]
    struct GivesUp(Arc<AtomicBool>);

    impl Progress for GivesUp {
        fn stage(&self, _: &str, _: Option<u64>, _: Unit) -> Box<dyn Stage> {
            Box::new(self.clone())
        }
    }

    impl Stage for GivesUp {
        fn advance(&mut self, _: u64) {
            self.0.store(true, Ordering::Relaxed);
        }
        fn message(&mut self, line: &str) {
            panic!("{line}");
        }
        fn finish(self: Box<Self>) {}
    }

    #[test]
    fn broken_transfer_goes_on_where_it_broke_off_and_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 10), ("206 Partial Content", 10, 36)]);
        let download = pinned(url, CONTENT);
        let path = fetch_to(dir.path(), &download).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
        let requests = server.join().unwrap();
        assert!(!requests[0].contains("range:") && requests[1].contains("range: bytes=10-\r\n"), "{requests:?}");
        // The server is gone: this one comes from the cache.
        assert_eq!(fetch_to(dir.path(), &download).unwrap(), path);
    }

    #[test]
    fn server_that_knows_no_ranges_is_coped_with() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 10), ("200 OK", 0, 36)]);
        let path = fetch_to(dir.path(), &pinned(url, CONTENT)).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), CONTENT);
        server.join().unwrap();
    }

    #[test]
    fn wrong_content_is_refused_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 36)]);
        let error = fetch_to(dir.path(), &pinned(url, &[b'x'; 36])).unwrap_err();
        assert!(matches!(error, BuildError::Download(DownloadError::Hash { .. })), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        server.join().unwrap();
    }

    #[test]
    fn changed_file_of_the_cache_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 36)]);
        let download = pinned(url, CONTENT);
        std::fs::write(dir.path().join(download.hash.hex()), [b'x'; 36]).unwrap();
        let path = fetch_to(dir.path(), &download).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), CONTENT);
        server.join().unwrap();
    }

    #[test]
    fn build_that_is_given_up_asks_for_no_second_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 10)]);
        let stop = Arc::new(AtomicBool::new(false));
        let progress = GivesUp(stop.clone());
        let workshop = Workshop { progress: &progress, downloads: dir.path(), logs: dir.path(), stop: &stop };
        let error = fetch(&pinned(url, CONTENT), dir.path(), &workshop).unwrap_err();
        assert!(matches!(error, BuildError::Stopped), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn file_that_cannot_be_written_is_not_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve(&[("200 OK", 0, 36)]);
        let download = pinned(url, CONTENT);
        let (work, downloads) = (dir.path().join("work"), dir.path().join("downloads"));
        for directory in [&work, &downloads] {
            std::fs::create_dir(directory).unwrap();
        }
        std::os::unix::fs::symlink("/dev/full", work.join(download.hash.hex())).unwrap();
        let progress = GivesUp(Arc::default());
        let stop = AtomicBool::new(false);
        let workshop = Workshop { progress: &progress, downloads: &downloads, logs: dir.path(), stop: &stop };
        let error = fetch(&download, &work, &workshop).unwrap_err();
        assert!(matches!(error, BuildError::Download(DownloadError::Write { .. })), "{error}");
        assert_eq!(std::fs::read_dir(downloads).unwrap().count(), 0);
        server.join().unwrap();
    }
}
