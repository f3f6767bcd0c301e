//! One request to a registry: address, credentials, deadline, and what an answer means.
//!
//! `oci-client` answers the authentication challenge: it finds the token server and gets the token. Manifests and blobs
//! are requested here, with that token, since its own calls read a manifest of any length into memory, drop its
//! `Content-Type`, `Retry-After` and the ranges that blobs come in, and never ask for a new token when one has expired.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use super::message::readable;
use super::{Deadlines, Place, PlainHttp, RegistryError, RegistryOptions};
use crate::image::Name;

/// Most redirects that are followed: as browsers and Go's client do.
const REDIRECTS_MAX: usize = 10;

/// How much is read of the body of an error, in bytes.
const ERROR_BODY_MAX: usize = 16 << 10;

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Registries, as this user may use them. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    options: RegistryOptions,
    /// Certificate authorities beside the system's, in PEM.
    authorities: Vec<Vec<u8>>,
    loopback: Side,
    remote: Side,
    /// What each repository was last authorized with. Held while a token is fetched, so that layers which find it expired at
    /// the same time fetch one.
    tokens: Mutex<HashMap<Name, Authorization>>,
}

/// The clients for one kind of address: proxies of the environment are never for loopback.
struct Side {
    kind: Kind,
    scheme: &'static str,
    http: reqwest::Client,
    /// Made when a registry first asks for credentials.
    oci: OnceCell<oci_client::Client>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loopback,
    Remote,
}

/// What the `Authorization` header is made of.
#[derive(Clone, PartialEq, Eq)]
enum Authorization {
    Bearer(String),
    Basic(String, String),
}

/// What is requested.
pub(super) struct Request<'a> {
    pub(super) place: &'a Place,
    /// Path behind `/v2/<repository>/`.
    pub(super) path: String,
    /// Media types that are wanted.
    pub(super) accept: Option<String>,
    /// First byte that is wanted, where it is not 0.
    pub(super) from: u64,
}

