//! The network side: what a reference stands for, and the blobs behind it.
//!
//! Everything that arrives is checked against the digest it was asked for, except the bytes of a [`Download`]: those are
//! hashed by whoever stores them. Nothing waits without a deadline, and what is worth trying again is tried again.

mod auth;
mod client;
mod download;
mod error;
mod message;
mod resolve;
mod retry;

use std::path::PathBuf;
use std::time::Duration;

use crate::image::{Manifest, ManifestDigest, Name, Platform};

pub use auth::{AuthError, AuthFiles};
pub use client::Registry;
pub use download::Download;
pub use error::{Place, RegistryError};

/// Which registries are spoken to without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Those on a loopback address (`localhost`, `127.0.0.0/8`, `[::1]`), on any port.
    #[default]
    Loopback,
    /// All.
    Always,
    /// None.
    Never,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the head of a response.
    pub response: Duration,
    /// For 32 KiB of a body (or its end): a body that trickles is one that hangs.
    pub idle: Duration,
    /// For a credential helper.
    pub helper: Duration,
    /// The first pause before another try; each further one is twice as long.
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

/// What a [`Registry`] is made with.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Which registries are spoken to without TLS.
    pub plain_http: PlainHttp,
    /// The platform whose manifest is taken of an index.
    pub platform: Platform,
    /// How long is waited for what.
    pub deadlines: Deadlines,
    /// Certificate authorities (PEM files) to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Where credentials are looked up.
    pub auth: AuthFiles,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: PlainHttp::default(),
            platform: Platform::host(),
            deadlines: Deadlines::default(),
            ca_files: Vec::new(),
            auth: AuthFiles::of_user(),
        }
    }
}

/// What a reference stands for, with the bytes as the registry has them; all digests are checked.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Registry and repository.
    pub name: Name,
    /// Digest of the manifest: for an index, of the one for the platform.
    pub manifest_digest: ManifestDigest,
    /// The manifest read.
    pub manifest: Manifest,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The index that the reference led to, where it did.
    pub index: Option<ResolvedIndex>,
}

/// The index that a reference stands for.
#[derive(Debug, Clone)]
pub struct ResolvedIndex {
    /// Digest of the index.
    pub digest: ManifestDigest,
    /// The index's bytes.
    pub bytes: Vec<u8>,
    /// The index's media type.
    pub media_type: String,
}
