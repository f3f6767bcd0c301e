//! What can go wrong between here and a registry.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::image::{Digest, ManifestError, Name, Reference};

use super::{AuthError, Deadlines};

/// What was asked for: every error names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Arc<Asked>);

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Manifest(Reference),
    Blob(Name, Digest),
}

impl Place {
    pub(super) fn manifest(reference: Reference) -> Self {
        Self(Arc::new(Asked::Manifest(reference)))
    }

    pub(super) fn blob(name: &Name, digest: Digest) -> Self {
        Self(Arc::new(Asked::Blob(name.clone(), digest)))
    }

    /// The repository it is in.
    #[must_use]
    pub fn name(&self) -> &Name {
        match &*self.0 {
            Asked::Manifest(reference) => &reference.name,
            Asked::Blob(name, _) => name,
        }
    }

    fn is_manifest(&self) -> bool {
        matches!(*self.0, Asked::Manifest(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Asked::Manifest(reference) => write!(f, "{reference}"),
            Asked::Blob(name, digest) => write!(f, "{name}: blob {digest}"),
        }
    }
}

/// Why something did not come from a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name has no host: the image was loaded from a file.
    #[error("{0} was loaded from a file; there is no registry to ask")]
    Local(Name),
    /// The registry does not have it: an unknown repository, tag or blob.
    #[error("{place}: not found{}", Said(.message))]
    NotFound {
        /// What was asked for.
        place: Place,
        /// What the registry said.
        message: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{place}: not authorized{}", Said(.message))]
    Unauthorized {
        /// What was asked for.
        place: Place,
        /// What the registry or its token server said.
        message: String,
    },
    /// The registry knows who asks and refuses.
    #[error("{place}: access denied{}", Said(.message))]
    Denied {
        /// What was asked for.
        place: Place,
        /// What the registry said.
        message: String,
    },
    /// Too many requests.
    #[error("{place}: the registry limits the rate of requests{}", Said(.message))]
    RateLimited {
        /// What was asked for.
        place: Place,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
        /// What the registry said.
        message: String,
    },
    /// An error on the registry's side.
    #[error("{place}: the server answers {status}{}", Said(.message))]
    Server {
        /// What was asked for.
        place: Place,
        /// The HTTP status, 500 or more.
        status: u16,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
        /// What the server said.
        message: String,
    },
    /// An answer that makes no sense here.
    #[error("{place}: the server answers {status}, which is no answer to this request{}", Said(.message))]
    Status {
        /// What was asked for.
        place: Place,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// Nothing came in time.
    #[error("{place}: no {awaited} within {} s", .after.as_secs_f32())]
    Deadline {
        /// What was asked for.
        place: Place,
        /// What did not come.
        awaited: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// No connection: refused, no such host, no route.
    #[error("{place}: cannot connect")]
    Connect {
        /// What was asked for.
        place: Place,
        /// Why.
        source: reqwest::Error,
    },
    /// TLS could not be agreed on, or the certificate is not trusted.
    #[error("{place}: no secure connection")]
    Tls {
        /// What was asked for.
        place: Place,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection broke, or what came over it was no HTTP.
    #[error("{place}: the connection was lost")]
    Broken {
        /// What was asked for.
        place: Place,
        /// Why.
        source: reqwest::Error,
    },
    /// Redirected too often, or from HTTPS to HTTP.
    #[error("{place}: redirected to where it cannot be followed")]
    Redirect {
        /// What was asked for.
        place: Place,
        /// Why.
        source: reqwest::Error,
    },
    /// The answer is not the manifest or index that it should be, or has nothing for the platform.
    #[error("{place}")]
    Document {
        /// What was asked for.
        place: Place,
        /// What is wrong with it.
        source: Box<ManifestError>,
    },
    /// A web page in place of a blob.
    #[error("{place}: got an HTML page in its place")]
    Html {
        /// What was asked for.
        place: Place,
    },
    /// The bytes are others than asked for.
    #[error("{place}: the content has digest {found}, not {expected}")]
    Digest {
        /// What was asked for.
        place: Place,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The server announces or sends another length than the manifest says.
    #[error("{place}: the server has {} than the {wanted} bytes that the manifest says", Amount(*.got, *.wanted))]
    Length {
        /// What was asked for.
        place: Place,
        /// Length by the manifest.
        wanted: u64,
        /// Length by the server; `None` if it only shows to be more.
        got: Option<u64>,
    },
    /// The body ended before its end, again and again.
    #[error("{place}: ends after {got} of {wanted} bytes")]
    Short {
        /// What was asked for.
        place: Place,
        /// Length by the manifest.
        wanted: u64,
        /// How much came.
        got: u64,
    },
    /// A range other than the one asked for.
    #[error("{place}: asked for the bytes from {from} on, the server answers with `{got}`")]
    Range {
        /// What was asked for.
        place: Place,
        /// The first byte asked for.
        from: u64,
        /// The `Content-Range` that came.
        got: String,
    },
    /// Longer than what fits the purpose.
    #[error("{place}: {size} bytes are more than {limit}")]
    TooLong {
        /// What was asked for.
        place: Place,
        /// Its length.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The credentials for this registry could not be had.
    #[error("{place}: credentials")]
    Credentials {
        /// What was asked for.
        place: Place,
        /// Why.
        source: Box<AuthError>,
    },
    /// The token server could not be spoken to.
    #[error("{place}: token server")]
    Token {
        /// What was asked for.
        place: Place,
        /// Why.
        source: Box<oci_client::errors::OciDistributionError>,
    },
    /// A file with certificate authorities could not be read.
    #[error("certificate file {}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with certificate authorities holds something else, or TLS cannot be set up.
    #[error("TLS cannot be set up")]
    TlsSetup(#[source] reqwest::Error),
}

/// Adds what a server said, if it said something.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

/// Says how much a server has, compared with what it should have.
struct Amount(Option<u64>, u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("more"),
            Some(got) if got > self.1 => write!(f, "{got} bytes, more"),
            Some(got) => write!(f, "{got} bytes, less"),
        }
    }
}

impl RegistryError {
    pub(super) fn document(place: &Place, source: ManifestError) -> Self {
        Self::Document { place: place.clone(), source: Box::new(source) }
    }

    /// Sorts a transport error: TLS, no connection, a deadline, a broken connection.
    pub(super) fn transport(place: &Place, source: reqwest::Error, deadlines: &Deadlines) -> Self {
        let place = place.clone();
        if source.is_redirect() {
            return Self::Redirect { place, source };
        }
        if source.is_connect() && source.is_timeout() {
            return Self::Deadline { place, awaited: "connection", after: deadlines.connect };
        }
        if source.is_timeout() {
            return Self::Deadline { place, awaited: "answer", after: deadlines.response };
        }
        if is_tls(&source) {
            return Self::Tls { place, source };
        }
        if source.is_connect() { Self::Connect { place, source } } else { Self::Broken { place, source } }
    }

    /// What the user may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let host = |place: &Place| place.name().host().unwrap_or_default().to_owned();
        match self {
            Self::Unauthorized { place, .. } | Self::Denied { place, .. } => Some(format!(
                "`docker login {}` (or `podman login`) stores credentials; $DOCKER_CONFIG and $REGISTRY_AUTH_FILE say where they are read",
                host(place)
            )),
            Self::NotFound { place, .. } if place.is_manifest() => Some(
                "check name and tag; a registry may also answer so for a repository that needs a login".to_owned(),
            ),
            Self::RateLimited { place, .. } => {
                Some(format!("wait, or `docker login {}` for a higher limit", host(place)))
            }
            Self::Tls { .. } => Some(
                "if this registry speaks plain HTTP, use --plain-http; if its certificate is your own, trust it on this system"
                    .to_owned(),
            ),
            Self::Connect { place, .. } => Some(format!("is `{}` the registry, and is it running?", host(place))),
            Self::Document { source, .. } if matches!(**source, ManifestError::NoPlatform { .. }) => {
                Some("choose one with --platform".to_owned())
            }
            Self::TlsSetup(_) => Some("install the package ca-certificates".to_owned()),
            Self::Credentials { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// Whether a TLS error is among the causes. It hides inside I/O errors, whose own `source` passes over what they wrap.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_tls(wrapped))
        || error.source().is_some_and(is_tls)
}
