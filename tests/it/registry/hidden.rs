//! Repositories that a registry hides from users without a login.

use rcx_imagefs::registry::{Registry, RegistryError};

use super::auth::with_password;
use super::server::{Answer, Server};
use super::{descriptor, download, registry};

/// A registry that answers requests without a login with `hidden`, and requests to `/v2/` with a challenge if there is one.
async fn hiding_registry(hidden: u16, challenge: Option<&'static str>) -> Server {
    Server::start(move |request, _| {
        let host = request.header("host").unwrap();
        let challenge = challenge.map(|text| text.replace("HOST", host));
        let has_password = request.header("authorization") == Some("Basic bGFiOnNlY3JldA==");
        match (request.path(), &challenge) {
            (path, _) if path.starts_with("/token") && has_password => {
                Answer::new(200, &[], br#"{"token":"t0ken"}"#)
            }
            (path, _) if path.starts_with("/token") => Answer::new(401, &[], b""),
            ("/v2/", Some(challenge)) => Answer::new(401, &[("WWW-Authenticate", challenge)], b""),
            ("/v2/", None) => Answer::new(200, &[], b"{}"),
            _ if request.header("authorization") == Some("Bearer t0ken") => Answer::new(200, &[], b"hello"),
            _ if has_password && challenge.as_ref().is_none_or(|text| text.starts_with("Basic")) => {
                Answer::new(200, &[], b"hello")
            }
            _ => Answer::new(hidden, &[], b""),
        }
    })
    .await
}

#[tokio::test]
async fn stored_login_is_tried_where_a_repository_is_hidden() {
    for hidden in [403, 404] {
        for challenge in [Some("Bearer realm=\"http://HOST/token\""), Some("Basic realm=\"r\""), None] {
            let server = hiding_registry(hidden, challenge).await;
            let directory = tempfile::tempdir().unwrap();
            let registry = Registry::new(with_password(&directory, &server.address)).unwrap();
            for _ in 0..2 {
                let blob = download(&registry, &server.address, &descriptor(b"hello"), 0).await;
                assert_eq!(blob.unwrap(), b"hello", "{hidden} {challenge:?}");
            }
            let unauthorized =
                server.requests().iter().filter(|one| one.header("authorization").is_none()).count();
            assert!(unauthorized <= 2, "the login is used at once the second time: {unauthorized}");
        }
    }
}

#[tokio::test]
async fn repository_stays_hidden_without_a_login_or_with_a_wrong_one() {
    let server = hiding_registry(404, Some("Bearer realm=\"http://HOST/token\"")).await;
    let error = download(&registry(), &server.address, &descriptor(b"hello"), 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert_eq!(server.requests().len(), 1, "without a login, there is nothing to try");

    let directory = tempfile::tempdir().unwrap();
    let mut options = with_password(&directory, &server.address);
    let path = directory.path().join("wrong.json");
    std::fs::write(&path, format!(r#"{{"auths": {{"{}": {{"auth": "YTpi"}}}}}}"#, server.address)).unwrap();
    options.auth = rcx_imagefs::registry::AuthFiles::new(vec![path]);
    let error = download(&Registry::new(options).unwrap(), &server.address, &descriptor(b"hello"), 0).await;
    assert!(matches!(error, Err(RegistryError::NotFound { .. })), "{error:?}");
}

#[tokio::test]
async fn login_of_one_registry_is_not_sent_to_another() {
    let (one, other) = (hiding_registry(404, None).await, hiding_registry(404, None).await);
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(with_password(&directory, &one.address)).unwrap();
    assert!(download(&registry, &other.address, &descriptor(b"hello"), 0).await.is_err());
    assert_eq!(download(&registry, &one.address, &descriptor(b"hello"), 0).await.unwrap(), b"hello");
    assert!(other.requests().iter().all(|request| request.header("authorization").is_none()));
}
