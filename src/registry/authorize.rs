//! Decides which credentials a request carries: those that answered the last challenge, renewed before they end.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{Duration, Instant};

use super::auth::{Login, LoginSecret};
use super::challenge::{AuthChallenges, BearerChallenge};
use super::endpoint::Endpoint;
use super::exchange::{Authorization, HttpRequest};
use super::{Registry, RegistryError, RemoteObject};

/// A token is renewed when this time, or a quarter of its lifetime if that is shorter, is left.
const RENEWAL_MARGIN: Duration = Duration::from_secs(30);

/// Credentials that an endpoint has accepted, or is likely to accept.
#[derive(Clone)]
pub(super) struct Grant {
    pub(super) authorization: Authorization,
    /// The stored login that the credentials come from; `None` for a token that everybody gets.
    pub(super) login: Option<Login>,
    /// How to renew the token.
    renewal: Option<TokenRenewal>,
}

#[derive(Clone)]
struct TokenRenewal {
    challenge: BearerChallenge,
    /// When the token should be renewed; `None` if it does not end.
    due: Option<Instant>,
}

/// The latest grant for each endpoint.
///
/// The lock of a grant is held while a token is fetched. If several layers find an expired token at the same time, only one of
/// them fetches a new one.
#[derive(Default)]
pub(super) struct Grants(Mutex<HashMap<Endpoint, Arc<Mutex<Option<Grant>>>>>);

impl Grants {
    async fn of(&self, endpoint: &Endpoint) -> Arc<Mutex<Option<Grant>>> {
        let mut grants = self.0.lock().await;
        if let Some(grant) = grants.get(endpoint) {
            return Arc::clone(grant);
        }
        Arc::clone(grants.entry(endpoint.clone()).or_default())
    }
}

impl Grant {
    /// The user's own token or password, which no token server has to turn into a token.
    fn own(login: Login, authorization: Authorization) -> Self {
        Self { authorization, login: Some(login), renewal: None }
    }
}

impl Registry {
    /// Returns the credentials for the next request to an endpoint. Renews a token that is about to end.
    pub(super) async fn current_grant(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
    ) -> Result<Option<Grant>, RegistryError> {
        let grant = self.grants().of(endpoint).await;
        let mut grant = grant.lock().await;
        let Some(Grant { login, renewal: Some(renewal), .. }) = &*grant else { return Ok(grant.clone()) };
        if renewal.due.is_some_and(|due| due <= Instant::now()) {
            let (login, challenge) = (login.clone(), renewal.challenge.clone());
            *grant = Some(self.token_grant(object, endpoint, challenge, login).await?);
        }
        Ok(grant.clone())
    }

    /// Answers the refusal (401) of a request, which carried `rejected`. Returns `None` if the user has nothing to answer with.
    ///
    /// If another task has replaced the rejected grant already, returns the new one.
    pub(super) async fn authorize(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        rejected: Option<&Grant>,
        challenges: Option<AuthChallenges>,
    ) -> Result<Option<Grant>, RegistryError> {
        let grant = self.grants().of(endpoint).await;
        let mut grant = grant.lock().await;
        let authorization = |grant: &Grant| grant.authorization.clone();
        if grant.as_ref().map(authorization) != rejected.map(authorization) {
            return Ok(grant.clone());
        }
        let login = self.login(object, endpoint).await?;
        let challenges = match challenges {
            Some(challenges) => challenges,
            None => self.base_challenges(object, endpoint).await?,
        };
        *grant = self.answer(object, endpoint, challenges, login).await?;
        Ok(grant.clone())
    }

    /// Returns credentials for a repository that the registry hides (403, 404) from users without a login, if there is a login.
    ///
    /// A failure is a warning: the repository may just not exist.
    pub(super) async fn authorize_hidden(&self, object: &RemoteObject, endpoint: &Endpoint) -> Option<Grant> {
        let granted = async {
            let Some(login) = self.login(object, endpoint).await? else { return Ok(None) };
            let challenges = self.base_challenges(object, endpoint).await?;
            self.answer(object, endpoint, challenges, Some(login)).await
        };
        let granted = granted.await.unwrap_or_else(|error: RegistryError| {
            tracing::warn!("{}", crate::error::chain_text(&error));
            None
        });
        let grant = self.grants().of(endpoint).await;
        if granted.is_some() {
            grant.lock().await.clone_from(&granted);
        }
        granted
    }

    async fn login(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
    ) -> Result<Option<Login>, RegistryError> {
        let auth = &self.options().auth;
        let found = auth.find(&endpoint.host, &endpoint.repository, self.options().deadlines.helper).await;
        found
            .map_err(|source| RegistryError::Credentials { object: object.clone(), source: Box::new(source) })
    }

    /// Answers challenges with a login, or without one. Returns `None` if no answer is possible.
    pub(super) async fn answer(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        challenges: AuthChallenges,
        login: Option<Login>,
    ) -> Result<Option<Grant>, RegistryError> {
        let AuthChallenges { bearer, basic, unsupported } = challenges;
        let secret = login.as_ref().map(|login| login.secret.clone());
        match (secret, bearer, login) {
            (Some(LoginSecret::RegistryToken(token)), _, Some(login)) => {
                Ok(Some(Grant::own(login, Authorization::Bearer(token))))
            }
            (_, Some(challenge), login) => {
                Ok(Some(self.token_grant(object, endpoint, challenge, login).await?))
            }
            // Without any challenge the registry leaves the scheme open, and this is the only one without a token server.
            (Some(LoginSecret::Password { user, password }), None, Some(login))
                if basic || unsupported.is_empty() =>
            {
                Ok(Some(Grant::own(login, Authorization::Basic(user, password))))
            }
            (Some(LoginSecret::IdentityToken(_)), None, Some(login)) => {
                let reason =
                    format!("{} takes no identity token, but only a user name and a password", endpoint.host);
                Err(RegistryError::LoginUnusable { object: object.clone(), login: login.to_string(), reason })
            }
            _ if !basic && !unsupported.is_empty() => {
                let schemes = unsupported.join(", ");
                Err(RegistryError::Scheme { object: object.clone(), host: endpoint.host.clone(), schemes })
            }
            _ => Ok(None),
        }
    }

    async fn token_grant(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
        challenge: BearerChallenge,
        login: Option<Login>,
    ) -> Result<Grant, RegistryError> {
        // The time of the request, so that a slow answer does not make the token look younger.
        let start = Instant::now();
        let token = self.fetch_token(object, endpoint, &challenge, login.as_ref()).await?;
        let margin = RENEWAL_MARGIN.min(token.lifetime / 4);
        let due = start.checked_add(token.lifetime - margin);
        let renewal = Some(TokenRenewal { challenge, due });
        Ok(Grant { authorization: Authorization::Bearer(token.value), login, renewal })
    }

    /// Returns the challenges of `/v2/`, for registries that send none with the refusal of a manifest or blob.
    async fn base_challenges(
        &self,
        object: &RemoteObject,
        endpoint: &Endpoint,
    ) -> Result<AuthChallenges, RegistryError> {
        let base = Endpoint::of_host(&endpoint.host);
        let reply = self.exchange(HttpRequest::get(object, &base, self.url(&base, "")?)).await?;
        // Another host, to which the registry redirected, must not choose the token server.
        let challenges = if reply.from_origin { AuthChallenges::of(reply.response.headers()) } else { None };
        Ok(challenges.unwrap_or_default())
    }
}
