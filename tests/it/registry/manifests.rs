//! Resolving references: the manifest is the requested one, or an error names the reference.

use rcx_imagefs::error::chain_text;
use rcx_imagefs::image::{Digest, ManifestDigest, ManifestError, Reference, media};
use rcx_imagefs::registry::RegistryError;
use serde_json::json;

use super::server::{Answer, Server};
use super::{descriptor, registry, tagged};

pub(super) fn manifest(remark: &str) -> Vec<u8> {
    let mut config = serde_json::to_value(descriptor(b"config")).unwrap();
    config["mediaType"] = json!(media::OCI_CONFIG);
    json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [],
        "annotations": {"remark": remark},
    })
    .to_string()
    .into_bytes()
}

fn entry(manifest: &[u8], platform: &str) -> serde_json::Value {
    let mut entry = serde_json::to_value(descriptor(manifest)).unwrap();
    let (os, architecture) = platform.split_once('/').unwrap();
    entry["mediaType"] = json!(media::OCI_MANIFEST);
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

fn index(entries: &[serde_json::Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries}).to_string().into_bytes()
}

/// The error of resolving a tag when the registry sends this answer.
async fn resolve_to(status: u16, headers: &'static [(&str, &str)], body: Vec<u8>) -> RegistryError {
    let server = Server::start(move |_, _| Answer::new(status, headers, &body)).await;
    let error = registry().resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{}/lab/app:1", server.address)), "{error}");
    error
}

#[tokio::test]
async fn tag_and_digest_lead_to_the_same_manifest() {
    let bytes = manifest("");
    let served = bytes.clone();
    let server = Server::start(move |_, _| {
        let digest = Digest::of(&served).to_string();
        let headers = [("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", &digest)];
        Answer::new(200, &headers, &served)
    })
    .await;
    let by_tag = registry().resolve(&tagged(&server.address)).await.unwrap();
    assert_eq!((by_tag.manifest_digest.digest(), &by_tag.manifest_bytes), (Digest::of(&bytes), &bytes));
    assert_eq!(by_tag.media_type, media::OCI_MANIFEST);
    assert!(by_tag.index.is_none());
    let text = format!("{}/lab/app:1@{}", server.address, Digest::of(&bytes));
    let by_digest = registry().resolve(&Reference::parse(&text, None).unwrap()).await.unwrap();
    assert_eq!(by_digest.manifest_digest, by_tag.manifest_digest);
    let requests = server.requests();
    assert_eq!(requests[0].path(), "/v2/lab/app/manifests/1");
    assert_eq!(requests[1].path(), format!("/v2/lab/app/manifests/{}", Digest::of(&bytes)));
    assert!(requests[0].header("accept").unwrap().contains(media::DOCKER_LIST));
}

#[tokio::test]
async fn index_leads_to_the_platforms_manifest() {
    let (amd64, arm64) = (manifest("amd64"), manifest("arm64"));
    let inner = index(&[entry(&amd64, "linux/amd64")]);
    let mut nested = entry(&inner, "linux/amd64");
    nested["mediaType"] = json!(media::OCI_INDEX);
    let outer = index(&[entry(&arm64, "linux/arm64"), nested]);
    let documents = [outer.clone(), inner, amd64.clone(), arm64];
    let server = Server::start(move |request, _| {
        let wanted = request.path().rsplit('/').next().unwrap();
        let named = documents.iter().find(|bytes| Digest::of(bytes).to_string() == wanted);
        Answer::new(200, &[], named.unwrap_or(&documents[0]))
    })
    .await;
    let resolved = registry().resolve(&tagged(&server.address)).await.unwrap();
    assert_eq!(resolved.manifest_digest, ManifestDigest::new(Digest::of(&amd64)));
    let found = resolved.index.unwrap();
    assert_eq!((found.digest.digest(), found.bytes), (Digest::of(&outer), outer));
}

