//! Gets tokens from token servers (distribution-spec, "Token Authentication" and "OAuth2 Token Authentication").
//!
//! The registry chooses the token server; that is the protocol. But a registry that is accessed over HTTPS cannot choose one
//! that is accessed over HTTP, except on this machine, and a password follows no redirect to another server.

use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::auth::{Login, LoginSecret};
use super::challenge::BearerChallenge;
use super::endpoint::Endpoint;
use super::exchange::{Authorization, HttpRequest, Reply, RequestBody, host_of, without_user};
use super::http::HostKind;
use super::retry::requested_pause;
use super::{Registry, RegistryError, RemoteObject};

/// Longest response of a token server, in bytes. Tokens have a few kilobytes.
const TOKEN_MAX: usize = 64 << 10;

/// How long a token is valid if the server does not say (distribution-spec, "Token Response Fields").
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

/// How this program names itself to token servers.
const CLIENT_ID: &str = env!("CARGO_PKG_NAME");

/// A token of a token server.
pub(super) struct RegistryToken {
    pub(super) value: String,
    /// How long it is valid.
    pub(super) lifetime: Duration,
}

/// The response of a token server. Servers give one of the first two fields, or both.
#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds; some servers send text.
    #[serde(default)]
    expires_in: Value,
}

impl TokenResponse {
    /// Parses a response. The error says what is wrong with it.
    fn parse(body: &[u8]) -> Result<RegistryToken, String> {
        let response: Self =
            serde_json::from_slice(body).map_err(|error| format!("its response is not valid: {error}"))?;
        let tokens = [response.token, response.access_token].into_iter().flatten();
        let value = tokens.into_iter().find(|token| !token.is_empty());
        let value = value.ok_or("its response has no token")?;
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("its token contains invalid characters".to_owned());
        }
        let seconds = match &response.expires_in {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let lifetime = seconds.filter(|seconds: &f64| *seconds > 0.0).map(Duration::try_from_secs_f64);
        let lifetime = match lifetime {
            Some(Ok(lifetime)) => lifetime,
            Some(Err(_)) => Duration::MAX,
            None => DEFAULT_LIFETIME,
        };
        Ok(RegistryToken { value, lifetime })
    }
}

/// Parses the address of a token server. `scheme` is the scheme of the registry.
fn token_server(realm: &str, scheme: &str) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|error| format!("its address `{realm}` is not valid: {error}"))?;
    let is_loopback = HostKind::of(url.host_str().unwrap_or_default()) == HostKind::Loopback;
    match url.scheme() {
        "https" => Ok(without_user(url)),
        "http" if scheme == "http" || is_loopback => Ok(without_user(url)),
        "http" => Err(format!(
            "the registry is accessed over HTTPS, but its token server is `{realm}`, without encryption"
        )),
        _ => Err(format!("its address `{realm}` is neither an http nor an https URL")),
    }
}

/// What a token must allow.
fn scopes(challenge: &BearerChallenge, endpoint: &Endpoint) -> Vec<String> {
    endpoint.scopes(challenge.scope.as_deref().filter(|scope| scope.starts_with("repository:")))
}

