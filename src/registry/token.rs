//! Answers the challenge of a registry: finds the token server and gets a token.
//!
//! The challenge comes from the registry's own response, never from a server that it redirected to. A password is sent to the
//! token server of the challenge only over HTTPS, unless the user has allowed plain HTTP for the registry or the token server
//! is on this machine.

use http_auth::ChallengeParser;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::http::HostKind;
use super::{Registry, RegistryError, RemoteObject};

/// Longest response of a token server, in bytes. Tokens have a few kilobytes.
const TOKEN_MAX: usize = 64 << 10;

/// The authentication that a registry requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthChallenge {
    /// A token of a token server (distribution-spec, "Token Authentication").
    Bearer { realm: String, service: Option<String> },
    /// Nothing else that is supported: the password itself, if there is one.
    Basic,
}

/// The response of a token server. Servers may give either field, or both.
#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl AuthChallenge {
    /// Reads the challenge of a response with status 401; `None` if it has none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut result = headers.contains_key(WWW_AUTHENTICATE).then_some(Self::Basic);
        for challenge in texts.flat_map(|text| ChallengeParser::new(text).filter_map(Result::ok)) {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("Bearer")
                && let Some(realm) = parameter("realm")
            {
                result = Some(Self::Bearer { realm, service: parameter("service") });
                break;
            }
        }
        result
    }
}

/// Checks that the credentials may be sent to a token server. `scheme` is the scheme of the registry.
fn token_url(realm: &str, scheme: &str, credentials: &RegistryAuth) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|error| format!("its address `{realm}` is not valid: {error}"))?;
    let host = url.host_str().unwrap_or_default();
    let is_private = *credentials == RegistryAuth::Anonymous;
    match url.scheme() {
        "https" => Ok(url),
        "http" if scheme == "http" || is_private || HostKind::of(host) == HostKind::Loopback => Ok(url),
        "http" => Err(format!("the registry wants the password to be sent to `{realm}`, without encryption")),
        _ => Err(format!("its address `{realm}` is neither an http nor an https URL")),
    }
}

impl Registry {
    /// Gets a token for pulling from the object's repository.
    pub(super) async fn fetch_token(
        &self,
        object: &RemoteObject,
        realm: &str,
        service: Option<&str>,
        credentials: &RegistryAuth,
    ) -> Result<String, RegistryError> {
        let failed = |reason| RegistryError::Token { object: object.clone(), reason };
        let name = object.name();
        let scheme = self.scheme(name.host().unwrap_or_default());
        let mut url = token_url(realm, scheme, credentials).map_err(failed)?;
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", name.repository()));
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut builder = self.http(url.host_str().unwrap_or_default()).get(url.clone());
        if let RegistryAuth::Basic(user, password) = credentials {
            builder = builder.basic_auth(user, Some(password));
        }
        let deadlines = &self.options().deadlines;
        let after = deadlines.connect + deadlines.response;
        let exchange = async {
            let mut response =
                builder.send().await.map_err(|source| RegistryError::transport(object, source, deadlines))?;
            if response.status() != StatusCode::OK {
                let message = self.error_message(response).await;
                return Err(RegistryError::Unauthorized { object: object.clone(), message });
            }
            let mut body = Vec::new();
            while let Some(chunk) = response
                .chunk()
                .await
                .map_err(|source| RegistryError::transport(object, source, deadlines))?
            {
                body.extend_from_slice(&chunk);
                if body.len() > TOKEN_MAX {
                    return Err(failed(format!("its response is longer than {TOKEN_MAX} bytes")));
                }
            }
            Ok(body)
        };
        let body = timeout(after, exchange).await.map_err(|_| RegistryError::Deadline {
            object: object.clone(),
            awaited: "a token",
            after,
        })??;
        let response: TokenResponse = serde_json::from_slice(&body)
            .map_err(|error| failed(format!("its response is not valid: {error}")))?;
        match response.token.or(response.access_token) {
            Some(token) if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(token)
            }
            Some(_) => Err(RegistryError::Unauthorized {
                object: object.clone(),
                message: "the token of the token server contains invalid characters".to_owned(),
            }),
            None => Err(failed("its response has no token".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<AuthChallenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        AuthChallenge::of(&headers)
    }

    #[test]
    fn bearer_challenge_is_found_beside_others() {
        let bearer = AuthChallenge::Bearer { realm: "https://t/x".to_owned(), service: Some("s".to_owned()) };
        let text = r#"Bearer realm="https://t/x",service="s",scope="repository:a:pull""#;
        assert_eq!(challenge(&[text]), Some(bearer.clone()));
        assert_eq!(challenge(&[r#"Basic realm="r""#, text]), Some(bearer.clone()));
        assert_eq!(challenge(&[&format!(r#"Basic realm="r", {text}"#)]), Some(bearer));
        assert_eq!(challenge(&[r#"Basic realm="r""#]), Some(AuthChallenge::Basic));
        assert_eq!(challenge(&["Bearer service=\"s\""]), Some(AuthChallenge::Basic));
        assert_eq!(challenge(&[]), None);
    }

    #[test]
    fn password_goes_over_http_only_to_loopback_or_from_a_plain_registry() {
        let password = RegistryAuth::Basic("lab".to_owned(), "secret".to_owned());
        let allowed = |realm, scheme, credentials| token_url(realm, scheme, credentials).is_ok();
        assert!(allowed("https://auth.example/token", "https", &password));
        assert!(!allowed("http://auth.example/token", "https", &password));
        assert!(!allowed("HTTP://127.0.0.1.auth.example/token", "https", &password));
        assert!(!allowed("http://user@auth.example/token", "https", &password));
        assert!(allowed("http://auth.example/token", "https", &RegistryAuth::Anonymous));
        assert!(allowed("http://auth.example/token", "http", &password));
        assert!(allowed("http://127.0.0.1:5001/token", "https", &password));
        assert!(allowed("http://[::1]:5001/token", "https", &password));
        assert!(!allowed("ftp://auth.example/token", "https", &password));
        assert!(!allowed("/token", "https", &password));
    }
}