impl Registry {
    /// Sets up the clients; connects to nothing.
    ///
    /// # Errors
    /// [`RegistryError::CaFile`] and [`RegistryError::TlsSetup`].
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        // Where a provider is installed already, it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = authorities(&options)?;
        let side = |kind| {
            let scheme = match (options.plain_http, kind) {
                (PlainHttp::Always, _) | (PlainHttp::Loopback, Kind::Loopback) => "http",
                (PlainHttp::Never, _) | (PlainHttp::Loopback, Kind::Remote) => "https",
            };
            Ok(Side { kind, scheme, http: http_client(&options, &authorities, kind)?, oci: OnceCell::new() })
        };
        let (loopback, remote) = (side(Kind::Loopback)?, side(Kind::Remote)?);
        Ok(Self(Arc::new(Inner { options, authorities, loopback, remote, tokens: Mutex::default() })))
    }

    /// What it was made with.
    #[must_use]
    pub fn options(&self) -> &RegistryOptions {
        &self.0.options
    }

    fn side(&self, host: &str) -> &Side {
        if is_loopback(host) { &self.0.loopback } else { &self.0.remote }
    }

    /// Requests once (twice, if the first answer is that credentials are needed or no longer good).
    ///
    /// The response is a success; its body has not been read.
    pub(super) async fn request(&self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let name = request.place.name();
        let used = self.0.tokens.lock().await.get(name).cloned();
        let response = self.send(request, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_registry(name, &response)? {
            return self.judge(request.place, response).await;
        }
        let Some(authorization) = self.authorize(request.place, used).await? else {
            return self.judge(request.place, response).await;
        };
        let response = self.send(request, Some(&authorization)).await?;
        self.judge(request.place, response).await
    }

    async fn send(
        &self,
        request: &Request<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let name = request.place.name();
        let host = host(name)?;
        let (side, deadlines) = (self.side(host), &self.0.options.deadlines);
        let url = format!("{}://{}/v2/{}/{}", side.scheme, api_host(name)?, name.repository(), request.path);
        let mut builder = side.http.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = &request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        builder = match authorization {
            Some(Authorization::Bearer(token)) => builder.bearer_auth(token),
            Some(Authorization::Basic(user, password)) => builder.basic_auth(user, Some(password)),
            None => builder,
        };
        if request.from > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.from));
        }
        tracing::trace!(place = %request.place, from = request.from, "request");
        match timeout(deadlines.connect + deadlines.response, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(RegistryError::transport(request.place, source, deadlines)),
            Err(_) => Err(RegistryError::Deadline {
                place: request.place.clone(),
                awaited: "answer",
                after: deadlines.connect + deadlines.response,
            }),
        }
    }

    /// Whether a response is the registry's own and not that of a storage it redirected to: credentials are for it alone.
    fn is_registry(&self, name: &Name, response: &Response) -> Result<bool, RegistryError> {
        let url = response.url();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let found = format!("{}{port}", url.host_str().unwrap_or_default());
        let api_host = api_host(name)?;
        // The URL leaves out the port that belongs to its scheme.
        let default_port = if url.scheme() == "http" { ":80" } else { ":443" };
        let wanted = api_host.strip_suffix(default_port).unwrap_or(&api_host);
        Ok(found.eq_ignore_ascii_case(wanted))
    }

    /// Gets a token, or the right to use a password; `None` where the registry is asked anonymously and has no token server.
    async fn authorize(
        &self,
        place: &Place,
        used: Option<Authorization>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let name = place.name();
        let mut tokens = self.0.tokens.lock().await;
        let current = tokens.get(name).cloned();
        if current != used {
            return Ok(current);
        }
        let deadlines = &self.0.options.deadlines;
        let credentials = (self.0.options.auth.find(name, deadlines.helper).await).map_err(|source| {
            RegistryError::Credentials { place: place.clone(), source: Box::new(source) }
        })?;
        let side = self.side(host(name)?);
        let oci =
            side.oci.get_or_try_init(|| async { self.oci_client(side) }).await.map_err(
                |error| match error {
                    OciDistributionError::RequestError(source) => RegistryError::TlsSetup(source),
                    other => RegistryError::Token { place: place.clone(), source: Box::new(other) },
                },
            )?;
        let image = oci_reference(name)?;
        let after = deadlines.connect + deadlines.response;
        let pull = oci_client::RegistryOperation::Pull;
        let token = match timeout(after, oci.auth(&image, &credentials, pull)).await {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(token_error(place, error, deadlines)),
            Err(_) => {
                return Err(RegistryError::Deadline { place: place.clone(), awaited: "token", after });
            }
        };
        let authorization = match (token, credentials) {
            (Some(token), _) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Authorization::Bearer(token)
            }
            (Some(_), _) => {
                let message = "the token server sent a token that cannot be used".to_owned();
                return Err(RegistryError::Unauthorized { place: place.clone(), message });
            }
            (None, RegistryAuth::Basic(user, password)) => Authorization::Basic(user, password),
            (None, _) => return Ok(None),
        };
        tokens.insert(name.clone(), authorization.clone());
        Ok(Some(authorization))
    }

    /// Makes the client that gets tokens.
    fn oci_client(&self, side: &Side) -> Result<oci_client::Client, OciDistributionError> {
        // Its constructor panics where the system has no certificate authorities, so that is found out first.
        reqwest::Client::builder().build()?;
        let deadlines = &self.0.options.deadlines;
        // Naming a proxy that is for no address is the one way to keep it from those of the environment.
        let (http_proxy, no_proxy) = match side.kind {
            Kind::Loopback => (Some("http://127.0.0.1:9".to_owned()), Some("*,0.0.0.0/0,::/0".to_owned())),
            Kind::Remote => (None, None),
        };
        let pem = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: data.clone() };
        oci_client::Client::try_from(ClientConfig {
            protocol: if side.scheme == "http" { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: self.0.authorities.iter().map(pem).collect(),
            platform_resolver: None,
            read_timeout: Some(deadlines.response),
            connect_timeout: Some(deadlines.connect),
            user_agent: USER_AGENT,
            http_proxy,
            no_proxy,
            ..ClientConfig::default()
        })
    }

    /// Passes on a success and turns everything else into its error.
    async fn judge(&self, place: &Place, response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(response);
        }
        let seconds =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let message = self.explanation(response).await;
        let (place, code) = (place.clone(), status.as_u16());
        Err(match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { place, message },
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { place, message },
            StatusCode::FORBIDDEN => RegistryError::Denied { place, message },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { place, retry_after, message },
            // A server that knows no such range is asked for everything; see `Download`.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                RegistryError::Range { place, from: 0, got: status.to_string() }
            }
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Server { place, status: code, retry_after, message }
            }
            _ => RegistryError::Status { place, status: code, message },
        })
    }

    /// The start of an error's body; as much as comes in time.
    async fn explanation(&self, mut response: Response) -> String {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(bytes)) = response.chunk().await {
                body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BODY_MAX - body.len())]);
                if body.len() == ERROR_BODY_MAX {
                    break;
                }
            }
        };
        // What has come by then is enough.
        let _ = timeout(self.0.options.deadlines.idle, read).await;
        readable(&body)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.0.options).finish_non_exhaustive()
    }
}

