//! The registries: who may ask them, what opens them, and how much may come.

use backon::Retryable;
use bytes::{Bytes, BytesMut};
use hyper::header::CONTENT_TYPE;
use sandbox_download::{Download, FetchError, HttpClient, Patience, TlsError, Wanted, broken};
use tokio::sync::{Semaphore, SemaphorePermit};
use url::Url;

use crate::credentials::Credentials;

/// Largest page of an index, unpacked, in bytes. The largest of npm's have some 10 MB.
const PAGE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Largest file, in bytes: more than any wheel that can be installed into a VM.
const FILE_MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// How many requests to registries run at once: enough to keep a line busy with small files, and an upper bound on the pages
/// that are held while they come.
const REQUESTS_MAX: usize = 16;

/// What asks registries.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: HttpClient,
    permits: Semaphore,
    patience: Patience,
    credentials: Credentials,
}

/// A page as it came.
pub(crate) struct RawPage {
    pub(crate) body: Bytes,
    pub(crate) content_type: String,
    /// Where it came from in the end: what its relative URLs are relative to.
    pub(crate) url: Url,
}

impl Upstream {
    pub(crate) fn new(patience: Patience, credentials: Credentials) -> Result<Upstream, TlsError> {
        let permits = Semaphore::new(REQUESTS_MAX);
        Ok(Upstream { client: HttpClient::new(patience)?, permits, patience, credentials })
    }

    /// A page of an index, or a small file.
    pub(crate) async fn page(&self, url: &Url, accept: &'static str) -> Result<RawPage, FetchError> {
        let once = || async {
            // Its turn is not the registry's to give.
            let _permit = self.permit().await;
            match tokio::time::timeout(self.patience.page, self.page_once(url, accept)).await {
                Ok(page) => page,
                Err(_) => Err(FetchError::Stalled { url: url.into() }),
            }
        };
        once.retry(self.client.pauses()).when(FetchError::is_transient).await
    }

    async fn page_once(&self, url: &Url, accept: &'static str) -> Result<RawPage, FetchError> {
        let mut response = self.client.page(url, self.credentials.of(url), accept).await?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let final_url = response.url().clone();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(url, &error))? {
            if body.len() + chunk.len() > PAGE_MAX_BYTES {
                return Err(FetchError::TooLarge { url: url.into(), limit_bytes: PAGE_MAX_BYTES as u64 });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(RawPage { body: body.freeze(), content_type, url: final_url })
    }

    /// A file, of which nothing is asked for yet. Whoever receives it needs a permit.
    pub(crate) fn file<'a>(&'a self, wanted: &'a Wanted) -> Download<'a> {
        let authorization = self.credentials.of(&wanted.url);
        Download { client: &self.client, wanted, authorization, max_bytes: FILE_MAX_BYTES }
    }

    /// The right to a request. Whoever receives a file keeps it until the end.
    pub(crate) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.permits.acquire().await.ok()
    }
}

/// The URL of a file: relative ones are common, and only what can be fetched is one.
pub(crate) fn resolve(base: &Url, text: &str) -> Option<Url> {
    let mut url = base.join(text).ok()?;
    url.set_fragment(None);
    matches!(url.scheme(), "https" | "http").then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_resolved() {
        let base: Url = "https://example.com/simple/a/".parse().unwrap();
        let text = |text| resolve(&base, text).map(String::from);
        assert_eq!(text("../../f/a.whl#sha256=0").as_deref(), Some("https://example.com/f/a.whl"));
        assert_eq!(text("https://files.example.com/a.whl").as_deref(), Some("https://files.example.com/a.whl"));
        assert_eq!(text("file:///etc/passwd"), None);
        assert_eq!(text("javascript:x"), None);
    }
}
