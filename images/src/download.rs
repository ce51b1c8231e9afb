//! Fetches pinned files. What is kept under a hash is hashed again on each use, so the cache need not be trusted.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sandbox_store::open_regular;
use ureq::Agent;
use ureq::http::StatusCode;
use ureq::tls::{RootCerts, TlsConfig};

use crate::error::BuildError;
use crate::lock::{Download, Hasher};
use crate::progress::{Stage, Unit};
use crate::recipe::Workshop;

/// How often a file is asked for before the build gives up. Each attempt goes on where the last one broke off.
const ATTEMPTS: u32 = 5;

/// The path of `download` in the cache, to which it is fetched unless it is there. What has arrived is kept in `work`
/// meanwhile, which is swept when this process is killed.
pub(crate) fn fetch(download: &Download, work: &Path, workshop: &Workshop<'_>) -> Result<PathBuf, BuildError> {
    let path = workshop.downloads.join(&download.hash.hex);
    if hash_of(&path, download).is_ok_and(|hex| hex == download.hash.hex) {
        return Ok(path);
    }
    let name = format!("{} {}: fetching", download.name, download.version);
    let mut stage = workshop.progress.stage(&name, Some(download.size_bytes), Unit::Bytes);
    let agent = agent();
    let mut partial = Partial::create(work, download)?;
    let mut attempt = 1;
    loop {
        workshop.check()?;
        match partial.receive(&agent, download, stage.as_mut(), workshop) {
            Ok(()) => break,
            Err(Interrupted::Here(error)) => return Err(error),
            Err(Interrupted::There(reason)) if attempt == ATTEMPTS => {
                return Err(DownloadError::Fetch { url: download.url.clone(), attempts: ATTEMPTS, reason }.into());
            }
            Err(Interrupted::There(reason)) => {
                stage.message(&format!("trying again: {reason}"));
                thread::sleep(Duration::from_millis(250 << attempt));
                attempt += 1;
            }
        }
    }
    partial.keep(&path, download)?;
    stage.finish();
    Ok(path)
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server could not be reached or did not send it.
    #[error("cannot fetch {url} ({attempts} attempts): {reason}")]
    Fetch {
        /// Its URL.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong the last time.
        reason: String,
    },
    /// What came is not what was pinned.
    #[error("{url} is not what images.lock pins: its hash is {actual}, not {expected}")]
    Hash {
        /// Its URL.
        url: String,
        /// The pinned hash in hexadecimal digits.
        expected: String,
        /// The hash of what came.
        actual: String,
    },
    /// It could not be written.
    #[error("cannot write {path}: {source}{}", sandbox_store::limit_behind(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why an attempt ended early.
enum Interrupted {
    /// The server or the network failed, and may not the next time.
    There(String),
    /// This host failed, or the build was given up. Nobody knows how much of a failed write is in the file, so there
    /// is nothing to go on with.
    Here(BuildError),
}

/// What has arrived so far.
struct Partial {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    length: u64,
}

impl Partial {
    fn create(work: &Path, download: &Download) -> Result<Partial, DownloadError> {
        let path = work.join(&download.hash.hex);
        let file = File::create(&path).map_err(|source| DownloadError::Write { path: path.clone(), source })?;
        Ok(Partial { file, path, hasher: Hasher::new(download.hash.algorithm), length: 0 })
    }

    /// Asks for the rest and takes what comes.
    fn receive(
        &mut self,
        agent: &Agent,
        download: &Download,
        stage: &mut dyn Stage,
        workshop: &Workshop<'_>,
    ) -> Result<(), Interrupted> {
        let mut request = agent.get(&download.url);
        if self.length > 0 {
            request = request.header("range", format!("bytes={}-", self.length));
        }
        let response = request.call().map_err(|error| Interrupted::There(error.to_string()))?;
        // A server that knows no ranges sends the whole file again: what is there already is passed over.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { self.length };
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = body.read(&mut buffer).map_err(|error| Interrupted::There(error.to_string()))?;
            if count == 0 {
                break;
            }
            let passed = skip.min(count as u64) as usize;
            skip -= passed as u64;
            let bytes = &buffer[passed..count];
            if self.length + bytes.len() as u64 > download.size_bytes {
                return Err(Interrupted::There(format!("it is longer than {} bytes", download.size_bytes)));
            }
            self.file.write_all(bytes).map_err(|source| Interrupted::Here(self.write_error(source).into()))?;
            self.hasher.update(bytes);
            self.length += bytes.len() as u64;
            stage.advance(bytes.len() as u64);
            workshop.check().map_err(Interrupted::Here)?;
        }
        if self.length < download.size_bytes {
            let reason = format!("it ended after {} of {} bytes", self.length, download.size_bytes);
            return Err(Interrupted::There(reason));
        }
        Ok(())
    }

    /// Moves it to `path`, if it is what was pinned.
    fn keep(self, path: &Path, download: &Download) -> Result<(), DownloadError> {
        self.file.sync_all().map_err(|source| self.write_error(source))?;
        let actual = self.hasher.hex();
        if actual != download.hash.hex {
            return Err(DownloadError::Hash { url: download.url.clone(), expected: download.hash.hex.clone(), actual });
        }
        fs::rename(&self.path, path).map_err(|source| DownloadError::Write { path: path.to_owned(), source })
    }

    fn write_error(&self, source: std::io::Error) -> DownloadError {
        DownloadError::Write { path: self.path.clone(), source }
    }
}

fn hash_of(path: &Path, download: &Download) -> std::io::Result<String> {
    let (mut file, metadata) = open_regular(path)?;
    if metadata.len() != download.size_bytes {
        return Ok(String::new());
    }
    let mut hasher = Hasher::new(download.hash.algorithm);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.hex()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// An HTTP client that trusts whom the host trusts (`SSL_CERT_FILE` included) and goes through the host's proxy.
fn agent() -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .user_agent(concat!("sandbox-mcp/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(600)));
    config.build().into()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::{DownloadError, fetch};
    use crate::error::BuildError;
    use crate::lock::{Algorithm, Download, Hash, Hasher};
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
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        let hash = Hash { algorithm: Algorithm::Sha256, hex: hasher.hex() };
        let (name, version, file) = ("a file".to_owned(), "1".to_owned(), "file".to_owned());
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
        std::fs::write(dir.path().join(&download.hash.hex), [b'x'; 36]).unwrap();
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
        std::os::unix::fs::symlink("/dev/full", work.join(&download.hash.hex)).unwrap();
        let progress = GivesUp(Arc::default());
        let stop = AtomicBool::new(false);
        let workshop = Workshop { progress: &progress, downloads: &downloads, logs: dir.path(), stop: &stop };
        let error = fetch(&download, &work, &workshop).unwrap_err();
        assert!(matches!(error, BuildError::Download(DownloadError::Write { .. })), "{error}");
        assert_eq!(std::fs::read_dir(downloads).unwrap().count(), 0);
        server.join().unwrap();
    }
}
