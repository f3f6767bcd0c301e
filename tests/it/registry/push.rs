//! Pushes: whatever fails on the way, each byte is sent once if the registry kept it, and the tag is set last or not at all.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcx_imagefs::error::{ErrorCode, chain_text};
use rcx_imagefs::image::{Descriptor, Digest, Manifest, ManifestDigest, Name, media};
use rcx_imagefs::registry::{
    AuthFiles, BlobDelivery, BlobSource, DeliveredBlob, OutgoingBlob, OutgoingImage, OutgoingManifest,
    PushEvent, PushProgress, Registry, RegistryError, RegistryOptions,
};

use super::auth::with_password;
use super::push_server::{PushServer, error};
use super::server::{Answer, Server};
use super::{content, name, options};

/// The size of a chunk of an upload.
const CHUNK: usize = 8 << 20;

pub(super) fn patient() -> RegistryOptions {
    let mut options = options();
    options.deadlines.response = Duration::from_secs(20);
    options
}

fn registry() -> Registry {
    Registry::new(patient()).unwrap()
}

/// A blob in a file.
fn stored(media_type: &str, bytes: &[u8]) -> OutgoingBlob {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    OutgoingBlob {
        descriptor: Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64),
        source: BlobSource::File(Arc::new(file)),
        mount_from: None,
    }
}

