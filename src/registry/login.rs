//! Checks a user name and a password against a registry before they are stored.

use reqwest::StatusCode;
use reqwest::header::{ACCEPT_ENCODING, HeaderValue};

use super::auth::Login;
use super::authorize::Grant;
use super::challenge::AuthChallenges;
use super::client::RegistryRequest;
use super::endpoint::Endpoint;
use super::exchange::{HttpRequest, Reply};
use super::retry::with_retries;
use super::{Registry, RegistryError, RemoteObject};

/// The result of [`Registry::check_login`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginCheck {
    /// The registry has accepted the login.
    Accepted,
    /// The registry requires no login for its base address, so nothing is known.
    NotRequired,
}

impl Registry {
    /// Checks a user name and a password against a registry.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; [`RegistryError::LoginRefused`] if they are wrong.
    pub async fn check_login(
        &self,
        host: &str,
        user: &str,
        password: &str,
    ) -> Result<LoginCheck, RegistryError> {
        let (object, endpoint) = (RemoteObject::login(host), Endpoint::of_host(host));
        let login = Login::typed(user, password);
        with_retries(self.options().deadlines.backoff, async || {
            let reply = self.ask_base(&object, &endpoint, None).await?;
            let is_refusal = reply.status() == StatusCode::UNAUTHORIZED && reply.from_origin;
            let granted = match AuthChallenges::of(reply.response.headers()).filter(|_| is_refusal) {
                Some(challenges) => self.answer(&object, &endpoint, challenges, Some(login.clone())).await?,
                None => None,
            };
            let request = RegistryRequest { object: &object, path: String::new(), accept: None, from: 0 };
            if granted.is_none() {
                self.check_status(&request, reply, None).await?;
                return Ok(LoginCheck::NotRequired);
            }
            let reply = self.ask_base(&object, &endpoint, granted.as_ref()).await?;
            self.check_status(&request, reply, granted.as_ref()).await?;
            Ok(LoginCheck::Accepted)
        })
        .await
    }

    async fn ask_base(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        grant: Option<&Grant>,
    ) -> Result<Reply, RegistryError> {
        let mut request = HttpRequest::get(object, endpoint, self.url(endpoint, "")?);
        request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        request.authorization = grant.map(|grant| &grant.authorization);
        self.exchange(request).await
    }
}
