//! Sends one HTTP request: deadline, redirects, credentials, and a body that may be long.
//!
//! Redirects are followed here and not by the HTTP client, because each host has its own certificates, and because the caller
//! must know whether the answer comes from the server that it asked.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use reqwest::header::{HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::http::HostKind;
use super::{PlainHttp, Registry, RegistryError, RemoteObject};

/// Maximum number of redirects that are followed: the limit of browsers and of Go's HTTP client.
const REDIRECTS_MAX: usize = 10;

/// The content of the `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    Bearer(String),
    Basic(String, String),
}

/// A request to a registry, or to its token server.
pub(super) struct HttpRequest<'a> {
    /// What the request is for.
    pub(super) object: &'a RemoteObject,
    pub(super) endpoint: &'a Endpoint,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) authorization: Option<&'a Authorization>,
    pub(super) body: RequestBody,
}

/// The body of a request.
pub(super) struct RequestBody {
    body: Body,
    /// Bytes that the connection has taken so far.
    taken: Arc<AtomicU64>,
}

/// The response to a request.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Whether the response comes from the server that was asked, and not from one that it redirected to.
    ///
    /// Only that server may choose the token server, and only it has seen the credentials.
    pub(super) from_origin: bool,
}

impl<'a> HttpRequest<'a> {
    /// A GET request without credentials.
    pub(super) fn get(object: &'a RemoteObject, endpoint: &'a Endpoint, url: Url) -> Self {
        let (method, headers) = (Method::GET, HeaderMap::new());
        Self { object, endpoint, method, url, headers, authorization: None, body: RequestBody::none() }
    }
}

impl RequestBody {
    pub(super) fn none() -> Self {
        Self::of(Bytes::new())
    }

    /// A short body.
    pub(super) fn of(bytes: impl Into<Body>) -> Self {
        Self { body: bytes.into(), taken: Arc::default() }
    }

    /// A body that is read while it is sent. The request must have a header with its length.
    ///
    /// Calls `sent` with the number of bytes of each piece that the connection has taken.
    pub(super) fn streamed(
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        sent: impl Fn(u64) + Send + 'static,
    ) -> Self {
        let taken = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&taken);
        let counted = pieces.inspect_ok(move |piece| {
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            counter.fetch_add(length, Ordering::Relaxed);
            sent(length);
        });
        Self { body: Body::wrap_stream(counted), taken }
    }
}

impl Reply {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The host that sent the response.
    pub(super) fn host(&self) -> String {
        host_of(self.response.url())
    }
}

impl Registry {
    /// Sends a request and follows redirects. The body of the response has not been read.
    pub(super) async fn exchange(&self, request: HttpRequest<'_>) -> Result<Reply, RegistryError> {
        let deadlines = &self.options().deadlines;
        let HttpRequest { object, endpoint, method, mut url, headers, mut authorization, body } = request;
        let RequestBody { body, taken } = body;
        let is_read = method == Method::GET || method == Method::HEAD;
        // What is sent in a body is for one server only, so it is sent once.
        let mut body = (!is_read).then_some(body);
        let origin = url.origin();
        let registry = self.url(endpoint, "")?.origin();
        let mut from_origin = true;
        for _ in 0..=REDIRECTS_MAX {
            let host = host_of(&url);
            // The registry's own certificates are stored under the name that users write.
            let client_host = if url.origin() == registry { endpoint.host.as_str() } else { host.as_str() };
            let client = self.http().of_host(client_host, &endpoint.host)?;
            let mut builder = client.request(method.clone(), url.clone()).headers(headers.clone());
            builder = match authorization {
                Some(Authorization::Bearer(token)) => builder.bearer_auth(token),
                Some(Authorization::Basic(user, password)) => builder.basic_auth(user, Some(password)),
                None => builder,
            };
            if let Some(body) = body.take() {
                builder = builder.body(body);
            }
            tracing::trace!(%object, host, "request");
            let after = deadlines.connect + deadlines.response;
            let response = match while_it_moves(after, &taken, builder.send()).await {
                Some(Ok(response)) => response,
                Some(Err(source)) => return Err(RegistryError::transport(object, &host, &source, deadlines)),
                None => return Err(RegistryError::deadline(object, &host, "a response", after)),
            };
            let location = match (response.status().as_u16(), response.headers().get(LOCATION)) {
                (301 | 302 | 303 | 307 | 308, Some(location)) if is_read => location,
                _ => return Ok(Reply { response, from_origin }),
            };
            let refuse = |reason: String| RegistryError::Redirect {
                object: object.clone(),
                host: host.clone(),
                reason,
            };
            let target = redirect_target(&url, location).map_err(refuse)?;
            if target.origin() != origin {
                (authorization, from_origin) = (None, false);
            }
            url = target;
        }
        Err(RegistryError::Redirect {
            object: object.clone(),
            host: host_of(&url),
            reason: format!("more than {REDIRECTS_MAX} times"),
        })
    }

    /// The URL of a path at an endpoint.
    pub(super) fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, RegistryError> {
        endpoint.url(self.scheme(&endpoint.host)?, path)
    }

    /// The scheme of the URLs of a registry.
    pub(super) fn scheme(&self, host: &str) -> Result<&'static str, RegistryError> {
        let plain_http = &self.options().plain_http;
        let is_implied = matches!(plain_http, PlainHttp::Loopback | PlainHttp::Hosts(_))
            && HostKind::of(host) == HostKind::Loopback;
        match is_implied && self.http().has_certificates(host)? {
            true => Ok("https"),
            false => Ok(plain_http.scheme(host)),
        }
    }
}

/// Resolves the `Location` of a response to a request of `url`. The error says where it leads instead.
pub(super) fn redirect_target(url: &Url, location: &HeaderValue) -> Result<Url, String> {
    let target = location.to_str().ok().and_then(|location| url.join(location).ok());
    let target = target.ok_or("to something that is not a URL")?;
    match (url.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => Ok(without_user(target)),
        ("https", "http") => Err(format!("from HTTPS to HTTP at {}", host_of(&target))),
        (_, scheme) => Err(format!("to a URL of the scheme `{scheme}`")),
    }
}

/// Waits for `answer`, and for another `after` whenever `taken` has grown. Returns `None` if it has not.
async fn while_it_moves<T>(after: Duration, taken: &AtomicU64, answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = pin!(answer);
    let mut before = 0;
    loop {
        if let Ok(answer) = timeout(after, &mut answer).await {
            return Some(answer);
        }
        match taken.load(Ordering::Relaxed) {
            now if now == before => return None,
            now => before = now,
        }
    }
}

/// Removes the user name and the password from a URL. The HTTP client would send them, and a server chose them.
pub(super) fn without_user(mut url: Url) -> Url {
    // Only URLs without a host refuse this, and they have no user either.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url
}

/// The host of a URL, and the port unless it is that of the scheme.
pub(super) fn host_of(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_of_a_url_is_removed() {
        let url = Url::parse("https://user:secret@host.example:8443/path?a=b").unwrap();
        assert_eq!(host_of(&url), "host.example:8443");
        assert_eq!(without_user(url).as_str(), "https://host.example:8443/path?a=b");
        assert_eq!(host_of(&Url::parse("https://[::1]:443/").unwrap()), "[::1]");
    }
}
