//! A file that comes: written as it comes, gone on with where it broke off, bounded in size, and held against its hash.

use std::fs::File;
use std::io;

use backon::BackoffBuilder;
use reqwest::StatusCode;
use reqwest::header::HeaderValue;
use tokio::io::AsyncWriteExt;
use url::Url;

use crate::checksum::{Checksum, Hasher};
use crate::client::{HttpClient, broken};
use crate::error::FetchError;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it is.
    pub url: Url,
    /// What it hashes to.
    pub checksum: Checksum,
    /// How long it is, if that is known. What is longer is not it.
    pub size_bytes: Option<u64>,
}

/// Who is told how a download goes on.
pub trait Progress: Send {
    /// So much is in the file, what was there before included.
    fn received(&mut self, received_bytes: u64);

    /// It is about to be asked for again.
    fn retrying(&mut self, reason: &FetchError) {
        let _ = reason;
    }
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server or the network is behind it, or what came is not what was asked for.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It could not be written. Nobody knows how much of a failed write is in the file, so it is not tried again.
    #[error("it cannot be written: {0}")]
    Write(io::Error),
}

/// A file to be fetched.
#[derive(Debug)]
pub struct Download<'a> {
    /// Who asks.
    pub client: &'a HttpClient,
    /// What is asked for.
    pub wanted: &'a Wanted,
    /// What opens where it is.
    pub authorization: Option<&'a HeaderValue>,
    /// What is longer is not taken, whatever length was announced.
    pub max_bytes: u64,
}

impl Download<'_> {
    /// Adds what is missing to the end of `file`, of which `known` is the hash so far and the length in bytes. Where this ends without an
    /// error, the file is what was asked for. Else, unless the error [is of its content](FetchError::is_of_content), what is there is
    /// a beginning of it.
    pub async fn receive(
        &self,
        file: File,
        known: (Hasher, u64),
        progress: &mut impl Progress,
    ) -> Result<(), DownloadError> {
        let checksum = &self.wanted.checksum;
        let (hasher, bytes) = known;
        let mut received = Received { hasher, writer: tokio::fs::File::from_std(file), bytes };
        let mut pauses = self.client.pauses().build();
        // All of it may have come before, but for its verification.
        if checksum.compare(received.hasher.clone()).is_ok() {
            return Ok(());
        }
        loop {
            let error = match self.attempt(&mut received, progress).await {
                Ok(()) => match self.judge(&received) {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                Err(DownloadError::Fetch(error)) => error,
                Err(error) => return Err(error),
            };
            match pauses.next().filter(|_| error.is_transient()) {
                Some(pause) => {
                    progress.retrying(&error);
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error.into()),
            }
        }
    }

    /// Whether what has come is what was asked for, once the server has sent all it had.
    fn judge(&self, received: &Received) -> Result<(), FetchError> {
        let Wanted { url, checksum, size_bytes } = self.wanted;
        checksum.compare(received.hasher.clone()).map_err(|actual| match size_bytes {
            // An index may err about the length. The hash alone decides whether something is wrong.
            Some(size_bytes) if received.bytes < *size_bytes => {
                FetchError::Short { url: url.into(), received_bytes: received.bytes, size_bytes: *size_bytes }
            }
            _ => FetchError::hash(url, checksum, &actual),
        })
    }

    /// Asks for the rest and takes what comes.
    async fn attempt(&self, received: &mut Received, progress: &mut impl Progress) -> Result<(), DownloadError> {
        let url = &self.wanted.url;
        let limit_bytes = self.wanted.size_bytes.unwrap_or(self.max_bytes).min(self.max_bytes);
        let mut response = self.client.file(url, self.authorization, received.bytes).await?;
        // A server that begins at the beginning sends what we have once more. If it is not the same, the hash will tell.
        let mut known_bytes = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { received.bytes };
        while let Some(mut chunk) = response.chunk().await.map_err(|error| broken(url, &error))? {
            let skipped = known_bytes.min(chunk.len() as u64);
            known_bytes -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            if received.bytes + chunk.len() as u64 > limit_bytes {
                return Err(FetchError::TooLarge { url: url.into(), limit_bytes }.into());
            }
            received.take(&chunk).await.map_err(DownloadError::Write)?;
            progress.received(received.bytes);
        }
        Ok(())
    }
}

/// What has arrived so far.
struct Received {
    hasher: Hasher,
    writer: tokio::fs::File,
    bytes: u64,
}

impl Received {
    async fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.writer.write_all(bytes).await?;
        // Whoever reads the file meanwhile reads what is in it, not what is on its way there.
        self.writer.flush().await?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Patience;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    const CONTENT: &[u8] = b"some content that comes in two parts";

