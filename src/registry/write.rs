//! Sends requests that write to a registry.

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, StatusCode, Url};

use super::authorize::Grant;
use super::endpoint::Endpoint;
use super::exchange::{HttpRequest, Reply, RequestBody};
use super::{Registry, RegistryError, RemoteObject};
use crate::image::Digest;

/// A request to write, or to look up what has been written. Its body is made for each attempt.
pub(super) struct WriteRequest<'a> {
    pub(super) object: &'a RemoteObject,
    pub(super) endpoint: &'a Endpoint,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
}

/// The response to a [`WriteRequest`], and what the request carried.
pub(super) struct WriteReply {
    pub(super) reply: Reply,
    grant: Option<Grant>,
}

impl WriteRequest<'_> {
    fn with(&self, body: RequestBody) -> HttpRequest<'_> {
        HttpRequest {
            method: self.method.clone(),
            headers: self.headers.clone(),
            body,
            ..HttpRequest::get(self.object, self.endpoint, self.url.clone())
        }
    }
}

impl WriteReply {
    pub(super) fn status(&self) -> StatusCode {
        self.reply.status()
    }

    pub(super) fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.reply.response.headers().get(name.into())?.to_str().ok()
    }

    /// Checks the digest that the registry has given to what it received, if it says so.
    pub(super) fn check_digest(&self, object: &RemoteObject, expected: Digest) -> Result<(), RegistryError> {
        let claimed = self.header(HeaderName::from_static("docker-content-digest"));
        match claimed.and_then(|digest| digest.parse::<Digest>().ok()) {
            Some(actual) if actual != expected => {
                Err(RegistryError::Digest { object: object.clone(), expected, actual })
            }
            _ => Ok(()),
        }
    }
}

impl Registry {
    /// Sends a request, and once more if the registry requires other credentials. The credentials for the registry go to no
    /// other server to which it has led.
    pub(super) async fn write(
        &self,
        request: &WriteRequest<'_>,
        body: impl Fn() -> RequestBody,
    ) -> Result<WriteReply, RegistryError> {
        let WriteRequest { object, endpoint, .. } = request;
        if self.url(endpoint, "")?.origin() != request.url.origin() {
            let reply = self.exchange(request.with(body())).await?;
            return Ok(WriteReply { reply, grant: None });
        }
        let used = self.current_grant(object, endpoint).await?;
        let mut first = request.with(body());
        first.authorization = used.as_ref().map(|grant| &grant.authorization);
        let reply = self.exchange(first).await?;
        let Some(granted) = self.other_grant(object, endpoint, used.as_ref(), &reply).await? else {
            return Ok(WriteReply { reply, grant: used });
        };
        let mut second = request.with(body());
        second.authorization = Some(&granted.authorization);
        let reply = self.exchange(second).await?;
        Ok(WriteReply { reply, grant: Some(granted) })
    }

    /// The error for a response that is not a successful one.
    pub(super) async fn write_refusal(&self, object: &RemoteObject, answer: WriteReply) -> RegistryError {
        match self.refusal(object, 0, answer.reply, answer.grant.as_ref()).await {
            RegistryError::Status { object, host, status: 413, message } => {
                RegistryError::TooLarge { object, host, message }
            }
            RegistryError::Status { object, host, status, message } => {
                RegistryError::Refused { object, host, status, message }
            }
            error => error,
        }
    }
}