impl Registry {
    /// Gets a token that answers a challenge of an endpoint.
    pub(super) async fn fetch_token(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        challenge: &BearerChallenge,
        login: Option<&Login>,
    ) -> Result<RegistryToken, RegistryError> {
        let failed = |reason| RegistryError::Token { object: object.clone(), reason };
        let scheme = self.scheme(&endpoint.host)?;
        let url = token_server(&challenge.realm, scheme).map_err(failed)?;
        let server = host_of(&url);
        tracing::info!("{}: getting a token from {server}", endpoint.host);
        let service = challenge.service.iter().map(|service| ("service", service.clone()));
        let scopes = scopes(challenge, endpoint);
        let mut request = HttpRequest::get(object, endpoint, url);
        request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        request.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let password = login.and_then(|login| match &login.secret {
            LoginSecret::Password { user, password } => {
                Some(Authorization::Basic(user.clone(), password.clone()))
            }
            LoginSecret::IdentityToken(_) | LoginSecret::RegistryToken(_) => None,
        });
        request.authorization = password.as_ref();
        if let Some(Login { secret: LoginSecret::IdentityToken(token), .. }) = login {
            let grant = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)];
            // A form has one field for all scopes, and a query one for each.
            let scope = (!scopes.is_empty()).then(|| ("scope", scopes.join(" ")));
            let fields: Vec<_> = service.chain(scope).collect();
            let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
            request.method = Method::POST;
            request.body = RequestBody::of(form(grant.into_iter().chain(fields)));
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers.insert(CONTENT_TYPE, form_type);
        } else {
            let scopes = scopes.into_iter().map(|scope| ("scope", scope));
            request.url.query_pairs_mut().extend_pairs(service.chain(scopes));
        }
        let reply = self.exchange(request).await?;
        if login.is_some() && !reply.from_origin {
            return Err(failed(format!(
                "{server} redirects to {}, which the login is not for",
                reply.host()
            )));
        }
        if reply.status() != StatusCode::OK {
            return Err(self.token_refusal(object, reply, login).await);
        }
        let body = self.token_body(object, reply, &server).await?;
        TokenResponse::parse(&body).map_err(|reason| failed(format!("{server}: {reason}")))
    }

    /// The error for a response without a token.
    async fn token_refusal(
        &self,
        object: &RemoteObject,
        reply: Reply,
        login: Option<&Login>,
    ) -> RegistryError {
        let (status, host) = (reply.status(), reply.host());
        let retry_after = requested_pause(reply.response.headers());
        let message = self.error_message(reply.response).await;
        let object = object.clone();
        match (status, login) {
            // An identity token that has expired is a bad request (RFC 6749, section 5.2).
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST, Some(login)) => {
                RegistryError::LoginRefused { object, host, login: login.to_string(), message }
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => {
                RegistryError::Unauthorized { object, message }
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => {
                RegistryError::RateLimited { object, host, retry_after, message }
            }
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Server { object, host, status: status.as_u16(), retry_after, message }
            }
            _ => {
                let message = if message.is_empty() { message } else { format!(" ({message})") };
                let reason = format!("{host} returned HTTP status {}{message}", status.as_u16());
                RegistryError::Token { object, reason }
            }
        }
    }

    /// Reads a response of limited length.
    async fn token_body(
        &self,
        object: &RemoteObject,
        mut reply: Reply,
        server: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let deadlines = &self.options().deadlines;
        let read = async {
            let mut body = Vec::new();
            let chunk = |result: Result<_, reqwest::Error>| {
                result.map_err(|source| RegistryError::transport(object, server, &source, deadlines))
            };
            while let Some(bytes) = chunk(reply.response.chunk().await)? {
                body.extend_from_slice(&bytes);
                if body.len() > TOKEN_MAX {
                    let reason = format!("the response of {server} is longer than {TOKEN_MAX} bytes");
                    return Err(RegistryError::Token { object: object.clone(), reason });
                }
            }
            Ok(body)
        };
        timeout(deadlines.idle, read)
            .await
            .map_err(|_| RegistryError::deadline(object, server, "the rest of a token", deadlines.idle))?
    }
}

