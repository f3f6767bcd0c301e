//! Token servers: every form of challenge and token, and servers that are busy, broken or dishonest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcx_imagefs::error::chain_text;
use rcx_imagefs::registry::{AuthFiles, Registry, RegistryError, RegistryOptions};
use tempfile::TempDir;

use super::auth::with_password;
use super::server::{Answer, Request, Server};
use super::{descriptor, download, options, registry};

/// Options with this content of a credential file.
fn with_auths(directory: &TempDir, content: &str) -> RegistryOptions {
    let path = directory.path().join("auth.json");
    std::fs::write(&path, content).unwrap();
    RegistryOptions { auth: AuthFiles::new(vec![path]), ..options() }
}

/// A registry whose blob is `hello`. It requires the token `t0ken`, sends these challenges, in which `HOST` is its own
/// address, and answers requests to `/token` with `token`.
async fn token_registry(
    challenges: &'static [&'static str],
    token: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |request, _| {
        if request.path().starts_with("/token") {
            return token(request, asked.fetch_add(1, Ordering::SeqCst));
        }
        if request.header("authorization") == Some("Bearer t0ken") {
            return Answer::new(200, &[], b"hello");
        }
        let host = request.header("host").unwrap();
        let challenges: Vec<String> = challenges.iter().map(|text| text.replace("HOST", host)).collect();
        let headers: Vec<_> = challenges.iter().map(|text| ("WWW-Authenticate", text.as_str())).collect();
        Answer::new(401, &headers, b"")
    })
    .await
}

