//! Errors from requests to a registry. Each names the requested manifest or blob.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::failure::{FailureKind, describe};
use super::{AuthError, Deadlines, RemoteObject};
use crate::error::chain_text;
use crate::image::{Digest, ManifestError, Name};

/// A request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name has no registry: the image was loaded from a file.
    #[error("{0} was loaded from a file and has no registry")]
    Local(Name),
    /// The registry does not have the repository, tag or blob.
    #[error("{object}: not found{}", ServerMessage(.message))]
    NotFound {
        /// The requested object.
        object: RemoteObject,
        /// The message of the registry.
        message: String,
    },
    /// The registry requires credentials, or rejected the credentials in the request.
    #[error("{object}: not authorized{}", ServerMessage(.message))]
    Unauthorized {
        /// The requested object.
        object: RemoteObject,
        /// The message of the registry or its token server.
        message: String,
    },
    /// The user has no access to the object.
    #[error("{object}: access denied{}", ServerMessage(.message))]
    Denied {
        /// The requested object.
        object: RemoteObject,
        /// The message of the registry.
        message: String,
    },
    /// The user has sent too many requests.
    #[error("{object}: {host} limits the rate of requests{}", ServerMessage(.message))]
    RateLimited {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The pause that the registry requests.
        retry_after: Option<Duration>,
        /// The message of the registry.
        message: String,
    },
    /// The registry or its token server failed.
    #[error("{object}: {host} failed with HTTP status {status}{}", ServerMessage(.message))]
    Server {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The HTTP status: 500 or more, or 408.
        status: u16,
        /// The pause that the registry requests.
        retry_after: Option<Duration>,
        /// The message of the registry.
        message: String,
    },
    /// The registry returned a status that the protocol does not provide for this request.
    #[error("{object}: {host} returned the unexpected HTTP status {status}{}", ServerMessage(.message))]
    Status {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The message of the registry.
        message: String,
    },
    /// The registry or its token server refuses the login of the user.
    #[error("{object}: {host} refuses {login}{}", ServerMessage(.message))]
    LoginRefused {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The user name, and where the login is stored.
        login: String,
        /// The message of the server.
        message: String,
    },
    /// The registry accepts no login of this kind.
    #[error("{object}: cannot use {login}: {reason}")]
    LoginUnusable {
        /// The requested object.
        object: RemoteObject,
        /// The kind of the login, and where it is stored.
        login: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The registry requires a kind of authentication that is not supported.
    #[error("{object}: {host} requires authentication by {schemes}, which is not supported")]
    Scheme {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The names of the schemes.
        schemes: String,
    },
    /// A deadline passed.
    #[error("{host}: timed out after {} s waiting for {awaited}", .after.as_secs_f32())]
    Deadline {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The part of the exchange that did not arrive in time, with its article.
        awaited: &'static str,
        /// The length of the wait.
        after: Duration,
    },
    /// No connection was made: refused, no such host, or no route.
    #[error("{host}: {reason}")]
    Connect {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The cause.
        reason: String,
    },
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("{host}: {reason}")]
    Tls {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The cause.
        reason: String,
    },
    /// The connection broke, or the server did not send valid HTTP.
    #[error("{host}: {reason}")]
    Broken {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The cause.
        reason: String,
    },
    /// There were too many redirects, or a redirect from HTTPS to HTTP.
    #[error("{object}: {host} redirects {reason}")]
    Redirect {
        /// The requested object.
        object: RemoteObject,
        /// The server.
        host: String,
        /// Where to, or how often.
        reason: String,
    },
    /// The address of a registry is not valid.
    #[error("`{url}` is not a valid address: {reason}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The response is not a valid manifest or index, or the index has no manifest for the platform.
    #[error("{object}")]
    Document {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: Box<ManifestError>,
    },
    /// The server sent an HTML page instead of a blob.
    #[error("{object}: the server sent an HTML page instead of the blob")]
    Html {
        /// The requested object.
        object: RemoteObject,
    },
    /// The content has the wrong digest.
    #[error("{object}: the content has digest {actual}, expected {expected}")]
    Digest {
        /// The requested object.
        object: RemoteObject,
        /// The expected digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// The size of the content differs from the size in the manifest.
    #[error("{object}: the server has {} bytes, but the manifest declares {expected}", ServerSize(*.actual, *.expected))]
    Length {
        /// The requested object.
        object: RemoteObject,
        /// The size in the manifest, in bytes.
        expected: u64,
        /// The size on the server, in bytes; `None` if it is only known to be larger.
        actual: Option<u64>,
    },
    /// The server repeatedly closed the connection before the last byte.
    #[error("{object}: the download ends after {received} of {expected} bytes")]
    Short {
        /// The requested object.
        object: RemoteObject,
        /// The size in the manifest, in bytes.
        expected: u64,
        /// The bytes received.
        received: u64,
    },
    /// The server sent another range than the requested one.
    #[error("{object}: requested the bytes from offset {from}, but the server returned `{returned}`")]
    Range {
        /// The requested object.
        object: RemoteObject,
        /// The first requested byte.
        from: u64,
        /// The `Content-Range` header, or the HTTP status if the server rejected the range.
        returned: String,
    },
    /// The object exceeds the size limit for its kind.
    #[error("{object}: the content has {size} bytes, more than the limit of {limit}")]
    TooLong {
        /// The requested object.
        object: RemoteObject,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry does not have the repository to which a blob should be written, and does not create it.
    #[error("{name}: the registry does not have this repository{}", ServerMessage(.message))]
    NoRepository {
        /// The repository.
        name: Name,
        /// The message of the registry.
        message: String,
    },
    /// The registry accepts no such content, or no content at all.
    #[error("{object}: {host} refuses it with HTTP status {status}{}", ServerMessage(.message))]
    Refused {
        /// What was sent.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The message of the registry.
        message: String,
    },
    /// The content is larger than the registry, or a proxy before it, accepts in one request.
    #[error("{object}: {host} refuses it as too large (HTTP status 413){}", ServerMessage(.message))]
    TooLarge {
        /// What was sent.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The message of the registry.
        message: String,
    },
    /// The registry no longer knows an upload that has begun.
    #[error("{object}: {host} has lost the upload{}", ServerMessage(.message))]
    UploadLost {
        /// What was sent.
        object: RemoteObject,
        /// The server.
        host: String,
        /// The message of the registry.
        message: String,
    },
    /// A layer may not be sent to another registry.
    #[error("{name}: layer {layer} may not be distributed: {reason}")]
    NotDistributable {
        /// The image that would be pushed.
        name: Name,
        /// The layer.
        layer: Digest,
        /// How the layer says so.
        reason: String,
    },
    /// A blob of the store cannot be read.
    #[error("cannot read blob {blob}")]
    Read {
        /// The blob.
        blob: Digest,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A blob of the store is damaged.
    #[error("blob {blob} is damaged: its content has digest {actual}")]
    Damaged {
        /// The blob.
        blob: Digest,
        /// The digest of its content.
        actual: Digest,
    },
    /// The stored credentials for this registry cannot be used.
    #[error("{object}: cannot get the credentials for the registry")]
    Credentials {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: Box<AuthError>,
    },
    /// The token server returned an error or an invalid response.
    #[error("{object}: cannot get a token from the token server: {reason}")]
    Token {
        /// The requested object.
        object: RemoteObject,
        /// What is wrong with the server or its response.
        reason: String,
    },
    /// A certificate for a host cannot be used.
    #[error("cannot use {}: {reason}", .path.display())]
    Certificate {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS client cannot be set up.
    #[error("cannot set up TLS")]
    TlsSetup(#[source] reqwest::Error),
}

/// Displays the message of a server in parentheses, or nothing if it is empty.
struct ServerMessage<'a>(&'a str);

impl fmt::Display for ServerMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

/// Displays the size of an object on the server, or `more than` the expected size if it is not known.
struct ServerSize(Option<u64>, u64);

impl fmt::Display for ServerSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(size) => write!(f, "{size}"),
            None => write!(f, "more than {}", self.1),
        }
    }
}

