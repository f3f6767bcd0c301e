//! Mirrors are asked first, and never make a pull fail or change what is pulled.

use rcx_imagefs::image::{Digest, Reference};
use rcx_imagefs::registry::{Registry, RegistryError, RegistryOptions};

use super::server::{Answer, Request, Server};
use super::{content, descriptor, download, name, options, tagged};

/// A client for the registry with these mirrors.
fn with_mirrors(registry: &Server, mirrors: &[&str]) -> Registry {
    let mirrors = mirrors.iter().map(|mirror| mirror.parse().unwrap()).collect();
    let mirrors = [(registry.address.clone(), mirrors)].into();
    Registry::new(RegistryOptions { mirrors, ..options() }).unwrap()
}

/// Sends the content for blobs and a manifest for everything else.
fn serve(request: &Request, content: &[u8]) -> Answer {
    match request.from() {
        _ if request.path().contains("/manifests/") => Answer::new(200, &[], &super::manifests::manifest("")),
        None => Answer::new(200, &[], content),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Answer::new(206, &[("Content-Range", &range)], &content[from..])
        }
    }
}

/// A server that has everything.
async fn complete(content: &[u8]) -> Server {
    let content = content.to_vec();
    Server::start(move |request, _| serve(request, &content)).await
}

#[tokio::test]
async fn first_mirror_that_has_the_image_is_used() {
    let content = content(1000);
    let empty = Server::start(|_, _| Answer::new(404, &[], b"")).await;
    let (mirror, registry) = (complete(&content).await, complete(&content).await);
    let client = with_mirrors(&registry, &[&empty.address, &format!("{}/hub/cache", mirror.address)]);
    client.resolve(&tagged(&registry.address)).await.unwrap();
    assert_eq!(download(&client, &registry.address, &descriptor(&content), 0).await.unwrap(), content);
    assert_eq!(empty.requests().len(), 2);
    let paths: Vec<String> = mirror.requests().iter().map(|request| request.path().to_owned()).collect();
    assert_eq!(paths[0], "/v2/hub/cache/lab/app/manifests/1");
    assert!(paths[1].starts_with("/v2/hub/cache/lab/app/blobs/"), "{paths:?}");
    assert_eq!(registry.requests().len(), 0);
}

#[tokio::test]
async fn mirror_that_fails_is_passed_over_and_not_asked_again() {
    let content = content(1000);
    let registry = complete(&content).await;
    let broken = Server::start(|_, _| Answer::new(500, &[], b"")).await;
    let hanging = Server::start(|_, _| Answer::nothing()).await;
    let client = with_mirrors(&registry, &["127.0.0.1:1", &broken.address, &hanging.address]);
    for _ in 0..2 {
        client.resolve(&tagged(&registry.address)).await.unwrap();
        assert_eq!(download(&client, &registry.address, &descriptor(&content), 0).await.unwrap(), content);
    }
    assert_eq!((broken.requests().len(), hanging.requests().len()), (1, 1));
}

#[tokio::test]
async fn download_goes_on_elsewhere_at_the_same_byte() {
    let content = content(100_000);
    let registry = complete(&content).await;
    let served = content.clone();
    let mirror = Server::start(move |request, before| match before {
        0 => Answer::raw(200, &[("Content-Length", "100000")], &served[..60_000]),
        _ if request.from() == Some(60_000) => Answer::new(503, &[], b""),
        _ => Answer::new(400, &[], b""),
    })
    .await;
    let client = with_mirrors(&registry, &[&mirror.address]);
    assert!(download(&client, &registry.address, &descriptor(&content), 0).await.unwrap() == content);
    assert_eq!(registry.requests()[0].from(), Some(60_000));
}

#[tokio::test]
async fn wrong_content_of_a_mirror_is_replaced_by_the_registrys() {
    let content = content(1000);
    let registry = complete(&content).await;
    let mut wrong = content.clone();
    wrong[500] ^= 1;
    let mirror = complete(&wrong).await;
    let client = with_mirrors(&registry, &[&mirror.address]);
    let blob = descriptor(&content);
    let fetched = client.fetch_small(&name(&registry.address), &blob, 1000).await.unwrap();
    assert_eq!(fetched, content);
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 1));

    let lying = Server::start(|_, _| Answer::new(200, &[], &super::manifests::manifest("other"))).await;
    let client = with_mirrors(&registry, &[&lying.address]);
    let digest = Digest::of(&super::manifests::manifest(""));
    let reference = Reference::parse(&format!("{}/lab/app@{digest}", registry.address), None).unwrap();
    assert_eq!(client.resolve(&reference).await.unwrap().manifest_digest.digest(), digest);
    assert_eq!(lying.requests().len(), 1);
}

#[tokio::test]
async fn error_is_that_of_the_registry_and_logins_are_not_shared() {
    let registry = Server::start(|_, _| Answer::new(404, &[], b"")).await;
    let mirror = Server::start(|_, _| Answer::new(401, &[("WWW-Authenticate", "Basic")], b"")).await;
    let directory = tempfile::tempdir().unwrap();
    let options = super::auth::with_password(&directory, &registry.address);
    let mirrors = [(registry.address.clone(), vec![mirror.address.parse().unwrap()])].into();
    let client = Registry::new(RegistryOptions { mirrors, ..options }).unwrap();
    let error = client.resolve(&tagged(&registry.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&registry.address), "{error}");
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
}
