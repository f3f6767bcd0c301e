//! The registry client against servers that misbehave.

mod auth;
mod blobs;
mod hidden;
pub(crate) mod layout;
mod login;
mod manifests;
mod mirrors;
mod push;
mod push_copies;
pub(crate) mod push_server;
pub(crate) mod server;
mod tls;
mod tokens;

use std::time::Duration;

use rcx_imagefs::image::{Descriptor, Digest, Name, Reference, media};
use rcx_imagefs::registry::{AuthFiles, Deadlines, Registry, RegistryError, RegistryOptions};

/// Options with deadlines that are short enough for tests.
fn options() -> RegistryOptions {
    RegistryOptions {
        deadlines: Deadlines {
            connect: Duration::from_millis(200),
            response: Duration::from_millis(300),
            idle: Duration::from_millis(300),
            helper: Duration::from_secs(10),
            backoff: Duration::from_millis(1),
        },
        platform: "linux/amd64".parse().unwrap(),
        auth: AuthFiles::default(),
        certificate_dirs: Vec::new(),
        ..RegistryOptions::default()
    }
}

fn registry() -> Registry {
    Registry::new(options()).unwrap()
}

fn name(address: &str) -> Name {
    Name::new(address, "lab/app").unwrap()
}

fn tagged(address: &str) -> Reference {
    Reference::parse(&format!("{address}/lab/app:1"), None).unwrap()
}

/// Bytes without repetitions.
fn content(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor::new(media::OCI_LAYER, Digest::of(content), u64::try_from(content.len()).unwrap())
}

async fn download(
    registry: &Registry,
    address: &str,
    blob: &Descriptor,
    from: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut download = registry.download(&name(address), blob, from);
    let mut bytes = Vec::new();
    while let Some(chunk) = download.next_chunk().await? {
        assert!(!chunk.is_empty());
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(download.offset(), blob.size);
    Ok(bytes)
}
