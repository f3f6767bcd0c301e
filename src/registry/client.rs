//! Sends one request to a registry: address, credentials, deadline and status.
//!
//! The requests of `oci-client` are not used: they read a manifest of any length into memory, drop `Content-Type`,
//! `Retry-After` and `Content-Range`, and never renew an expired token.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use oci_client::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::http::{self, HostKind};
use super::message::server_message;
use super::token::AuthChallenge;
use super::{PlainHttp, RegistryError, RegistryOptions, RemoteObject};
use crate::image::Name;

/// Maximum number of bytes that are read from the body of an error response.
const ERROR_BODY_MAX: usize = 16 << 10;

/// A client for all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry(Arc<SharedClient>);

struct SharedClient {
    options: RegistryOptions,
    loopback: HostClients,
    remote: HostClients,
    /// The latest authorization for each repository.
    ///
    /// The lock is held while a token is fetched. If several layers find an expired token at the same time, only one of them
    /// fetches a new one.
    tokens: Mutex<HashMap<Name, Authorization>>,
}

/// The HTTP clients for one kind of host.
struct HostClients {
    scheme: &'static str,
    http: reqwest::Client,
}

/// The content of the `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
enum Authorization {
    Bearer(String),
    Basic(String, String),
}

/// A GET request for a manifest or a blob.
pub(super) struct RegistryRequest<'a> {
    pub(super) object: &'a RemoteObject,
    /// The path after `/v2/<repository>/`.
    pub(super) path: String,
    /// The accepted media types.
    pub(super) accept: Option<String>,
    /// The first requested byte.
    pub(super) from: u64,
}

