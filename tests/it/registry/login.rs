//! Logins are checked before they are stored.

use rcx_imagefs::registry::{LoginCheck, RegistryError};

use super::registry;
use super::server::{Answer, Server};

const GOOD: Option<&str> = Some("Basic bGFiOnNlY3JldA==");

#[tokio::test]
async fn login_is_checked_by_password_and_by_token() {
    let basic = Server::start(|request, _| match request.header("authorization") {
        authorization if authorization == GOOD => Answer::new(200, &[], b"{}"),
        _ => Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"r\"")], b""),
    })
    .await;
    let token = Server::start(|request, _| {
        let challenge = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        match request.header("authorization") {
            authorization if request.path().starts_with("/token") && authorization == GOOD => {
                assert!(!request.path().contains("scope"), "{}", request.path());
                Answer::new(200, &[], br#"{"token":"t"}"#)
            }
            _ if request.path().starts_with("/token") => {
                Answer::new(401, &[], br#"{"details":"incorrect username or password"}"#)
            }
            Some("Bearer t") => Answer::new(200, &[], b"{}"),
            _ => Answer::new(401, &[("WWW-Authenticate", &challenge)], b""),
        }
    })
    .await;
    for server in [&basic, &token] {
        let registry = registry();
        let checked = registry.check_login(&server.address, "lab", "secret").await;
        assert_eq!(checked.unwrap(), LoginCheck::Accepted);
        let error = registry.check_login(&server.address, "lab", "guessed").await.unwrap_err();
        assert!(matches!(error, RegistryError::LoginRefused { .. }), "{error}");
        let expected = format!("{0}: {0} refuses the login of `lab`", server.address);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[tokio::test]
async fn registry_without_logins_is_told_apart_from_something_else() {
    let open = Server::start(|_, _| Answer::new(200, &[], b"{}")).await;
    let checked = registry().check_login(&open.address, "lab", "secret").await;
    assert_eq!(checked.unwrap(), LoginCheck::NotRequired);
    let other = Server::start(|_, _| Answer::new(404, &[], b"<html>")).await;
    let error = registry().check_login(&other.address, "lab", "secret").await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}
