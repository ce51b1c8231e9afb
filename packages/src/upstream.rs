//! The registries, as this host reaches them: over TLS with its own certificates, through its proxies, with bounds on how
//! long and how much.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::Url;

use crate::checksum::Checksum;
use crate::credentials::Credentials;

/// Largest page of an index, unpacked, in bytes. The largest of npm's have some 10 MB.
const PAGE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// How many requests to registries run at once: enough to keep a line busy with small files, and an upper bound on the pages
/// that are held while they come.
const REQUESTS_MAX: usize = 16;

/// How many redirects are followed. Registries do with one or two.
const REDIRECTS_MAX: usize = 5;

/// How long a registry is waited for, and how often it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until a connection is there, and TLS agreed upon.
    pub connect: Duration,
    /// Until the next byte.
    pub stall: Duration,
    /// Until a page of an index is there; for a file only `stall` counts.
    pub page: Duration,
    /// How often it is asked in all. What has come of a file is kept.
    pub attempts: u32,
}

impl Default for Patience {
    /// As the installers themselves have it: a registry that does not answer for 20 s is taken for down.
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(20),
            page: Duration::from_secs(60),
            attempts: 3,
        }
    }
}

/// Why a page or a file could not be had from a registry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The registry does not have it.
    #[error("{url} does not exist")]
    NotFound {
        /// Where it was to be.
        url: ShownUrl,
    },
    /// The registry will not give it.
    #[error("{url} was answered with status {status}")]
    Status {
        /// Where it was to be.
        url: ShownUrl,
        /// What it answered.
        status: u16,
    },
    /// The registry cannot be reached, or broke off.
    #[error("{url} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was to be.
        url: ShownUrl,
        /// What happened.
        reason: String,
    },
    /// The registry does not go on.
    #[error("{url} did not answer in time")]
    Stalled {
        /// Where it was to be.
        url: ShownUrl,
    },
    /// More came than can be, or than was announced.
    #[error("{url} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Where it is.
        url: ShownUrl,
        /// The limit.
        limit_bytes: u64,
    },
    /// What came is not what the index says.
    #[error("{url} is not what the index promises: its hash is {actual}, not {expected}")]
    Hash {
        /// Where it is.
        url: ShownUrl,
        /// What the index says.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// What came cannot be read.
    #[error("{url} makes no sense: {reason}")]
    Malformed {
        /// Where it is.
        url: ShownUrl,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be kept.
    #[error("the download cache cannot be used: {reason}")]
    Cache {
        /// What the system said.
        reason: String,
    },
}

impl FetchError {
    /// Whether it may go better the next time.
    fn is_transient(&self) -> bool {
        match self {
            FetchError::Unreachable { .. } | FetchError::Stalled { .. } => true,
            FetchError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    pub(crate) fn hash(url: &Url, expected: &Checksum, actual: &Checksum) -> FetchError {
        FetchError::Hash { url: url.into(), expected: expected.to_string(), actual: actual.to_string() }
    }

    pub(crate) fn malformed(url: &Url, reason: impl fmt::Display) -> FetchError {
        FetchError::Malformed { url: url.into(), reason: reason.to_string() }
    }
}

/// A URL as messages and logs show it: without a user's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownUrl(Arc<str>);

impl From<&Url> for ShownUrl {
    fn from(url: &Url) -> ShownUrl {
        let mut url = url.clone();
        if !url.username().is_empty() || url.password().is_some() {
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        ShownUrl(url.as_str().into())
    }
}

impl fmt::Display for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is to be a URL, as messages and logs show it, whether it is one or not.
pub fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => text.to_owned(),
    }
}

/// Why there is no way to registries at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

/// What asks registries.
#[derive(Debug)]
pub(crate) struct Upstream {
    pages: Client,
    files: Client,
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
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_platform_verifier())
            .map_err(|error| TlsError(error.to_string()))?
            .with_no_client_auth();
        let client = |builder: ClientBuilder| {
            builder
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(patience.connect)
                .read_timeout(patience.stall)
                .redirect(policy())
                .user_agent(concat!("sandbox-mcp/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| TlsError(chain(&error)))
        };
        Ok(Upstream {
            pages: client(Client::builder())?,
            // The hash is of the file as it lies there, not of what unpacking on the way makes of it.
            files: client(Client::builder().no_gzip())?,
            permits: Semaphore::new(REQUESTS_MAX),
            patience,
            credentials,
        })
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
        once.retry(self.pauses()).when(FetchError::is_transient).await
    }

    async fn page_once(&self, url: &Url, accept: &'static str) -> Result<RawPage, FetchError> {
        let mut response = self.send(self.pages.get(url.clone()).header(ACCEPT, accept), url).await?;
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

    /// Begins to receive a file, from `offset` on if the server can do that: `Response::status` tells.
    pub(crate) async fn file(&self, url: &Url, offset: u64) -> Result<Response, FetchError> {
        let mut request = self.files.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        self.send(request, url).await
    }

    async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, FetchError> {
        // A redirect to another host goes there without.
        let request = match self.credentials.of(url) {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        };
        let response = request.send().await.map_err(|error| broken(url, &error))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(FetchError::NotFound { url: url.into() }),
            status => Err(FetchError::Status { url: url.into(), status: status.as_u16() }),
        }
    }

    /// The right to a request. Whoever receives a file keeps it until the end.
    pub(crate) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.permits.acquire().await.ok()
    }

    /// How long to wait between attempts: longer each time, and not when all others do.
    pub(crate) fn pauses(&self) -> impl BackoffBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(self.patience.attempts.saturating_sub(1) as usize)
            .with_jitter()
    }

    pub(crate) fn is_worth_another(error: &FetchError) -> bool {
        error.is_transient()
    }
}

pub(crate) fn broken(url: &Url, error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::Stalled { url: url.into() };
    }
    FetchError::Unreachable { url: url.into(), reason: chain(error) }
}

/// An error with all its causes, each once: reqwest's own text does not say what happened. It has no URL in it, which may
/// hold a password.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source().or(Some(error));
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// Redirects are followed, but not from TLS to none.
fn policy() -> Policy {
    Policy::custom(|attempt| {
        let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if was_secure && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to a URL without TLS")
        } else {
            attempt.follow()
        }
    })
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
    fn passwords_are_not_shown() {
        let url: Url = "https://user:secret@example.com/simple/x/".parse().unwrap();
        let text = FetchError::NotFound { url: (&url).into() }.to_string();
        assert_eq!(text, "https://example.com/simple/x/ does not exist");
        for (text, shown) in [
            ("https://user:s@cret@example.com:8/x?y@z", "https://***@example.com:8/x?y@z"),
            ("ftp://token@", "ftp://***@"),
            ("https://example.com/@scope", "https://example.com/@scope"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

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
