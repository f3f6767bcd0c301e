//! Tokens and passwords: sent only to their registry, and renewed when they expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcx_imagefs::error::chain_text;
use rcx_imagefs::registry::{AuthFiles, Registry, RegistryError, RegistryOptions};
use tempfile::TempDir;

use super::server::{Answer, Request, Server};
use super::{content, descriptor, download, options, registry};

/// Options with the user `lab` and the password `secret` for a registry.
pub(super) fn with_password(directory: &TempDir, address: &str) -> RegistryOptions {
    let path = directory.path().join("config.json");
    // `lab:secret` in base64.
    std::fs::write(&path, format!(r#"{{"auths": {{"{address}": {{"auth": "bGFiOnNlY3JldA=="}}}}}}"#))
        .unwrap();
    RegistryOptions { auth: AuthFiles::new(vec![path]), ..options() }
}

/// A registry with a token server at the same address. Each token is valid for `uses` requests.
async fn token_registry(content: Vec<u8>, uses: usize, password: Option<&'static str>) -> Server {
    let used = Arc::new(AtomicUsize::new(0));
    let tokens = AtomicUsize::new(0);
    Server::start(move |request, _| {
        let host = request.header("host").unwrap();
        let challenge =
            format!(r#"Bearer realm="http://{host}/token",service="reg",scope="repository:lab/app:pull""#);
        let unauthorized = || Answer::new(401, &[("WWW-Authenticate", &challenge)], b"");
        if request.path().starts_with("/token") {
            assert!(request.path().contains("scope=repository%3Alab%2Fapp%3Apull"), "{}", request.path());
            assert!(request.path().contains("service=reg"), "{}", request.path());
            if request.header("authorization") != password {
                return Answer::new(401, &[], br#"{"details":"wrong user name or password"}"#);
            }
            used.store(0, Ordering::SeqCst);
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Answer::new(200, &[], format!(r#"{{"token":"t{number}"}}"#).as_bytes());
        }
        let valid = format!("Bearer t{}", tokens.load(Ordering::SeqCst));
        let authorized = request.header("authorization") == Some(&valid);
        if !authorized || used.fetch_add(1, Ordering::SeqCst) >= uses {
            return unauthorized();
        }
        let from = request.from().unwrap_or(0);
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        // Every answer ends after 40,000 bytes, so that one blob needs several requests.
        let length = (content.len() - from).to_string();
        let headers = [("Content-Range", range.as_str()), ("Content-Length", length.as_str())];
        let end = content.len().min(from + 40_000);
        let status = if from == 0 { 200 } else { 206 };
        Answer::raw(status, &headers[usize::from(from == 0)..], &content[from..end])
    })
    .await
}

fn tokens_fetched(requests: &[Request]) -> usize {
    requests.iter().filter(|request| request.path().starts_with("/token")).count()
}

#[tokio::test]
async fn anonymous_token_is_fetched_once_and_reused() {
    let content = content(100_000);
    let server = token_registry(content.clone(), usize::MAX, None).await;
    let registry = registry();
    for _ in 0..2 {
        assert!(download(&registry, &server.address, &descriptor(&content), 0).await.unwrap() == content);
    }
    assert_eq!(tokens_fetched(&server.requests()), 1);
}

#[tokio::test]
async fn token_that_expires_during_a_download_is_renewed() {
    let content = content(200_000);
    let server = token_registry(content.clone(), 2, None).await;
    assert!(download(&registry(), &server.address, &descriptor(&content), 0).await.unwrap() == content);
    assert_eq!(tokens_fetched(&server.requests()), 3);
}

#[tokio::test]
async fn parallel_downloads_share_one_token() {
    let content = content(100_000);
    let server = token_registry(content.clone(), usize::MAX, None).await;
    let (registry, layer) = (registry(), descriptor(&content));
    let one = || download(&registry, &server.address, &layer, 0);
    let (a, b, c) = tokio::join!(one(), one(), one());
    assert!([a, b, c].into_iter().all(|bytes| bytes.unwrap() == content));
    assert_eq!(tokens_fetched(&server.requests()), 1);
}

#[tokio::test]
async fn password_goes_to_the_token_server_only() {
    let content = content(1000);
    let server = token_registry(content.clone(), usize::MAX, Some("Basic bGFiOnNlY3JldA==")).await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
    assert_eq!(download(&registry, &server.address, &descriptor(&content), 0).await.unwrap(), content);
    for request in server.requests().iter().filter(|request| !request.path().starts_with("/token")) {
        assert!(!request.header("authorization").unwrap_or_default().starts_with("Basic"));
    }
}

#[tokio::test]
async fn refused_password_is_reported_with_the_reason_and_a_hint() {
    let server = token_registry(Vec::new(), usize::MAX, Some("Basic other")).await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
    let error = download(&registry, &server.address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginRefused { .. }), "{error}");
    let text = error.to_string();
    for part in ["wrong user name or password", "refuses the login of `lab`", "config.json"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
    assert!(error.hint().unwrap().contains(&format!("rcx-imagefs login {}", server.address)));
    assert_eq!(tokens_fetched(&server.requests()), 1, "a wrong password is not retried");
}

#[tokio::test]
async fn token_that_is_never_accepted_is_an_error() {
    let server = token_registry(vec![1; 10], 0, None).await;
    let error = download(&registry(), &server.address, &descriptor(&[1; 10]), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert_eq!(tokens_fetched(&server.requests()), 1);
}

#[tokio::test]
async fn basic_auth_is_used_without_a_token_server() {
    let server = Server::start(|request, _| match request.header("authorization") {
        Some("Basic bGFiOnNlY3JldA==") => Answer::new(200, &[], b"hello"),
        _ => Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"registry\"")], b""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
    for _ in 0..2 {
        assert_eq!(download(&registry, &server.address, &descriptor(b"hello"), 0).await.unwrap(), b"hello");
    }
    assert_eq!(server.requests().len(), 3, "refused, granted; then granted at once");
    let error = download(&super::registry(), &server.address, &descriptor(b"hello"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn hanging_token_server_ends_in_a_deadline_error() {
    let token = Server::start(|_, _| Answer::nothing()).await;
    let challenge = format!(r#"Bearer realm="http://{}/token",service="reg""#, token.address);
    let server = Server::start(move |_, _| Answer::new(401, &[("WWW-Authenticate", &challenge)], b"")).await;
    let error = download(&registry(), &server.address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn broken_credential_file_is_an_error_only_when_it_is_needed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, r#"{"auths": "#).unwrap();
    let registry = Registry::new(RegistryOptions { auth: AuthFiles::new(vec![path]), ..options() }).unwrap();
    let open = Server::start(|_, _| Answer::new(200, &[], b"hello")).await;
    assert_eq!(download(&registry, &open.address, &descriptor(b"hello"), 0).await.unwrap(), b"hello");
    let closed = Server::start(|_, _| Answer::new(401, &[], b"")).await;
    let error = download(&registry, &closed.address, &descriptor(b"hello"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Credentials { .. }), "{error}");
    assert!(
        chain_text(&error).contains("config.json is not a valid credential file"),
        "{}",
        chain_text(&error)
    );
    // A missing image is more likely than a hidden one.
    let missing = Server::start(|_, _| Answer::new(404, &[], b"")).await;
    let error = download(&registry, &missing.address, &descriptor(b"hello"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn challenge_of_another_host_that_the_registry_redirects_to_is_not_answered() {
    let token = Server::start(|_, _| Answer::new(200, &[], br#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="http://{}/token",service="reg""#, token.address);
    let other = Server::start(move |_, _| Answer::new(401, &[("WWW-Authenticate", &challenge)], b"")).await;
    let target = format!("http://{}/v2/", other.address);
    // Every request without a token is refused, and the address of the API itself leads to the other host.
    let server = Server::start(move |request, _| match request.path() {
        "/v2/" => Answer::new(307, &[("Location", &target)], b""),
        _ => Answer::new(401, &[], b""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
    let error = download(&registry, &server.address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginRefused { .. }), "{error}");
    assert_eq!(
        other.requests().iter().filter(|request| request.header("authorization").is_some()).count(),
        0
    );
    assert_eq!(token.requests().len(), 0, "the password must not reach a server that another host chose");
}

#[tokio::test]
async fn token_response_of_more_than_64_kib_is_an_error() {
    let server = Server::start(move |request, _| {
        let host = request.header("host").unwrap();
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        if request.path().starts_with("/token") {
            return Answer::new(200, &[], format!(r#"{{"token":"{}"}}"#, "t".repeat(70_000)).as_bytes());
        }
        Answer::new(401, &[("WWW-Authenticate", &challenge)], b"")
    })
    .await;
    let error = download(&registry(), &server.address, &descriptor(b"x"), 0).await.unwrap_err();
    assert!(error.to_string().contains("longer than 65536 bytes"), "{error}");
}
