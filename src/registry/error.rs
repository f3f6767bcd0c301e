//! Errors from requests to a registry. Each names the requested manifest or blob.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ErrorCode;
use crate::image::{Digest, ManifestError, Name, Reference};

use super::{AuthError, Deadlines};

/// A manifest or a blob of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteObject(Arc<RemoteObjectKind>);

#[derive(Debug, PartialEq, Eq)]
enum RemoteObjectKind {
    Manifest(Reference),
    Blob(Name, Digest),
}

impl RemoteObject {
    pub(super) fn manifest(reference: Reference) -> Self {
        Self(Arc::new(RemoteObjectKind::Manifest(reference)))
    }

    pub(super) fn blob(name: &Name, digest: Digest) -> Self {
        Self(Arc::new(RemoteObjectKind::Blob(name.clone(), digest)))
    }

    /// The registry and the repository of the object.
    #[must_use]
    pub fn name(&self) -> &Name {
        match &*self.0 {
            RemoteObjectKind::Manifest(reference) => &reference.name,
            RemoteObjectKind::Blob(name, _) => name,
        }
    }

    fn is_manifest(&self) -> bool {
        matches!(*self.0, RemoteObjectKind::Manifest(_))
    }
}

impl fmt::Display for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            RemoteObjectKind::Manifest(reference) => write!(f, "{reference}"),
            RemoteObjectKind::Blob(name, digest) => write!(f, "{name}: blob {digest}"),
        }
    }
}

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
    #[error("{object}: the registry limits the rate of requests{}", ServerMessage(.message))]
    RateLimited {
        /// The requested object.
        object: RemoteObject,
        /// The pause that the registry requests.
        retry_after: Option<Duration>,
        /// The message of the registry.
        message: String,
    },
    /// The registry failed.
    #[error("{object}: the server failed with HTTP status {status}{}", ServerMessage(.message))]
    Server {
        /// The requested object.
        object: RemoteObject,
        /// The HTTP status: 500 or more, or 408.
        status: u16,
        /// The pause that the registry requests.
        retry_after: Option<Duration>,
        /// The message of the registry.
        message: String,
    },
    /// The registry returned a status that the protocol does not provide for this request.
    #[error("{object}: the server returned the unexpected HTTP status {status}{}", ServerMessage(.message))]
    Status {
        /// The requested object.
        object: RemoteObject,
        /// The HTTP status.
        status: u16,
        /// The message of the registry.
        message: String,
    },
    /// A deadline passed.
    #[error("{object}: timed out after {} s waiting for {awaited}", .after.as_secs_f32())]
    Deadline {
        /// The requested object.
        object: RemoteObject,
        /// The part of the exchange that did not arrive in time, with its article.
        awaited: &'static str,
        /// The length of the wait.
        after: Duration,
    },
    /// The connection failed: refused, no such host, or no route.
    #[error("{object}: cannot connect")]
    Connect {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: reqwest::Error,
    },
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("{object}: cannot establish a TLS connection")]
    Tls {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: reqwest::Error,
    },
    /// The connection broke, or the server did not send valid HTTP.
    #[error("{object}: the connection failed")]
    Broken {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: reqwest::Error,
    },
    /// There were too many redirects, or a redirect from HTTPS to HTTP.
    #[error("{object}: cannot follow a redirect of the server")]
    Redirect {
        /// The requested object.
        object: RemoteObject,
        /// The underlying error.
        source: reqwest::Error,
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
    /// A file of certificate authorities cannot be used.
    #[error("cannot use the certificate file {}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
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

    /// Classifies an error of the HTTP client.
    pub(super) fn transport(object: &RemoteObject, source: reqwest::Error, deadlines: &Deadlines) -> Self {
        let object = object.clone();
        if source.is_redirect() {
            return Self::Redirect { object, source };
        }
        if source.is_connect() && source.is_timeout() {
            return Self::Deadline { object, awaited: "a connection", after: deadlines.connect };
        }
        if source.is_timeout() {
            return Self::Deadline { object, awaited: "a response", after: deadlines.response };
        }
        if is_tls(&source) {
            return Self::Tls { object, source };
        }
        if source.is_connect() { Self::Connect { object, source } } else { Self::Broken { object, source } }
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Local(_) => ErrorCode::Reference,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Unauthorized { .. } | Self::Denied { .. } => ErrorCode::Unauthorized,
            Self::RateLimited { .. } => ErrorCode::RateLimited,
            Self::Deadline { .. } => ErrorCode::Timeout,
            Self::Connect { .. } | Self::Tls { .. } | Self::Broken { .. } | Self::Short { .. } => {
                ErrorCode::Network
            }
            Self::Server { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Html { .. }
            | Self::Range { .. }
            | Self::Token { .. } => ErrorCode::Registry,
            Self::Document { source, .. } => source.code(),
            Self::TooLong { .. } => ErrorCode::Document,
            Self::Digest { .. } | Self::Length { .. } => ErrorCode::WrongContent,
            Self::Credentials { source, .. } => source.code(),
            Self::CaFile { .. } | Self::TlsSetup(_) => ErrorCode::Configuration,
        }
    }

    /// What the user can do about this error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let host = |object: &RemoteObject| object.name().host().unwrap_or_default().to_owned();
        match self {
            Self::Unauthorized { object, .. } | Self::Denied { object, .. } => Some(format!(
                "log in with `docker login {}` (or `podman login`); set $DOCKER_CONFIG or $REGISTRY_AUTH_FILE if the credentials are stored elsewhere",
                host(object)
            )),
            Self::NotFound { object, .. } if object.is_manifest() => Some(
                "check the name and the tag; some registries also report this for a repository that requires a login"
                    .to_owned(),
            ),
            Self::RateLimited { object, .. } => {
                Some(format!("try again later, or log in with `docker login {}` for a higher limit", host(object)))
            }
            Self::Tls { .. } => Some(
                "use --plain-http if this registry serves plain HTTP; if it has a self-signed certificate, add the certificate to the system's trusted certificates"
                    .to_owned(),
            ),
            Self::Connect { object, .. } => {
                Some(format!("check that the registry `{}` exists and is running", host(object)))
            }
            Self::Document { source, .. } if matches!(**source, ManifestError::NoPlatform { .. }) => {
                Some("choose a platform with --platform OS/ARCH".to_owned())
            }
            Self::TlsSetup(_) => Some("install the package ca-certificates".to_owned()),
            Self::Credentials { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// Whether an error was caused by a TLS error.
///
/// An I/O error can contain a TLS error that is not in its `source` chain: `io::Error::source` skips the wrapped error.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_tls(wrapped))
        || error.source().is_some_and(is_tls)
}