#[tokio::test]
async fn index_entry_that_contradicts_its_manifest_is_refused() {
    let real = manifest("real");
    let other_length = {
        let mut entry = entry(&real, "linux/amd64");
        entry["size"] = json!(real.len() + 1);
        entry
    };
    let other_type = {
        let mut entry = entry(&real, "linux/amd64");
        entry["mediaType"] = json!(media::OCI_INDEX);
        entry
    };
    let other_bytes = entry(&manifest("wanted"), "linux/amd64");
    for (entry, part) in [
        (other_length, "but the manifest declares"),
        (other_type, "manifest is declared as"),
        (other_bytes, "the content has digest"),
    ] {
        let (outer, real) = (index(&[entry]), real.clone());
        let server = Server::start(move |request, _| {
            let body = if request.path().ends_with("/1") { &outer } else { &real };
            Answer::new(200, &[], body)
        })
        .await;
        let error = registry().resolve(&tagged(&server.address)).await.unwrap_err();
        assert!(chain_text(&error).contains(part), "{}", chain_text(&error));
    }
}

#[tokio::test]
async fn missing_platform_is_reported_with_the_available_ones() {
    let bytes =
        index(&[entry(b"x", "linux/arm64"), entry(b"y", "linux/s390x"), entry(b"z", "unknown/unknown")]);
    let error = resolve_to(200, &[], bytes).await;
    assert!(chain_text(&error).ends_with("no manifest for linux/amd64; available: linux/arm64, linux/s390x"));
    assert!(error.hint().unwrap().contains("--platform"));
}

#[tokio::test]
async fn manifest_with_a_wrong_digest_is_refused() {
    let wrong = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let error = resolve_to(
        200,
        &[(
            "Docker-Content-Digest",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        )],
        manifest(""),
    )
    .await;
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    let server = Server::start(|_, _| Answer::new(200, &[], &manifest(""))).await;
    let reference = Reference::parse(&format!("{}/lab/app@{wrong}", server.address), None).unwrap();
    let error = registry().resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    assert!(error.to_string().contains(wrong), "{error}");
}

#[tokio::test]
async fn answers_that_are_no_manifest_are_reported() {
    let page = resolve_to(200, &[("Content-Type", "text/html")], b"<html>log in</html>".to_vec()).await;
    assert!(chain_text(&page).contains("HTML"), "{}", chain_text(&page));
    let page =
        resolve_to(200, &[("Content-Type", media::OCI_MANIFEST)], b"<html>log in</html>".to_vec()).await;
    assert!(chain_text(&page).contains("HTML"), "{}", chain_text(&page));
    let other = resolve_to(200, &[], br#"{"errors":[{"message":"sorry"}]}"#.to_vec()).await;
    assert!(chain_text(&other).contains("sorry"), "{}", chain_text(&other));
    let contradiction = resolve_to(200, &[("Content-Type", media::OCI_INDEX)], manifest("")).await;
    assert!(
        matches!(&contradiction, RegistryError::Document { source, .. }
            if matches!(**source, ManifestError::Contradiction { .. })),
        "{}",
        chain_text(&contradiction)
    );
    let schema1 = resolve_to(200, &[], br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()).await;
    assert!(chain_text(&schema1).contains("schema version 1"), "{}", chain_text(&schema1));
}

#[tokio::test]
async fn manifest_over_the_length_limit_is_refused() {
    let error = resolve_to(200, &[], vec![b' '; (4 << 20) + 1]).await;
    assert!(matches!(error, RegistryError::TooLong { .. }), "{error}");
    let server = Server::start(|_, _| Answer::raw(200, &[], &vec![b' '; 8 << 20])).await;
    let error = registry().resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLong { .. }), "{error}");
}