/// An image with this layer, for `lab/app:1`.
fn image(address: &str, layer: &[u8]) -> OutgoingImage {
    let config = stored(media::OCI_CONFIG, br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#);
    let layer = stored(media::OCI_LAYER, layer);
    let manifest = Manifest::new(config.descriptor.clone(), vec![layer.descriptor.clone()]).unwrap();
    let bytes = manifest.to_bytes();
    OutgoingImage {
        name: name(address),
        tag: Some("1".parse().unwrap()),
        blobs: vec![config, layer],
        manifests: Vec::new(),
        top: OutgoingManifest {
            digest: ManifestDigest::new(Digest::of(&bytes)),
            media_type: manifest.media_type().to_owned(),
            bytes: bytes.into(),
        },
    }
}

async fn push(registry: &Registry, image: OutgoingImage) -> Result<Vec<DeliveredBlob>, RegistryError> {
    registry.push(image, &PushProgress::new(|_| ())).await
}

fn deliveries(blobs: &[DeliveredBlob]) -> Vec<BlobDelivery> {
    blobs.iter().map(|blob| blob.delivery).collect()
}

/// Whether the registry has the blob, and the tag.
fn has_layer_and_tag(server: &PushServer, layer: &[u8]) -> (bool, bool) {
    let key = |reference: &str| ("lab/app".to_owned(), reference.to_owned());
    let digest = Digest::of(layer).to_string();
    server.with(|content| {
        let blob = content.blobs.get(&key(&digest)).map(Vec::as_slice);
        (blob == Some(layer), content.manifests.contains_key(&key("1")))
    })
}

#[tokio::test]
async fn large_blob_is_sent_in_chunks_and_the_tag_last() {
    let server = PushServer::start().await;
    let layer = content(2 * CHUNK + 5);
    let image = image(server.address(), &layer);
    let digest = image.top.digest.to_string();
    let delivered = push(&registry(), image).await.unwrap();
    assert_eq!(deliveries(&delivered), [BlobDelivery::Sent; 2]);
    assert_eq!(has_layer_and_tag(&server, &layer), (true, true));
    assert_eq!(server.count("PATCH", ""), 3, "the small configuration needs no chunk");
    let requests = server.server.requests();
    let last: Vec<_> = requests[requests.len() - 2..].iter().map(|one| one.path()).collect();
    assert_eq!(last, [format!("/v2/lab/app/manifests/{digest}"), "/v2/lab/app/manifests/1".to_owned()]);
    assert_eq!(requests.last().unwrap().header("content-type"), Some(media::OCI_MANIFEST));
}

#[tokio::test]
async fn blob_that_the_registry_has_is_not_sent() {
    let server = PushServer::start().await;
    let layer = content(CHUNK + 1);
    push(&registry(), image(server.address(), &layer)).await.unwrap();
    let received = server.with(|content| content.received);
    let delivered = push(&registry(), image(server.address(), &layer)).await.unwrap();
    assert_eq!(deliveries(&delivered), [BlobDelivery::Present; 2]);
    assert_eq!(server.with(|content| content.received), received);
}

#[tokio::test]
async fn after_a_broken_connection_only_the_rest_is_sent() {
    let cuts = AtomicUsize::new(0);
    let server = PushServer::start_cutting(
        move |request| {
            let is_second =
                request.header("content-range").is_some_and(|range| range.starts_with("8388608-"));
            (is_second && cuts.fetch_add(1, Ordering::SeqCst) == 0).then_some(3_000_000)
        },
        |_, _| None,
    )
    .await;
    let layer = content(3 * CHUNK);
    let shown = Arc::new(std::sync::Mutex::new(Vec::new()));
    let events = Arc::clone(&shown);
    let progress = PushProgress::new(move |event| {
        if let PushEvent::Bytes { total, .. } = event {
            events.lock().unwrap().push(total);
        }
    });
    let image = image(server.address(), &layer);
    let all = image.size();
    registry().push(image, &progress).await.unwrap();
    assert_eq!(has_layer_and_tag(&server, &layer), (true, true));
    assert_eq!(server.with(|content| content.received as u64), all, "no byte was received twice");
    assert_eq!(server.count("GET", "/uploads/"), 1);
    let ranges: Vec<_> = server.server.requests();
    let ranges: Vec<_> = ranges.iter().filter_map(|one| one.header("content-range")).collect();
    assert_eq!(ranges[2], "11388608-16777215");
    assert_eq!(shown.lock().unwrap().iter().max(), Some(&(layer.len() as u64)));
}

#[tokio::test]
async fn upload_that_the_registry_has_lost_begins_again() {
    let server = PushServer::start_with(|request, before| match (request.method(), before) {
        ("PATCH", 1) => Some(Answer::closed()),
        ("GET", 0) if request.path().contains("/uploads/") => Some(error(404, "BLOB_UPLOAD_UNKNOWN")),
        _ => None,
    })
    .await;
    let layer = content(CHUNK + 100);
    let delivered = push(&registry(), image(server.address(), &layer)).await.unwrap();
    assert_eq!(deliveries(&delivered), [BlobDelivery::Sent; 2]);
    assert_eq!(has_layer_and_tag(&server, &layer), (true, true));

    let server = PushServer::start_with(|request, _| {
        (request.method() == "PATCH").then(|| error(404, "BLOB_UPLOAD_UNKNOWN"))
    })
    .await;
    let error = push(&registry(), image(server.address(), &layer)).await.unwrap_err();
    assert!(error.to_string().contains("has lost the upload (BLOB_UPLOAD_UNKNOWN: it says so)"), "{error}");
    assert_eq!(server.count("PATCH", ""), 6, "the number of attempts is bounded");
    assert_eq!(has_layer_and_tag(&server, &layer), (false, false));
}

#[tokio::test]
async fn registry_that_takes_no_chunks_gets_the_blob_in_one_request() {
    let layer = content(2 * CHUNK + 1);
    for refusal in [405, 501, 404] {
        let server = PushServer::start_with(move |request, _| {
            (request.method() == "PATCH").then(|| error(refusal, "UNSUPPORTED"))
        })
        .await;
        push(&registry(), image(server.address(), &layer)).await.unwrap();
        assert_eq!(has_layer_and_tag(&server, &layer), (true, true), "{refusal}");
        assert_eq!(server.count("PATCH", ""), 1, "{refusal}");
    }
    // One that wants chunks of a gigabyte.
    let server = PushServer::start_with(|request, _| {
        let headers =
            [("Location", "/v2/lab/app/blobs/uploads/big?number=0"), ("OCI-Chunk-Min-Length", "1073741824")];
        (request.method() == "POST").then(|| Answer::new(202, &headers, b""))
    })
    .await;
    assert!(push(&registry(), image(server.address(), &layer)).await.is_err());
    assert!(server.count("PATCH", "") == 0 && server.count("PUT", "/big?") > 0);
}

#[tokio::test]
async fn lost_answer_to_the_last_request_does_not_send_the_blob_again() {
    let layer = content(CHUNK + 1);
    let digest = Digest::of(&layer).to_string();
    let stored = Arc::new(AtomicUsize::new(0));
    let heads = Arc::clone(&stored);
    let server = PushServer::start_with(move |request, _| {
        let is_last = request.method() == "PUT"
            && request.path().contains("/uploads/")
            && request.header("content-length") == Some("0");
        if is_last {
            heads.store(1, Ordering::SeqCst);
            return Some(Answer::closed());
        }
        let is_done = heads.load(Ordering::SeqCst) == 1;
        match request.method() {
            "GET" if is_done && request.path().contains("/uploads/") => {
                Some(error(404, "BLOB_UPLOAD_UNKNOWN"))
            }
            "HEAD" if is_done && request.path().ends_with(&digest) => Some(Answer::new(200, &[], b"")),
            "PUT" if request.path().contains("/manifests/") => Some(Answer::new(201, &[], b"")),
            _ => None,
        }
    })
    .await;
    let delivered = push(&registry(), image(server.address(), &layer)).await.unwrap();
    assert_eq!(deliveries(&delivered), [BlobDelivery::Sent; 2]);
    assert_eq!(server.count("PATCH", ""), 2);
    assert_eq!(stored.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn content_that_is_too_large_is_reported_with_the_limit_to_raise() {
    let server = PushServer::start_with(|request, _| {
        (request.method() == "PATCH").then(|| Answer::new(413, &[], b"<html>Request Entity Too Large"))
    })
    .await;
    let layer = content(CHUNK + 1);
    let error = push(&registry(), image(server.address(), &layer)).await.unwrap_err();
    let expected = format!(
        "{}/lab/app: blob {}: {} refuses it as too large (HTTP status 413) (an HTML page)",
        server.address(),
        Digest::of(&layer),
        server.address()
    );
    assert_eq!(chain_text(&error), expected);
    assert_eq!(error.code(), ErrorCode::Registry);
    assert!(error.hint().unwrap().contains("client_max_body_size"));
    assert_eq!(has_layer_and_tag(&server, &layer), (false, false));
}

#[tokio::test]
async fn token_that_ends_within_an_upload_is_renewed() {
    let tokens = AtomicUsize::new(0);
    let server = PushServer::start_with(move |request, before| {
        let host = request.header("host").unwrap();
        if request.path().starts_with("/token") {
            let token = format!(r#"{{"token":"t{}"}}"#, tokens.fetch_add(1, Ordering::SeqCst));
            return Some(Answer::new(200, &[], token.as_bytes()));
        }
        let challenge =
            format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:lab/app:pull""#);
        let refuse = || Some(Answer::new(401, &[("WWW-Authenticate", &challenge)], b""));
        match (request.header("authorization"), request.method(), before) {
            (None, ..) => refuse(),
            (Some("Bearer t0"), "PATCH", 1..) => refuse(),
            _ => None,
        }
    })
    .await;
    let layer = content(3 * CHUNK);
    push(&registry(), image(server.address(), &layer)).await.unwrap();
    assert_eq!(has_layer_and_tag(&server, &layer), (true, true));
    let requests = server.server.requests();
    let asked: Vec<_> = requests.iter().filter(|one| one.path().starts_with("/token")).collect();
    assert_eq!(asked.len(), 2, "one token for the repository, and one more");
    assert!(asked[0].path().contains("scope=repository%3Alab%2Fapp%3Apull%2Cpush"), "{asked:?}");
}

#[tokio::test]
async fn refusals_have_the_message_of_the_registry() {
    let layer = content(10);
    for (method, part, status, code, expected) in [
        (
            "PUT",
            "/manifests/sha",
            400,
            "MANIFEST_INVALID",
            "refuses it with HTTP status 400 (MANIFEST_INVALID: it",
        ),
        (
            "PUT",
            "/uploads/",
            400,
            "DIGEST_INVALID",
            "refuses it with HTTP status 400 (DIGEST_INVALID: it says so)",
        ),
        (
            "POST",
            "/uploads/",
            404,
            "NAME_UNKNOWN",
            "lab/app: the registry does not have this repository (NAME_UNKNOWN",
        ),
        (
            "POST",
            "/uploads/",
            405,
            "UNSUPPORTED",
            "refuses it with HTTP status 405 (UNSUPPORTED: it says so)",
        ),
        ("POST", "/uploads/", 403, "DENIED", "access denied (DENIED: it says so)"),
        ("HEAD", "/blobs/", 401, "UNAUTHORIZED", "not authorized"),
    ] {
        let server = PushServer::start_with(move |request, _| {
            (request.method() == method && request.path().contains(part)).then(|| error(status, code))
        })
        .await;
        let error = push(&registry(), image(server.address(), &layer)).await.unwrap_err();
        let text = chain_text(&error);
        assert!(text.starts_with(&format!("{}/lab/app", server.address())), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(!has_layer_and_tag(&server, &layer).1, "{code}");
    }
}

#[tokio::test]
async fn other_digest_of_the_registry_is_an_error_and_no_tag_is_set() {
    let other = Digest::of(b"other").to_string();
    let server = PushServer::start_with(move |request, _| {
        let is_manifest = request.method() == "PUT" && request.path().contains("/manifests/");
        is_manifest.then(|| Answer::new(201, &[("Docker-Content-Digest", &other)], b""))
    })
    .await;
    let layer = content(10);
    let error = push(&registry(), image(server.address(), &layer)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    assert_eq!(server.count("PUT", "/manifests/"), 1);
}

#[tokio::test]
async fn registry_that_limits_the_rate_is_asked_again_when_it_says() {
    let server = PushServer::start_with(|request, before| {
        (request.method() == "POST" && before == 0).then(|| Answer::new(429, &[("Retry-After", "1")], b""))
    })
    .await;
    let start = Instant::now();
    push(&registry(), image(server.address(), b"x")).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let server = PushServer::start_with(|request, _| {
        (request.method() == "POST").then(|| Answer::new(429, &[("Retry-After", "3600")], b""))
    })
    .await;
    let error = push(&registry(), image(server.address(), b"x")).await.unwrap_err();
    assert!(matches!(error, RegistryError::RateLimited { .. }), "{error}");
}

#[tokio::test]
async fn blob_of_another_repository_is_mounted_and_sent_if_that_fails() {
    let layer = content(CHUNK + 1);
    let with_source = |address: &str| {
        let mut image = image(address, &layer);
        image.blobs[1].mount_from = Some(Name::new(address, "lab/base").unwrap());
        image
    };
    let server = PushServer::start().await;
    server.with(|content| content.add_blob("lab/base", &layer));
    let delivered = push(&registry(), with_source(server.address())).await.unwrap();
    assert_eq!(deliveries(&delivered).iter().filter(|one| **one == BlobDelivery::Mounted).count(), 1);
    assert_eq!((has_layer_and_tag(&server, &layer), server.count("PATCH", "")), ((true, true), 0));

    // The registry does not have it there, and opens an upload; or it refuses to mount.
    for refusal in [None, Some(403), Some(404), Some(405), Some(500)] {
        let server = PushServer::start_with(move |request, _| {
            refusal.filter(|_| request.path().contains("mount=")).map(|status| error(status, "DENIED"))
        })
        .await;
        let delivered = push(&registry(), with_source(server.address())).await.unwrap();
        assert_eq!(deliveries(&delivered), [BlobDelivery::Sent; 2], "{refusal:?}");
        assert_eq!(has_layer_and_tag(&server, &layer), (true, true), "{refusal:?}");
        let uploads = 2 + usize::from(refusal.is_some());
        assert_eq!(server.count("POST", "/uploads/"), uploads, "{refusal:?}");
    }
}

#[tokio::test]
async fn token_to_mount_a_blob_is_for_both_repositories() {
    let server = PushServer::start_with(|request, _| {
        let host = request.header("host").unwrap();
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="s""#);
        match (request.path().starts_with("/token"), request.header("authorization")) {
            (true, _) => Some(Answer::new(200, &[], br#"{"token":"t"}"#)),
            (false, None) => Some(Answer::new(401, &[("WWW-Authenticate", &challenge)], b"")),
            (false, Some(_)) => None,
        }
    })
    .await;
    let layer = content(10);
    server.with(|content| content.add_blob("lab/base", &layer));
    let mut image = image(server.address(), &layer);
    image.blobs[1].mount_from = Some(Name::new(server.address(), "lab/base").unwrap());
    push(&registry(), image).await.unwrap();
    let both = "scope=repository%3Alab%2Fapp%3Apull%2Cpush&scope=repository%3Alab%2Fbase%3Apull";
    assert_eq!(server.count("GET", both), 1);
}

#[tokio::test]
async fn damaged_blob_of_the_store_is_named_and_never_complete_at_the_registry() {
    let server = PushServer::start().await;
    for length in [100, CHUNK + 100] {
        let layer = content(length);
        let mut image = image(server.address(), &layer);
        let mut other = layer.clone();
        other[length - 1] ^= 1;
        image.blobs[1].source = stored(media::OCI_LAYER, &other).source;
        let error = push(&registry(), image).await.unwrap_err();
        let expected =
            format!("blob {} is damaged: its content has digest {}", Digest::of(&layer), Digest::of(&other));
        assert_eq!(chain_text(&error), expected);
        assert_eq!(error.code(), ErrorCode::Damaged);
        assert_eq!(has_layer_and_tag(&server, &layer), (false, false));
        assert!(server.with(|content| content.received) <= CHUNK + 100, "the last chunk was sent");
    }
}

#[tokio::test]
async fn password_goes_to_no_other_server_to_which_an_upload_leads() {
    let other = Server::start(|_, _| Answer::new(201, &[], b"")).await;
    let target = format!("http://{}/store?key=1", other.address);
    let server = PushServer::start_with(move |request, _| {
        if request.header("authorization").is_none() {
            return Some(Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"r\"")], b""));
        }
        match request.method() {
            "POST" => Some(Answer::new(202, &[("Location", &target)], b"")),
            "PUT" => Some(Answer::new(201, &[], b"")),
            _ => None,
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let login: AuthFiles = with_password(&directory, server.address()).auth;
    let registry = Registry::new(RegistryOptions { auth: login, ..patient() }).unwrap();
    push(&registry, image(server.address(), b"hello")).await.unwrap();
    let stored = other.requests();
    assert_eq!(stored.len(), 2);
    for request in stored {
        assert_eq!(request.header("authorization"), None);
        assert!(request.path().starts_with("/store?key=1&digest=sha256%3A"), "{}", request.path());
    }
}

#[tokio::test]
async fn registry_that_is_down_is_named_and_a_later_push_sends_only_what_is_missing() {
    let layer = content(CHUNK + 1);
    let error = push(&registry(), image("127.0.0.1:1", &layer)).await.unwrap_err();
    assert_eq!(chain_text(&error), "127.0.0.1:1: connection refused");
    assert_eq!(error.code(), ErrorCode::Network);

    // It ends after the layer.
    let is_down = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&is_down);
    let server = PushServer::start_with(move |request, _| {
        let is_manifest = request.path().contains("/manifests/");
        (is_manifest && state.load(Ordering::SeqCst) == 1).then(Answer::closed)
    })
    .await;
    let error = push(&registry(), image(server.address(), &layer)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Network, "{error}");
    is_down.store(0, Ordering::SeqCst);
    let delivered = push(&registry(), image(server.address(), &layer)).await.unwrap();
    assert_eq!(deliveries(&delivered), [BlobDelivery::Present; 2]);
    assert_eq!(has_layer_and_tag(&server, &layer), (true, true));
}