impl Registry {
    /// Sets up the HTTP clients. Opens no connection.
    ///
    /// # Errors
    ///
    /// [`RegistryError::CaFile`] and [`RegistryError::TlsSetup`].
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        // Fails if a provider is installed already, which can only be the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = http::read_authorities(&options)?;
        let clients = |kind| {
            let scheme = match (options.plain_http, kind) {
                (PlainHttp::Always, _) | (PlainHttp::Loopback, HostKind::Loopback) => "http",
                (PlainHttp::Never, _) | (PlainHttp::Loopback, HostKind::Remote) => "https",
            };
            let http = http::client(&options, &authorities, kind)?;
            Ok(HostClients { scheme, http })
        };
        let (loopback, remote) = (clients(HostKind::Loopback)?, clients(HostKind::Remote)?);
        Ok(Self(Arc::new(SharedClient { options, loopback, remote, tokens: Mutex::default() })))
    }

    /// The options that were passed to [`Registry::new`].
    #[must_use]
    pub fn options(&self) -> &RegistryOptions {
        &self.0.options
    }

    fn clients(&self, host: &str) -> &HostClients {
        match HostKind::of(host) {
            HostKind::Loopback => &self.0.loopback,
            HostKind::Remote => &self.0.remote,
        }
    }

    /// The HTTP client for a host.
    pub(super) fn http(&self, host: &str) -> &reqwest::Client {
        &self.clients(host).http
    }

    /// The scheme of the URLs of a registry.
    pub(super) fn scheme(&self, host: &str) -> &'static str {
        self.clients(host).scheme
    }

    /// Sends a request. If the registry requires other credentials, obtains them and sends the request once more.
    ///
    /// Returns only successful responses. The caller reads the body.
    pub(super) async fn request(&self, request: &RegistryRequest<'_>) -> Result<Response, RegistryError> {
        let name = request.object.name();
        let used = self.0.tokens.lock().await.get(name).cloned();
        let response = self.send(request, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_registry(name, &response)? {
            return self.check_status(request, response).await;
        }
        let challenge = AuthChallenge::of(response.headers());
        let Some(authorization) = self.authorize(request.object, used, challenge).await? else {
            return self.check_status(request, response).await;
        };
        let response = self.send(request, Some(&authorization)).await?;
        self.check_status(request, response).await
    }

    async fn send(
        &self,
        request: &RegistryRequest<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let name = request.object.name();
        let host = host(name)?;
        let (clients, deadlines) = (self.clients(host), &self.0.options.deadlines);
        let url =
            format!("{}://{}/v2/{}/{}", clients.scheme, api_host(name)?, name.repository(), request.path);
        let mut builder = clients.http.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = &request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        builder = match authorization {
            Some(Authorization::Bearer(token)) => builder.bearer_auth(token),
            Some(Authorization::Basic(user, password)) => builder.basic_auth(user, Some(password)),
            None => builder,
        };
        if request.from > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.from));
        }
        tracing::trace!(object = %request.object, from = request.from, "request");
        match timeout(deadlines.connect + deadlines.response, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(RegistryError::transport(request.object, source, deadlines)),
            Err(_) => Err(RegistryError::Deadline {
                object: request.object.clone(),
                awaited: "a response",
                after: deadlines.connect + deadlines.response,
            }),
        }
    }

    /// Whether a response comes from the registry itself, not from a server that it redirected to.
    ///
    /// Only the registry may receive the credentials.
    fn is_registry(&self, name: &Name, response: &Response) -> Result<bool, RegistryError> {
        let url = response.url();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let actual = format!("{}{port}", url.host_str().unwrap_or_default());
        let api_host = api_host(name)?;
        // The URL omits the default port of its scheme.
        let default_port = if url.scheme() == "http" { ":80" } else { ":443" };
        let expected = api_host.strip_suffix(default_port).unwrap_or(&api_host);
        Ok(actual.eq_ignore_ascii_case(expected))
    }

    /// Answers a challenge with a token or the password. Returns `None` if the user has no credentials and the registry has no
    /// token server.
    ///
    /// If another task has replaced the `rejected` authorization already, returns the new one.
    async fn authorize(
        &self,
        object: &RemoteObject,
        rejected: Option<Authorization>,
        challenge: Option<AuthChallenge>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let name = object.name();
        let mut tokens = self.0.tokens.lock().await;
        let current = tokens.get(name).cloned();
        if current != rejected {
            return Ok(current);
        }
        let deadlines = &self.0.options.deadlines;
        let credentials = (self.0.options.auth.find(name, deadlines.helper).await).map_err(|source| {
            RegistryError::Credentials { object: object.clone(), source: Box::new(source) }
        })?;
        let challenge = match challenge {
            Some(challenge) => Some(challenge),
            None => self.base_challenge(object).await?,
        };
        let authorization = match (challenge, credentials) {
            (_, RegistryAuth::Bearer(token)) => Authorization::Bearer(token),
            (Some(AuthChallenge::Bearer { realm, service }), credentials) => Authorization::Bearer(
                self.fetch_token(object, &realm, service.as_deref(), &credentials).await?,
            ),
            (Some(AuthChallenge::Basic), RegistryAuth::Basic(user, password)) => {
                Authorization::Basic(user, password)
            }
            (Some(AuthChallenge::Basic), RegistryAuth::Anonymous) | (None, _) => return Ok(None),
        };
        tokens.insert(name.clone(), authorization.clone());
        Ok(Some(authorization))
    }

    /// Returns the challenge of `/v2/`, for registries that send none with the refusal of a manifest or blob.
    async fn base_challenge(&self, object: &RemoteObject) -> Result<Option<AuthChallenge>, RegistryError> {
        let (name, deadlines) = (object.name(), &self.0.options.deadlines);
        let clients = self.clients(host(name)?);
        let url = format!("{}://{}/v2/", clients.scheme, api_host(name)?);
        let after = deadlines.connect + deadlines.response;
        let response = timeout(after, clients.http.get(url).send())
            .await
            .map_err(|_| RegistryError::Deadline { object: object.clone(), awaited: "a response", after })?;
        let response = response.map_err(|source| RegistryError::transport(object, source, deadlines))?;
        // Another host, to which the registry redirected, must not choose the token server.
        Ok(if self.is_registry(name, &response)? { AuthChallenge::of(response.headers()) } else { None })
    }

    /// Returns a successful response, and an error for any other.
    async fn check_status(
        &self,
        request: &RegistryRequest<'_>,
        response: Response,
    ) -> Result<Response, RegistryError> {
        let status = response.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(response);
        }
        let seconds =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let message = self.error_message(response).await;
        let (object, code) = (request.object.clone(), status.as_u16());
        Err(match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { object, message },
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { object, message },
            StatusCode::FORBIDDEN => RegistryError::Denied { object, message },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { object, retry_after, message },
            // The download then requests the whole blob.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                RegistryError::Range { object, from: request.from, returned: status.to_string() }
            }
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Server { object, status: code, retry_after, message }
            }
            _ => RegistryError::Status { object, status: code, message },
        })
    }

    /// Returns the message in the body of an error response, cut off at the deadline.
    pub(super) async fn error_message(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(bytes)) = response.chunk().await {
                body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BODY_MAX - body.len())]);
                if body.len() == ERROR_BODY_MAX {
                    break;
                }
            }
        };
        // After the deadline, use the bytes that have arrived.
        let _ = timeout(self.0.options.deadlines.idle, read).await;
        server_message(&body)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.0.options).finish_non_exhaustive()
    }
}

fn host(name: &Name) -> Result<&str, RegistryError> {
    name.host().ok_or_else(|| RegistryError::Local(name.clone()))
}

/// The name as `oci-client` represents it. The tag has no effect on authorization.
fn oci_reference(name: &Name) -> Result<oci_client::Reference, RegistryError> {
    let (host, repository) = (host(name)?.to_owned(), name.repository().to_owned());
    Ok(oci_client::Reference::with_tag(host, repository, "latest".to_owned()))
}

/// The host of the registry's API. For Docker Hub it is not the host in the name.
fn api_host(name: &Name) -> Result<String, RegistryError> {
    Ok(oci_reference(name)?.resolve_registry().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_api_has_another_host() {
        assert_eq!(api_host(&"docker.io/library/a".parse().unwrap()).unwrap(), "index.docker.io");
        assert_eq!(api_host(&"localhost:5000/a".parse().unwrap()).unwrap(), "localhost:5000");
        assert!(matches!(api_host(&"lab/a".parse().unwrap()), Err(RegistryError::Local(_))));
    }

    #[test]
    fn invalid_certificate_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let new =
            || Registry::new(RegistryOptions { ca_files: vec![path.clone()], ..RegistryOptions::default() });
        assert!(matches!(new(), Err(RegistryError::CaFile { .. })));
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(new(), Err(RegistryError::CaFile { .. })));
    }
}
