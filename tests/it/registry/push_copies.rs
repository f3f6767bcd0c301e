//! Copies between registries: whole indexes, content that is checked on the way, layers that may not be distributed.

use rcx_imagefs::error::{ErrorCode, chain_text};
use rcx_imagefs::image::{Digest, Name, Reference, media};
use rcx_imagefs::registry::{BlobDelivery, DeliveredBlob, PushProgress, Registry, RegistryError};
use serde_json::{Value, json};

use super::push::patient;
use super::push_server::PushServer;
use super::{content, name};

/// Adds a manifest with this layer to a registry. Returns its descriptor.
fn add_manifest(server: &PushServer, layer_type: &str, layer: &[u8], platform: &Value) -> Value {
    server.with(|registry| {
        let config = json!({ "platform": platform }).to_string();
        let part = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": part(media::OCI_CONFIG, config.as_bytes()), "layers": [part(layer_type, layer)],
        })
        .to_string();
        registry.add_blob("lab/src", config.as_bytes());
        registry.add_blob("lab/src", layer);
        let mut descriptor = part(media::OCI_MANIFEST, manifest.as_bytes());
        descriptor["platform"] = platform.clone();
        add_document(registry, media::OCI_MANIFEST, &manifest, None);
        descriptor
    })
}

fn add_document(registry: &mut super::push_server::Content, media_type: &str, text: &str, tag: Option<&str>) {
    let digest = Digest::of(text.as_bytes()).to_string();
    for reference in [Some(digest.as_str()), tag].into_iter().flatten() {
        let key = ("lab/src".to_owned(), reference.to_owned());
        registry.manifests.insert(key, (media_type.to_owned(), text.as_bytes().to_vec()));
    }
}

/// Adds an index as `lab/src:1`: two platforms that share a layer, and an attestation. Returns its digest.
fn add_index(server: &PushServer, shared: &[u8]) -> String {
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let entries = [
        add_manifest(server, media::OCI_LAYER, shared, &platform("amd64")),
        add_manifest(server, media::OCI_LAYER, shared, &platform("arm64")),
        add_manifest(
            server,
            "application/vnd.in-toto+json",
            b"proof",
            &json!({ "os": "unknown", "architecture": "unknown" }),
        ),
    ];
    let index =
        json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries }).to_string();
    server.with(|registry| add_document(registry, media::OCI_INDEX, &index, Some("1")));
    Digest::of(index.as_bytes()).to_string()
}

async fn copy(from: &PushServer, to: &Name, one_platform: bool) -> Result<Vec<DeliveredBlob>, RegistryError> {
    let registry = Registry::new(patient()).unwrap();
    let source = Reference::parse(&format!("{}/lab/src:1", from.address()), None).unwrap();
    let image = registry.collect(&source, to, Some("1".parse().unwrap()), one_platform).await?;
    registry.push(image, &PushProgress::new(|_| ())).await
}

/// The references to manifests of `lab/app`.
fn copied(server: &PushServer) -> Vec<String> {
    server.with(|content| {
        let of_app = content.manifests.keys().filter(|(repository, _)| repository == "lab/app");
        of_app.map(|(_, reference)| reference.clone()).collect()
    })
}

#[tokio::test]
async fn index_is_copied_with_all_that_it_lists_and_each_blob_once() {
    let (from, to) = (PushServer::start().await, PushServer::start().await);
    let shared = content(20 << 20);
    let digest = add_index(&from, &shared);
    let delivered = copy(&from, &name(to.address()), false).await.unwrap();
    assert_eq!(delivered.len(), 5, "the shared layer, the attestation, and three configurations");
    let copied = copied(&to);
    assert_eq!(copied.len(), 5, "three manifests, the index, and the tag: {copied:?}");
    assert!(copied.contains(&digest) && copied.contains(&"1".to_owned()), "{copied:?}");
    to.with(|content| {
        let key = ("lab/app".to_owned(), Digest::of(&shared).to_string());
        assert!(content.blobs[&key] == shared);
    });
    let layer = Digest::of(&shared).to_string();
    assert_eq!(from.count("GET", &layer), 1, "it is read once");
    let again = copy(&from, &name(to.address()), false).await.unwrap();
    assert!(again.iter().all(|blob| blob.delivery == BlobDelivery::Present), "{again:?}");
}

#[tokio::test]
async fn one_platform_of_an_index_is_copied_on_request() {
    let (from, to) = (PushServer::start().await, PushServer::start().await);
    let index = add_index(&from, b"shared");
    let delivered = copy(&from, &name(to.address()), true).await.unwrap();
    assert_eq!(delivered.len(), 2);
    let copied = copied(&to);
    assert!(copied.len() == 2 && !copied.contains(&index), "one manifest, and the tag: {copied:?}");
}

#[tokio::test]
async fn copy_within_a_registry_mounts_the_blobs() {
    let server = PushServer::start().await;
    add_index(&server, b"shared");
    let delivered = copy(&server, &name(server.address()), false).await.unwrap();
    assert!(delivered.iter().all(|blob| blob.delivery == BlobDelivery::Mounted), "{delivered:?}");
    assert_eq!(server.count("GET", "/blobs/"), 0, "no content passes through");
}

#[tokio::test]
async fn wrong_content_of_the_source_is_an_error_and_never_complete_at_the_destination() {
    let (from, to) = (PushServer::start().await, PushServer::start().await);
    let shared = content(20 << 20);
    add_index(&from, &shared);
    let digest = Digest::of(&shared).to_string();
    from.with(|content| {
        let blob = content.blobs.get_mut(&("lab/src".to_owned(), digest.clone())).unwrap();
        *blob.last_mut().unwrap() ^= 1;
    });
    let error = copy(&from, &name(to.address()), false).await.unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    let text = chain_text(&error);
    assert!(text.starts_with(&format!("{}/lab/src: blob {digest}: ", from.address())), "{text}");
    assert_eq!(copied(&to), [""; 0]);
    assert_eq!(to.count("PUT", &digest.replace(':', "%3A")), 0, "the upload was not ended");
}

#[tokio::test]
async fn layer_that_may_not_be_distributed_is_refused_by_its_digest() {
    let (from, to) = (PushServer::start().await, PushServer::start().await);
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let entry = add_manifest(&from, foreign, b"secret", &json!({ "os": "linux", "architecture": "amd64" }));
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    from.with(|registry| add_document(registry, media::OCI_INDEX, &index, Some("1")));
    let error = copy(&from, &name(to.address()), false).await.unwrap_err();
    let expected = format!(
        "{}/lab/src: layer {} may not be distributed: its media type is `{foreign}`",
        from.address(),
        Digest::of(b"secret")
    );
    assert_eq!(chain_text(&error), expected);
    assert_eq!(error.code(), ErrorCode::NotDistributable);
    assert_eq!(to.server.requests().len(), 0);
}