/// Encodes the fields of a form.
fn form<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut url = Url::parse("http://form").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_server_is_accessed_over_http_only_on_loopback_or_for_a_plain_registry() {
        let allowed = |realm, scheme| token_server(realm, scheme).is_ok();
        assert!(allowed("https://auth.example/token", "https"));
        assert!(!allowed("http://auth.example/token", "https"));
        assert!(!allowed("HTTP://127.0.0.1.auth.example/token", "https"));
        assert!(!allowed("http://user@auth.example/token", "https"));
        assert!(allowed("http://auth.example/token", "http"));
        assert!(allowed("http://127.0.0.1:5001/token", "https"));
        assert!(allowed("http://[::1]:5001/token", "https"));
        for realm in ["ftp://auth.example/token", "/token", "", "file:///etc/passwd", "auth.example"] {
            assert!(!allowed(realm, "https") && !allowed(realm, "http"), "{realm}");
        }
    }

    #[test]
    fn first_token_that_is_not_empty_is_used() {
        let parse = |body: &str| TokenResponse::parse(body.as_bytes()).map(|token| token.value);
        assert_eq!(parse(r#"{"token":"a","access_token":"b"}"#).as_deref(), Ok("a"));
        assert_eq!(parse(r#"{"token":"","access_token":"b"}"#).as_deref(), Ok("b"));
        assert_eq!(parse(r#"{"token":null,"access_token":"b"}"#).as_deref(), Ok("b"));
        assert_eq!(parse(r#"{"access_token":"b","scope":"","refresh_token":"r"}"#).as_deref(), Ok("b"));
        for (body, reason) in [
            ("{}", "its response has no token"),
            (r#"{"token":""}"#, "its response has no token"),
            (r#"{"token":"a b"}"#, "its token contains invalid characters"),
            ("<html>", "its response is not valid"),
        ] {
            assert!(parse(body).unwrap_err().starts_with(reason), "{body}");
        }
    }

    #[test]
    fn lifetime_of_a_token_is_read_in_every_form() {
        for (expires_in, seconds) in [
            ("300", 300),
            ("\"300\"", 300),
            ("300.9", 300),
            ("null", 60),
            ("0", 60),
            ("-5", 60),
            ("\"soon\"", 60),
            ("1e300", u64::MAX),
        ] {
            let body = format!(r#"{{"token":"a","expires_in":{expires_in}}}"#);
            let lifetime = TokenResponse::parse(body.as_bytes()).map(|token| token.lifetime.as_secs());
            assert_eq!(lifetime, Ok(seconds), "{expires_in}");
        }
    }

    #[test]
    fn scope_is_that_of_the_challenge_if_it_is_for_a_repository() {
        let endpoint =
            |repository: &str| Endpoint { repository: repository.to_owned(), ..Endpoint::of_host("reg:1") };
        let asked =
            |scope: &str| BearerChallenge { scope: Some(scope.to_owned()), ..BearerChallenge::default() };
        let own = ["repository:lab/a:pull"];
        assert_eq!(scopes(&BearerChallenge::default(), &endpoint("lab/a")), own);
        assert_eq!(scopes(&asked("registry:catalog:*"), &endpoint("lab/a")), own);
        assert_eq!(scopes(&asked("repository:a:pull"), &endpoint("lab/a")), ["repository:a:pull"]);
        assert_eq!(scopes(&asked("registry:catalog:*"), &endpoint("")), [""; 0]);
    }

    #[test]
    fn scope_of_a_push_allows_to_push_whatever_the_challenge_asks_for() {
        let name = "reg:1/lab/a".parse().unwrap();
        let asked =
            |scope: &str| BearerChallenge { scope: Some(scope.to_owned()), ..BearerChallenge::default() };
        let push = Endpoint::to_push(&name).unwrap();
        let own = ["repository:lab/a:pull,push"];
        assert_eq!(scopes(&BearerChallenge::default(), &push), own);
        assert_eq!(scopes(&asked("repository:lab/a:pull"), &push), own);
        assert_eq!(
            scopes(&asked("repository:proxy:5000/a:pull"), &push),
            ["repository:proxy:5000/a:pull,push"]
        );
        let mount = Endpoint::to_mount(&name, "lab/b").unwrap();
        let both = ["repository:lab/a:pull,push", "repository:lab/b:pull"];
        assert_eq!(scopes(&asked("repository:lab/a:pull,push repository:lab/b:pull"), &mount), both);
    }

    #[test]
    fn form_is_percent_encoded() {
        let fields = [("grant_type", "refresh_token"), ("scope", "repository:lab/a:pull"), ("x", "a&b=c +é")];
        let encoded = "grant_type=refresh_token&scope=repository%3Alab%2Fa%3Apull&x=a%26b%3Dc+%2B%C3%A9";
        assert_eq!(form(fields.into_iter()), encoded);
    }
}
