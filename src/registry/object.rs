//! What a request is for. Errors name it.

use std::fmt;
use std::sync::Arc;

use crate::image::{Digest, Name, Reference};

/// What a request is for: a manifest or a blob of a registry, or a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteObject(Arc<RemoteObjectKind>);

#[derive(Debug, PartialEq, Eq)]
enum RemoteObjectKind {
    Manifest(Reference),
    Blob(Name, Digest),
    /// A login at this host.
    Login(String),
}

impl RemoteObject {
    pub(super) fn manifest(reference: Reference) -> Self {
        Self(Arc::new(RemoteObjectKind::Manifest(reference)))
    }

    pub(super) fn blob(name: &Name, digest: Digest) -> Self {
        Self(Arc::new(RemoteObjectKind::Blob(name.clone(), digest)))
    }

    pub(super) fn login(host: &str) -> Self {
        Self(Arc::new(RemoteObjectKind::Login(host.to_owned())))
    }

    /// The host of the registry; empty for an image without one.
    #[must_use]
    pub fn host(&self) -> &str {
        match &*self.0 {
            RemoteObjectKind::Manifest(Reference { name, .. }) | RemoteObjectKind::Blob(name, _) => {
                name.host().unwrap_or_default()
            }
            RemoteObjectKind::Login(host) => host,
        }
    }

    pub(super) fn is_manifest(&self) -> bool {
        matches!(*self.0, RemoteObjectKind::Manifest(_))
    }
}

impl fmt::Display for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            RemoteObjectKind::Manifest(reference) => write!(f, "{reference}"),
            RemoteObjectKind::Blob(name, digest) => write!(f, "{name}: blob {digest}"),
            RemoteObjectKind::Login(host) => f.write_str(host),
        }
    }
}