#[tokio::test]
async fn every_http_status_has_its_own_error() {
    let body = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"m"}}]}}"#).into_bytes();
    let error = resolve_to(404, &[], body("MANIFEST_UNKNOWN")).await;
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN") && error.hint().is_some(), "{error}");
    let error = resolve_to(403, &[], body("DENIED")).await;
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    let error = resolve_to(401, &[], body("UNAUTHORIZED")).await;
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(error.hint().unwrap().contains("rcx-imagefs login 127.0.0.1:"), "{error}");
    let error = resolve_to(429, &[("Retry-After", "100000")], body("TOOMANYREQUESTS")).await;
    assert!(matches!(error, RegistryError::RateLimited { .. }), "{error}");
    let error = resolve_to(500, &[], body("UNKNOWN")).await;
    assert!(matches!(error, RegistryError::Server { status: 500, .. }), "{error}");
    let error = resolve_to(418, &[], Vec::new()).await;
    assert!(matches!(error, RegistryError::Status { status: 418, .. }), "{error}");
}

#[tokio::test]
async fn temporary_errors_are_retried() {
    let server = Server::start(|_, before| match before {
        0 => Answer::new(500, &[], b""),
        1 => Answer::raw(200, &[("Content-Length", "1000")], b"{"),
        2 => Answer::nothing(),
        _ => Answer::new(200, &[], &manifest("")),
    })
    .await;
    let error = registry().resolve(&tagged(&server.address)).await;
    // The hang is the third failure; a deadline is retried only if it is the first.
    assert!(matches!(error, Err(RegistryError::Deadline { .. })), "{error:?}");
    assert!(registry().resolve(&tagged(&server.address)).await.is_ok());
}

#[tokio::test]
async fn endless_headers_are_an_error() {
    let long = "x".repeat(4 << 20);
    let server = Server::start(move |_, _| Answer::new(200, &[("X", &long)], b"")).await;
    let error = registry().resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("{}: ", server.address)), "{error}");
}

#[tokio::test]
async fn hanging_manifest_ends_in_a_deadline_error() {
    for midway in [false, true] {
        let server = Server::start(move |_, _| match midway {
            false => Answer::nothing(),
            true => Answer::raw(200, &[("Content-Length", "1000")], b"{").then_hang(),
        })
        .await;
        let error = registry().resolve(&tagged(&server.address)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Deadline { .. }), "{error}");
        assert_eq!(server.requests().len(), 2);
    }
}

#[tokio::test]
async fn local_name_cannot_be_resolved_in_a_registry() {
    let error = registry().resolve(&Reference::from_archive("lab/app:1").unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Local(_)), "{error}");
}

/// A lazy-format twin without a mark stands before the image, or alone.
#[tokio::test]
async fn entry_of_an_index_that_is_no_image_gives_way_to_the_next_best() {
    let image = manifest("");
    let mut twin: serde_json::Value = serde_json::from_slice(&image).unwrap();
    let mut layer = serde_json::to_value(descriptor(b"layer")).unwrap();
    layer["mediaType"] = json!("application/vnd.oci.image.layer.nydus.blob.v1");
    twin["layers"] = json!([layer]);
    let twin = twin.to_string().into_bytes();
    for entries in [vec![&twin, &image], vec![&image, &twin], vec![&twin]] {
        let listed: Vec<_> = entries.iter().map(|entry_of| entry(entry_of, "linux/amd64")).collect();
        let documents = [index(&listed), image.clone(), twin.clone()];
        let server = Server::start(move |request, _| {
            let wanted = request.path().rsplit('/').next().unwrap_or_default().to_owned();
            let found = documents.iter().find(|bytes| Digest::of(bytes).to_string() == wanted);
            let bytes = found.unwrap_or(&documents[0]);
            let kind = if found.is_some() { media::OCI_MANIFEST } else { media::OCI_INDEX };
            Answer::new(200, &[("Content-Type", kind)], bytes)
        })
        .await;
        let resolved = registry().resolve(&tagged(&server.address)).await;
        if entries.contains(&&image) {
            assert_eq!(resolved.unwrap().manifest_bytes, image);
        } else {
            let error = chain_text(&resolved.unwrap_err());
            assert!(error.contains("unknown media type `application/vnd.oci.image.layer.nydus"), "{error}");
        }
    }
}
