//! The registries, as an installer sees them: plain HTTP on a stream. What it may not have, or what its registry does not send,
//! it is told in a way that makes it stop.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sandbox_download::{FetchError, Wanted};
use sandbox_schemas::language::Language;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::pypi::{Form, dependencies, render, without};
use crate::route::Route;
use crate::session::{Need, Session};

/// What a package that is not allowed is answered with. To 403 and 404 uv looks for another version that does without it and
/// installs that, silently; on 451 it stops, and so does npm.
const REFUSED: StatusCode = StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS;

/// What a registry's failure is answered with: to 5xx installers ask again and again, and that was done already.
const FAILED: StatusCode = StatusCode::FAILED_DEPENDENCY;

/// Most that is held of a request's head, in bytes. uv's and npm's have some 500.
const HEAD_MAX_BYTES: usize = 32 * 1024;

type Body = UnsyncBoxBody<Bytes, FetchError>;

impl Session {
    /// Serves one connection until its other end closes it. Dropped before, it stops at once, and what only it waited for is
    /// fetched no further.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) -> Result<(), hyper::Error> {
        let answer = |request: Request<Incoming>| async move { Ok::<_, Infallible>(self.answer(&request).await) };
        http1::Builder::new()
            // A connection that waits costs nothing, and ends with its guest.
            .header_read_timeout(None)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = self.text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered");
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let route = Route::parse(request.uri().path()).filter(|route| route.language() == self.language());
        let Some(route) = route else { return self.text(StatusCode::NOT_FOUND, "there is no such page here") };
        if !self.admit() {
            return self.text(REFUSED, "one install has asked for more than 20,000 pages and files");
        }
        self.look_for_a_part(&route).await;
        if let Err(refusal) = self.check(route.name()) {
            return self.text(REFUSED, &refusal.to_string());
        }
        let is_index = matches!(route, Route::Project { .. } | Route::Packument { .. });
        match self.follow(&route, request.headers()).await {
            Ok(response) => response,
            Err(error) => {
                self.failed(route.name(), is_index, &error);
                let is_missing = matches!(error, FetchError::NotFound { .. });
                self.text(if is_missing { StatusCode::NOT_FOUND } else { FAILED }, &error.to_string())
            }
        }
    }

    /// An allowlist of what people ask for does not know what large packages were divided into: such a part may come with its whole.
    /// Native packages of npm have one for each machine, of which the one for this machine may.
    async fn look_for_a_part(&self, route: &Route) {
        let (Route::Packument { name } | Route::Tarball { name, .. }) = route else { return };
        let Some((whole, is_of_scope)) = self.whole(name) else { return };
        if is_of_scope {
            self.is_part(name, whole, true);
            return;
        }
        // If its registry fails, it is refused like any other, and looked for again when it is asked for again.
        if let Ok(packument) = self.gateway().packument(name).await
            && let Some(is_for_this_machine) = packument.is_for_this_machine()
        {
            self.is_part(name, whole, is_for_this_machine);
        }
    }

    async fn follow(&self, route: &Route, headers: &HeaderMap) -> Result<Response<Body>, FetchError> {
        match route {
            Route::Project { name } => {
                self.looks_up(name);
                let page = self.gateway().project(name).await.map_err(|error| (*error).clone())?;
                self.found_page(&page);
                let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let form = Form::of(&accept.collect::<Vec<_>>().join(", "));
                Ok(whole(StatusCode::OK, form.content_type(), render(&page, form)))
            }
            Route::Metadata { name, file } => {
                let page = self.gateway().project(name).await.map_err(|error| (*error).clone())?;
                let Some(wheel) = page.wheel(file) else { return Ok(self.no_such_file()) };
                let arrived = |size_bytes, is_cached| self.arrived(file, size_bytes, is_cached);
                let text = self.gateway().metadata(wheel, arrived).await.map_err(|error| (*error).clone())?;
                self.needs(name, || {
                    let need = |is_optional| Need { by: name.clone(), is_optional: false, is_weak: is_optional };
                    dependencies(&text).into_iter().map(|found| (found.name, need(found.is_optional))).collect()
                });
                let text = without(&text, |dependency| self.leaves_out(dependency));
                Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", text))
            }
            Route::Wheel { name, file } => {
                let page = self.gateway().project(name).await.map_err(|error| (*error).clone())?;
                let Some(wheel) = page.wheel(file) else { return Ok(self.no_such_file()) };
                self.file(name, file, wheel.wanted()).await
            }
            Route::Packument { name } => {
                self.looks_up(name);
                let packument = self.gateway().packument(name).await.map_err(|error| (*error).clone())?;
                self.needs(name, || {
                    let need = |found: &crate::npm::Dependency| Need {
                        by: name.clone(),
                        is_optional: found.is_optional,
                        is_weak: !found.is_of_latest,
                    };
                    packument.dependencies().into_iter().map(|found| (found.name.clone(), need(&found))).collect()
                });
                let Some(host) = headers.get(HOST).and_then(host) else {
                    return Ok(self.text(StatusCode::BAD_REQUEST, "the request names no host"));
                };
                Ok(whole(StatusCode::OK, "application/vnd.npm.install-v1+json", packument.render(&host)))
            }
            Route::Tarball { name, version } => {
                let packument = self.gateway().packument(name).await.map_err(|error| (*error).clone())?;
                let Some(release) = packument.release(version) else { return Ok(self.no_such_file()) };
                let wanted = Wanted { url: release.url.clone(), checksum: release.checksum.clone(), size_bytes: None };
                self.file(name, &format!("{name}@{version}"), wanted).await
            }
        }
    }

    async fn file(&self, package: &str, file: &str, wanted: Wanted) -> Result<Response<Body>, FetchError> {
        let found = self.gateway().file(wanted).await?;
        let size_bytes = found.size_bytes();
        let is_cached = found.is_cached();
        self.sends(package, file, size_bytes, is_cached);
        let (session, file) = (self.clone(), file.to_owned());
        let ended = move |size_bytes| session.arrived(&file, size_bytes, is_cached);
        let (session, package) = (self.clone(), package.to_owned());
        // It is too late for a status then: the connection breaks off, and the installer sees that something is missing.
        let failed = move |error: &FetchError| session.failed(&package, false, error);
        let frames = found.stream(ended).inspect_err(failed).map_ok(Frame::data);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/octet-stream"));
        if let Some(bytes) = size_bytes {
            headers.insert(CONTENT_LENGTH, bytes.into());
        }
        Ok(response)
    }

    fn no_such_file(&self) -> Response<Body> {
        self.text(StatusCode::NOT_FOUND, "the index names no such file")
    }

    /// A message, in the form that the installer shows to its user.
    fn text(&self, status: StatusCode, message: &str) -> Response<Body> {
        match self.language() {
            Language::Javascript => {
                let body = serde_json::json!({ "error": message }).to_string();
                whole(status, "application/json", body)
            }
            _ => whole(status, "text/plain; charset=utf-8", message.to_owned()),
        }
    }
}

fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// The host that the guest has reached us at, if it is one: it comes back to the guest in URLs.
fn host(value: &hyper::header::HeaderValue) -> Option<String> {
    let authority: Authority = value.to_str().ok()?.parse().ok()?;
    (!authority.as_str().contains('@')).then(|| authority.to_string())
}
