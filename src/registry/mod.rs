//! The registry client: resolves references, downloads blobs, and pushes images.
//!
//! All content is checked against its digest, except the bytes of a [`Download`]: the caller hashes those while it stores
//! them. Each wait has a deadline, and transient errors are retried.

mod advice;
mod artifact;
mod auth;
mod authorize;
mod blob_chunks;
mod certificates;
mod challenge;
mod client;
mod copy;
mod download;
mod endpoint;
mod error;
mod exchange;
mod failure;
mod http;
mod login;
mod message;
mod mirrors;
mod object;
mod outgoing;
mod push;
mod resolve;
mod retry;
mod tags;
mod token;
mod upload;
mod upload_body;
mod upload_session;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::image::{Manifest, ManifestDigest, Name, Platform};

pub use artifact::{ArtifactDocument, RemoteArtifact};
pub use auth::{AuthError, AuthFiles, add_login, remove_all_logins, remove_login};
pub use client::Registry;
pub use download::Download;
pub use endpoint::Mirror;
pub use error::RegistryError;
use http::HostKind;
pub use login::LoginCheck;
pub use object::RemoteObject;
pub use outgoing::{
    BlobDelivery, BlobSource, DeliveredBlob, OutgoingBlob, OutgoingImage, OutgoingManifest, PushEvent,
    PushProgress,
};

/// The registries that are accessed over plain HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Registries on a loopback address (`localhost`, `127.0.0.0/8`, `[::1]`), on any port, unless there are certificates for them.
    #[default]
    Loopback,
    /// These hosts (`HOST` or `HOST:PORT`), and those on a loopback address.
    Hosts(Vec<String>),
    /// All registries.
    Always,
    /// No registry.
    Never,
}

impl PlainHttp {
    /// The scheme of the URLs of a registry.
    fn scheme(&self, host: &str) -> &'static str {
        let is_loopback = HostKind::of(host) == HostKind::Loopback;
        let is_plain = match self {
            Self::Loopback => is_loopback,
            Self::Hosts(hosts) => is_loopback || hosts.iter().any(|plain| plain == host),
            Self::Always => true,
            Self::Never => false,
        };
        if is_plain { "http" } else { "https" }
    }
}

/// The longest waits of the client.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For a connection, including the TLS handshake.
    pub connect: Duration,
    /// For the headers of a response.
    pub response: Duration,
    /// For each 32 KiB of a body, or its end. A body that arrives more slowly counts as stuck.
    pub idle: Duration,
    /// For the output of a credential helper.
    pub helper: Duration,
    /// The pause before the first retry. It doubles with each further retry.
    pub backoff: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            helper: Duration::from_secs(10),
            backoff: Duration::from_millis(250),
        }
    }
}

/// The options of a [`Registry`].
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// The registries that are accessed over plain HTTP.
    pub plain_http: PlainHttp,
    /// The platform whose manifest is chosen from an index.
    pub platform: Platform,
    /// The longest waits.
    pub deadlines: Deadlines,
    /// Directories with certificates for each host (`certs.d`), in order of precedence.
    pub certificate_dirs: Vec<PathBuf>,
    /// The files with logins.
    pub auth: AuthFiles,
    /// The mirrors of registries, by the host of the registry.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: PlainHttp::default(),
            platform: Platform::host(),
            deadlines: Deadlines::default(),
            certificate_dirs: certificates::directories_of_user(),
            auth: AuthFiles::of_user(),
            mirrors: BTreeMap::new(),
        }
    }
}

/// The manifest that a reference resolves to. All digests are checked.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The registry and the repository.
    pub name: Name,
    /// Digest of the manifest; if the reference names an index, of the manifest for the platform.
    pub manifest_digest: ManifestDigest,
    /// The parsed manifest.
    pub manifest: Manifest,
    /// The manifest's bytes, as the registry sent them.
    pub manifest_bytes: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The index that the reference names, if it does not name a manifest.
    pub index: Option<ResolvedIndex>,
}

/// The index that a reference resolves to.
#[derive(Debug, Clone)]
pub struct ResolvedIndex {
    /// Digest of the index.
    pub digest: ManifestDigest,
    /// The index's bytes, as the registry sent them.
    pub bytes: Vec<u8>,
    /// The index's media type.
    pub media_type: String,
}