fn token_error(place: &Place, error: OciDistributionError, deadlines: &Deadlines) -> RegistryError {
    match error {
        OciDistributionError::AuthenticationFailure(said) => {
            RegistryError::Unauthorized { place: place.clone(), message: readable(said.as_bytes()) }
        }
        OciDistributionError::RequestError(source) => RegistryError::transport(place, source, deadlines),
        other => RegistryError::Token { place: place.clone(), source: Box::new(other) },
    }
}

fn host(name: &Name) -> Result<&str, RegistryError> {
    name.host().ok_or_else(|| RegistryError::Local(name.clone()))
}

/// The form `oci-client` takes; the tag has no part in authorization.
fn oci_reference(name: &Name) -> Result<oci_client::Reference, RegistryError> {
    let (host, repository) = (host(name)?.to_owned(), name.repository().to_owned());
    Ok(oci_client::Reference::with_tag(host, repository, "latest".to_owned()))
}

/// Where the registry's API is: Docker Hub's is not at the host that its names carry.
fn api_host(name: &Name) -> Result<String, RegistryError> {
    Ok(oci_reference(name)?.resolve_registry().to_owned())
}

/// Whether a host, with or without port, is this machine by its form.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn authorities(options: &RegistryOptions) -> Result<Vec<Vec<u8>>, RegistryError> {
    let read = |path: &PathBuf| {
        let wrong = |source| RegistryError::CaFile { path: path.clone(), source };
        let pem = std::fs::read(path).map_err(wrong)?;
        match reqwest::Certificate::from_pem_bundle(&pem) {
            Ok(found) if !found.is_empty() => Ok(pem),
            _ => Err(wrong(io::Error::new(io::ErrorKind::InvalidData, "it holds no certificate in PEM"))),
        }
    };
    options.ca_files.iter().map(read).collect()
}

fn http_client(
    options: &RegistryOptions,
    authorities: &[Vec<u8>],
    kind: Kind,
) -> Result<reqwest::Client, RegistryError> {
    let mut all = Vec::new();
    for pem in authorities {
        all.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(RegistryError::TlsSetup)?);
    }
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(options.deadlines.connect)
            .redirect(redirects());
        if kind == Kind::Loopback { builder.no_proxy() } else { builder }
    };
    builder().tls_certs_merge(all.clone()).build().or_else(|error| {
        // A system without any certificate authority can still use registries on plain HTTP.
        tracing::warn!(%error, "certificates of public authorities are not trusted");
        builder().tls_certs_only(all).build().map_err(RegistryError::TlsSetup)
    })
}

/// Follows redirects, which drop `Authorization` on the way to another host or port, but never from HTTPS down to HTTP.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let insecure = attempt.previous().last().is_some_and(|url| url.scheme() == "https")
            && attempt.url().scheme() != "https";
        if insecure {
            attempt.error("redirected from HTTPS to HTTP")
        } else if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("redirected more than 10 times")
        } else {
            attempt.follow()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_form() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
            "LOCALHOST:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1:5000", "[::2]", "docker.io", "128.0.0.1", "0.0.0.0:5000"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn docker_hub_has_its_api_elsewhere() {
        assert_eq!(api_host(&"docker.io/library/a".parse().unwrap()).unwrap(), "index.docker.io");
        assert_eq!(api_host(&"localhost:5000/a".parse().unwrap()).unwrap(), "localhost:5000");
        assert!(matches!(api_host(&"lab/a".parse().unwrap()), Err(RegistryError::Local(_))));
    }

    #[test]
    fn bad_certificate_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let new =
            || Registry::new(RegistryOptions { ca_files: vec![path.clone()], ..RegistryOptions::default() });
        assert!(matches!(new(), Err(RegistryError::CaFile { .. })));
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(new(), Err(RegistryError::CaFile { .. })));
    }
}