impl RegistryError {
    pub(super) fn document(object: &RemoteObject, source: ManifestError) -> Self {
        Self::Document { object: object.clone(), source: Box::new(source) }
    }

    /// Classifies an error of the HTTP client. Its own text goes to the log only: it repeats itself and names no cause first.
    pub(super) fn transport(
        object: &RemoteObject,
        host: &str,
        source: &reqwest::Error,
        deadlines: &Deadlines,
    ) -> Self {
        tracing::debug!("{host}: {}", chain_text(source));
        if source.is_timeout() {
            let (awaited, after) = match source.is_connect() {
                true => ("a connection", deadlines.connect),
                false => ("a response", deadlines.response),
            };
            return Self::deadline(object, host, awaited, after);
        }
        let (object, host) = (object.clone(), host.to_owned());
        match describe(source) {
            (FailureKind::Connect, reason) => Self::Connect { object, host, reason },
            (FailureKind::Tls, reason) => Self::Tls { object, host, reason },
            (FailureKind::Broken, reason) => Self::Broken { object, host, reason },
        }
    }

    pub(super) fn deadline(
        object: &RemoteObject,
        host: &str,
        awaited: &'static str,
        after: Duration,
    ) -> Self {
        Self::Deadline { object: object.clone(), host: host.to_owned(), awaited, after }
    }
}
