//! Sends one request to a registry: credentials and status.

use std::fmt;
use std::sync::Arc;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderName, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::authorize::{Grant, Grants};
use super::challenge::AuthChallenges;
use super::endpoint::Endpoint;
use super::exchange::{Authorization, HttpRequest, Reply};
use super::http::HttpClients;
use super::message::server_message;
use super::mirrors::MirrorStates;
use super::retry::requested_pause;
use super::{RegistryError, RegistryOptions, RemoteObject};

/// Maximum number of bytes that are read from the body of an error response.
const ERROR_BODY_MAX: usize = 16 << 10;

/// A client for all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry(Arc<SharedClient>);

struct SharedClient {
    options: RegistryOptions,
    http: HttpClients,
    grants: Grants,
    mirrors: MirrorStates,
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
    /// [`RegistryError::TlsSetup`].
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let http = HttpClients::new(&options)?;
        let (grants, mirrors) = (Grants::default(), MirrorStates::default());
        Ok(Self(Arc::new(SharedClient { options, http, grants, mirrors })))
    }

    /// The options that were passed to [`Registry::new`].
    #[must_use]
    pub fn options(&self) -> &RegistryOptions {
        &self.0.options
    }

    pub(super) fn http(&self) -> &HttpClients {
        &self.0.http
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.0.grants
    }

    pub(super) fn mirror_states(&self) -> &MirrorStates {
        &self.0.mirrors
    }

    /// Sends a request. If the registry requires other credentials, obtains them and sends the request once more.
    ///
    /// Returns only successful responses. The caller reads the body.
    pub(super) async fn request(
        &self,
        endpoint: &Endpoint,
        request: &RegistryRequest<'_>,
    ) -> Result<Response, RegistryError> {
        let used = self.current_grant(request.object, endpoint).await?;
        let reply = self.send(endpoint, request, used.as_ref()).await?;
        let Some(granted) = self.other_grant(request.object, endpoint, used.as_ref(), &reply).await? else {
            return self.check_status(request, reply, used.as_ref()).await;
        };
        let reply = self.send(endpoint, request, Some(&granted)).await?;
        self.check_status(request, reply, Some(&granted)).await
    }

    /// Returns the credentials with which a request should be sent once more; `None` if its response is final.
    ///
    /// `used` is what the request carried.
    pub(super) async fn other_grant(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        used: Option<&Grant>,
        reply: &Reply,
    ) -> Result<Option<Grant>, RegistryError> {
        let has_login = used.is_some_and(|grant| grant.login.is_some());
        match reply.status() {
            _ if !reply.from_origin => Ok(None),
            StatusCode::UNAUTHORIZED => {
                let challenges = AuthChallenges::of(reply.response.headers());
                self.authorize(object, endpoint, used, challenges).await
            }
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN if !has_login => {
                Ok(self.authorize_hidden(object, endpoint).await)
            }
            _ => Ok(None),
        }
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: &RegistryRequest<'_>,
        grant: Option<&Grant>,
    ) -> Result<Reply, RegistryError> {
        let mut http = HttpRequest::get(request.object, endpoint, self.url(endpoint, &request.path)?);
        let mut header = |name: HeaderName, value: &str| {
            let value = HeaderValue::from_str(value).expect("media types and numbers are valid in a header");
            http.headers.insert(name, value);
        };
        header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = &request.accept {
            header(ACCEPT, accept);
        }
        if request.from > 0 {
            header(RANGE, &format!("bytes={}-", request.from));
        }
        http.authorization = grant.map(|grant| &grant.authorization);
        self.exchange(http).await
    }

    /// Returns a successful response, and an error for any other. `grant` is what the request carried.
    pub(super) async fn check_status(
        &self,
        request: &RegistryRequest<'_>,
        reply: Reply,
        grant: Option<&Grant>,
    ) -> Result<Response, RegistryError> {
        match reply.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(reply.response),
            _ => Err(self.refusal(request.object, request.from, reply, grant).await),
        }
    }

    /// The error for a response that is not a successful one. `from` is the first requested byte.
    pub(super) async fn refusal(
        &self,
        object: &RemoteObject,
        from: u64,
        reply: Reply,
        grant: Option<&Grant>,
    ) -> RegistryError {
        let (status, host) = (reply.status(), reply.host());
        let retry_after = requested_pause(reply.response.headers());
        let message = self.error_message(reply.response).await;
        let (object, code) = (object.clone(), status.as_u16());
        match (status, grant) {
            (StatusCode::NOT_FOUND, _) => RegistryError::NotFound { object, message },
            // A token that a token server has made of a login lacks a right; the login itself is right.
            (
                StatusCode::UNAUTHORIZED,
                Some(Grant { login: Some(login), authorization: Authorization::Basic(..), .. }),
            ) if reply.from_origin => {
                RegistryError::LoginRefused { object, host, login: login.to_string(), message }
            }
            (StatusCode::UNAUTHORIZED, _) => RegistryError::Unauthorized { object, message },
            (StatusCode::FORBIDDEN, _) => RegistryError::Denied { object, message },
            (StatusCode::TOO_MANY_REQUESTS, _) => {
                RegistryError::RateLimited { object, host, retry_after, message }
            }
            // The download then requests the whole blob.
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
                RegistryError::Range { object, from, returned: status.to_string() }
            }
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Server { object, host, status: code, retry_after, message }
            }
            _ => RegistryError::Status { object, host, status: code, message },
        }
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