const BEARER: &[&str] = &[r#"Bearer realm="http://HOST/token",service="s""#];

fn granted() -> Answer {
    Answer::new(200, &[], br#"{"token":"t0ken"}"#)
}

async fn hello(registry: &Registry, server: &Server) -> Result<Vec<u8>, RegistryError> {
    download(registry, &server.address, &descriptor(b"hello"), 0).await
}

fn to_token_server(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path().starts_with("/token")).collect()
}

#[tokio::test]
async fn bearer_challenge_is_answered_among_other_challenges_and_headers() {
    const FORMS: &[&[&str]] = &[
        &["Negotiate", r#"Bearer realm="http://HOST/token",service="s""#],
        &[r#"Basic realm="x, y", Bearer realm="http://HOST/token",service="s""#],
        &["Bearer realm=http://HOST/token,service=s"],
        &["Bearer realm='http://HOST/token' , service='s'", "Basic"],
        &[r#"Negotiate YII==, NTLM, bearer Service="s", Realm="http://HOST/token""#],
    ];
    for form in FORMS {
        let server = token_registry(form, |_, _| granted()).await;
        assert_eq!(hello(&registry(), &server).await.unwrap(), b"hello", "{form:?}");
        let asked = to_token_server(&server);
        assert!(asked[0].path().contains("service=s"), "{form:?}: {asked:?}");
    }
}

#[tokio::test]
async fn scheme_that_is_not_supported_is_named() {
    let server = token_registry(&["Negotiate", "NTLM"], |_, _| granted()).await;
    let error = hello(&registry(), &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::Scheme { .. }), "{error}");
    assert!(error.to_string().contains("requires authentication by Negotiate, NTLM"), "{error}");
}

#[tokio::test]
async fn token_may_stand_in_either_field() {
    for body in [r#"{"token":"","access_token":"t0ken"}"#, r#"{"access_token":"t0ken","expires_in":"300"}"#] {
        let server = token_registry(BEARER, |_, _| Answer::new(200, &[], body.as_bytes())).await;
        assert_eq!(hello(&registry(), &server).await.unwrap(), b"hello", "{body}");
    }
}

#[tokio::test]
async fn token_is_renewed_before_it_ends() {
    let count = Arc::new(AtomicUsize::new(0));
    let tokens = Arc::clone(&count);
    // The lifetime is so short that it has passed at every further request.
    let server = token_registry(BEARER, move |_, _| {
        tokens.fetch_add(1, Ordering::SeqCst);
        Answer::new(200, &[], br#"{"token":"t0ken","expires_in":0.000001}"#)
    })
    .await;
    let registry = registry();
    for _ in 0..3 {
        assert_eq!(hello(&registry, &server).await.unwrap(), b"hello");
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let refused = server.requests().iter().filter(|one| one.path().starts_with("/v2/")).count();
    assert_eq!(refused, 4, "only the first request is refused; later tokens are fetched before the request");
}

#[tokio::test]
async fn identity_token_is_exchanged_by_a_form() {
    let server = token_registry(BEARER, |request, _| {
        let fields: Vec<&str> = request.body().split('&').collect();
        let expected = [
            "grant_type=refresh_token",
            "client_id=rcx-imagefs",
            "refresh_token=refr3sh%2B",
            "service=s",
            "scope=repository%3Alab%2Fapp%3Apull",
        ];
        let is_form = request.header("content-type") == Some("application/x-www-form-urlencoded");
        match request.method() == "POST" && is_form && expected.iter().all(|field| fields.contains(field)) {
            true => Answer::new(200, &[], br#"{"access_token":"t0ken","refresh_token":"new"}"#),
            false => Answer::new(400, &[], br#"{"error":"invalid_grant","error_description":"expired"}"#),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = |token: &str| {
        let address = &server.address;
        format!(r#"{{"auths": {{"{address}": {{"auth": "MDo=", "identitytoken": "{token}"}}}}}}"#)
    };
    let registry = Registry::new(with_auths(&directory, &file("refr3sh+"))).unwrap();
    assert_eq!(hello(&registry, &server).await.unwrap(), b"hello");

    let registry = Registry::new(with_auths(&directory, &file("other"))).unwrap();
    let error = hello(&registry, &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginRefused { .. }), "{error}");
    assert!(
        error.to_string().contains("refuses the identity token") && error.to_string().contains("expired"),
        "{error}"
    );
}

#[tokio::test]
async fn identity_token_is_useless_without_a_token_server() {
    let server = token_registry(&["Basic realm=\"r\""], |_, _| granted()).await;
    let directory = tempfile::tempdir().unwrap();
    let auths = format!(r#"{{"auths": {{"{}": {{"identitytoken": "i"}}}}}}"#, server.address);
    let registry = Registry::new(with_auths(&directory, &auths)).unwrap();
    let error = hello(&registry, &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginUnusable { .. }), "{error}");
    assert!(error.to_string().contains("auth.json") && error.hint().is_some(), "{error}");
}

#[tokio::test]
async fn busy_token_server_is_asked_again_when_it_says() {
    // A date in the past asks for no pause.
    const PAST: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let server = token_registry(BEARER, |_, before| match before {
        0 => Answer::new(429, &[("Retry-After", "0")], b""),
        1 => Answer::new(503, &[("Retry-After", PAST)], b""),
        2 => Answer::new(500, &[], b""),
        _ => granted(),
    })
    .await;
    assert_eq!(hello(&registry(), &server).await.unwrap(), b"hello");
    assert_eq!(to_token_server(&server).len(), 4);

    let server = token_registry(BEARER, |_, _| {
        Answer::new(429, &[("Retry-After", "Fri, 01 Jan 2100 00:00:00 GMT")], br#"{"details":"slow down"}"#)
    })
    .await;
    let error = hello(&registry(), &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::RateLimited { .. }), "{error}");
    assert!(error.to_string().contains("slow down"), "{error}");
    assert_eq!(to_token_server(&server).len(), 1, "nobody waits for 70 years");
}

#[tokio::test]
async fn login_goes_to_no_server_to_which_the_token_server_redirects() {
    let other = Server::start(|_, _| granted()).await;
    let target = format!("http://{}/token", other.address);
    let server = token_registry(BEARER, move |_, _| Answer::new(307, &[("Location", &target)], b"")).await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
    let error = hello(&registry, &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }), "{error}");
    assert!(error.to_string().contains(&format!("redirects to {}", other.address)), "{error}");
    assert!(other.requests().iter().all(|request| request.header("authorization").is_none()));

    let auths = format!(r#"{{"auths": {{"{}": {{"identitytoken": "i"}}}}}}"#, server.address);
    let registry = Registry::new(with_auths(&directory, &auths)).unwrap();
    let before = other.requests().len();
    let error = hello(&registry, &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }), "{error}");
    assert_eq!(other.requests().len(), before, "a form is for one server only");
}

#[tokio::test]
async fn realm_that_is_no_web_address_is_reported() {
    const REALMS: &[&[&str]] = &[
        &[r#"Bearer realm="ftp://HOST/token""#],
        &[r#"Bearer realm="/token""#],
        &[r#"Bearer realm="file:///etc/passwd""#],
        &[r#"Bearer realm="http://[""#],
    ];
    for realm in REALMS {
        let server = token_registry(realm, |_, _| granted()).await;
        let error = hello(&registry(), &server).await.unwrap_err();
        assert!(matches!(error, RegistryError::Token { .. }), "{error}");
        assert!(error.to_string().contains("its address `"), "{error}");
    }
}

#[tokio::test]
async fn user_in_the_address_of_the_token_server_is_not_sent() {
    let server = token_registry(&[r#"Bearer realm="http://eve:pw@HOST/token""#], |_, _| granted()).await;
    assert_eq!(hello(&registry(), &server).await.unwrap(), b"hello");
    assert_eq!(to_token_server(&server)[0].header("authorization"), None);
}

#[tokio::test]
async fn token_server_that_cannot_be_reached_is_named() {
    let server = token_registry(&[r#"Bearer realm="http://127.0.0.1:1/token""#], |_, _| granted()).await;
    let error = hello(&registry(), &server).await.unwrap_err();
    assert_eq!(chain_text(&error), "127.0.0.1:1: connection refused");
}

#[tokio::test]
async fn endless_token_response_ends_at_the_limit() {
    let server = token_registry(BEARER, |_, _| Answer::raw(200, &[], &vec![b' '; 4 << 20]).then_hang()).await;
    let error = hello(&registry(), &server).await.unwrap_err();
    assert!(error.to_string().contains("longer than 65536 bytes"), "{error}");
}

#[tokio::test]
async fn token_response_without_a_usable_token_is_reported() {
    for (body, reason) in [
        ("{}", "its response has no token"),
        ("<html>", "its response is not valid"),
        (r#"{"token":"a\nb"}"#, "its token contains invalid characters"),
    ] {
        let server = token_registry(BEARER, |_, _| Answer::new(200, &[], body.as_bytes())).await;
        let error = hello(&registry(), &server).await.unwrap_err();
        assert!(matches!(error, RegistryError::Token { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn missing_credential_helper_does_not_stop_an_anonymous_pull() {
    let server = token_registry(BEARER, |_, _| granted()).await;
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_auths(&directory, r#"{"credsStore": "is-not-there"}"#)).unwrap();
    assert_eq!(hello(&registry, &server).await.unwrap(), b"hello");
}
