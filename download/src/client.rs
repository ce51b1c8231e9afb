//! HTTP as this host speaks it: over TLS with the host's own certificates (`SSL_CERT_FILE` included), through its proxies, with
//! bounds on how long.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use rustls_platform_verifier::BuilderVerifierExt;
use url::Url;

use crate::error::FetchError;

/// How many redirects are followed. Registries do with one or two.
const REDIRECTS_MAX: usize = 5;

/// How long a server is waited for, and how often it is asked.
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

/// Why there is no way to any server at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

/// What asks servers.
#[derive(Debug)]
pub struct HttpClient {
    pages: Client,
    files: Client,
    patience: Patience,
}

impl HttpClient {
    /// A client. Nobody is asked anything yet.
    pub fn new(patience: Patience) -> Result<HttpClient, TlsError> {
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
        Ok(HttpClient {
            pages: client(Client::builder())?,
            // The hash is of the file as it lies there, not of what unpacking on the way makes of it.
            files: client(Client::builder().no_gzip())?,
            patience,
        })
    }

    /// Begins to receive a page, in one of the forms that `accept` names.
    pub async fn page(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
        accept: &'static str,
    ) -> Result<Response, FetchError> {
        send(self.pages.get(url.clone()).header(ACCEPT, accept), url, authorization).await
    }

    /// Begins to receive a file, from `offset` on if the server can do that: `Response::status` tells.
    pub async fn file(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
        offset: u64,
    ) -> Result<Response, FetchError> {
        let mut request = self.files.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        send(request, url, authorization).await
    }

    /// How long to wait between attempts: longer each time, and not when all others do.
    pub fn pauses(&self) -> impl BackoffBuilder + use<> {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(self.patience.attempts.saturating_sub(1) as usize)
            .with_jitter()
    }
}

async fn send(request: RequestBuilder, url: &Url, authorization: Option<&HeaderValue>) -> Result<Response, FetchError> {
    // A redirect to another host goes there without.
    let request = match authorization {
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

/// That a request failed, or an answer broke off.
pub fn broken(url: &Url, error: &reqwest::Error) -> FetchError {
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