    /// Answers a request after the other on loopback, and says what they asked for.
    fn serve(answers: Vec<(&'static str, &'static [u8])>) -> (Url, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap()).parse().unwrap();
        let server = thread::spawn(move || {
            let answer = |(status, body): (&str, &[u8])| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with("\r\n\r\n") {
                    assert_ne!(reader.read_line(&mut request).unwrap(), 0);
                }
                let length = body.len();
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").unwrap();
                stream.write_all(body).unwrap();
                request.to_lowercase()
            };
            answers.into_iter().map(answer).collect()
        });
        (url, server)
    }

    #[derive(Default)]
    struct Told {
        received: Vec<u64>,
        retries: usize,
    }

    impl Progress for Told {
        fn received(&mut self, received_bytes: u64) {
            self.received.push(received_bytes);
        }
        fn retrying(&mut self, _: &FetchError) {
            self.retries += 1;
        }
    }

    fn checksum_of(content: &[u8]) -> Checksum {
        let zero = Checksum::from_hex("sha256", &"0".repeat(64)).unwrap();
        let mut hasher = zero.hasher();
        hasher.update(content);
        zero.compare(hasher).unwrap_err()
    }

    /// CONTENT from `url`, of which `known` is there already.
    async fn receive(url: Url, size_bytes: Option<u64>, known: &[u8]) -> (Result<(), DownloadError>, Vec<u8>, Told) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, known).unwrap();
        let client = HttpClient::new(Patience { attempts: 3, ..Patience::default() }).unwrap();
        let wanted = Wanted { url, checksum: checksum_of(CONTENT), size_bytes };
        let download = Download { client: &client, wanted: &wanted, authorization: None, max_bytes: 100 };
        let mut hasher = wanted.checksum.hasher();
        hasher.update(known);
        let mut told = Told::default();
        let file = File::options().append(true).open(&path).unwrap();
        let result = download.receive(file, (hasher, known.len() as u64), &mut told).await;
        (result, std::fs::read(path).unwrap(), told)
    }

    #[tokio::test]
    async fn what_ends_too_early_without_an_error_is_gone_on_with() {
        let (url, server) = serve(vec![("200 OK", &CONTENT[..10]), ("206 Partial Content", &CONTENT[10..])]);
        let (result, content, told) = receive(url, Some(36), b"").await;
        result.unwrap();
        assert_eq!((&content[..], told.retries, told.received.last()), (CONTENT, 1, Some(&36)));
        let requests = server.join().unwrap();
        assert!(!requests[0].contains("range:") && requests[1].contains("range: bytes=10-\r\n"), "{requests:?}");
    }

    #[tokio::test]
    async fn what_was_there_is_not_sent_again_and_what_is_whole_not_asked_for() {
        let (url, server) = serve(vec![("206 Partial Content", &CONTENT[7..])]);
        let (result, content, told) = receive(url.clone(), None, &CONTENT[..7]).await;
        result.unwrap();
        assert_eq!((&content[..], told.received.last()), (CONTENT, Some(&36)));
        assert!(server.join().unwrap()[0].contains("range: bytes=7-\r\n"));
        // Nobody listens there any more.
        receive(url, None, CONTENT).await.0.unwrap();
    }

    #[tokio::test]
    async fn the_hash_decides_and_not_the_length_that_was_announced() {
        let (url, server) = serve(vec![("200 OK", CONTENT)]);
        receive(url, Some(40), b"").await.0.unwrap();
        server.join().unwrap();
    }

    #[tokio::test]
    async fn what_another_attempt_cannot_mend_is_asked_for_once() {
        let mut wrong = [0; 36];
        wrong.copy_from_slice(CONTENT);
        wrong[35] ^= 1;
        let wrong: &'static [u8] = Box::leak(Box::new(wrong));
        for (answer, size_bytes, words, is_of_content) in [
            (("404 Not Found", &b""[..]), None, " does not exist", false),
            (("403 Forbidden", &b""[..]), None, " was answered with status 403", false),
            (("416 Range Not Satisfiable", &b""[..]), None, " was answered with status 416", true),
            (("200 OK", CONTENT), Some(35), " is larger than 35 bytes", true),
            (("200 OK", &[b'x'; 101][..]), None, " is larger than 100 bytes", true),
            (("200 OK", wrong), Some(36), ": its hash is sha256-", true),
        ] {
            let (url, server) = serve(vec![answer]);
            let (result, _, told) = receive(url, size_bytes, b"").await;
            let Err(DownloadError::Fetch(error)) = result else { panic!("{result:?}") };
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!((told.retries, error.is_of_content()), (0, is_of_content), "{error}");
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_that_fails_is_asked_as_often_as_was_said() {
        let (url, server) = serve(vec![("503 Service Unavailable", b""); 3]);
        let (result, _, told) = receive(url, None, b"").await;
        assert!(result.unwrap_err().to_string().ends_with(" was answered with status 503"));
        assert_eq!(told.retries, 2);
        assert_eq!(server.join().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_not_asked_for_again() {
        let (url, server) = serve(vec![("200 OK", CONTENT)]);
        let client = HttpClient::new(Patience::default()).unwrap();
        let wanted = Wanted { url, checksum: checksum_of(CONTENT), size_bytes: None };
        let download = Download { client: &client, wanted: &wanted, authorization: None, max_bytes: 100 };
        let file = File::options().write(true).open("/dev/full").unwrap();
        let result = download.receive(file, (wanted.checksum.hasher(), 0), &mut Told::default()).await;
        assert!(matches!(result, Err(DownloadError::Write(_))), "{result:?}");
        server.join().unwrap();
    }
}
