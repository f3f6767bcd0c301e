//! The HTTP clients: certificates and proxies for each host.
//!
//! Most hosts share one of two clients, for loopback and for all other addresses. A host with certificates of its own has a
//! client of its own, so that a client certificate is offered to no other host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::redirect::Policy;

use super::certificates::HostCertificates;
use super::{RegistryError, RegistryOptions};
use crate::os::ignore_poison;

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Whether a host is this machine. Requests to loopback addresses never use the proxies of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostKind {
    Loopback,
    Remote,
}

impl HostKind {
    /// Classifies a host, with or without a port, by its spelling alone.
    pub(super) fn of(host: &str) -> Self {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let is_loopback = name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if is_loopback { Self::Loopback } else { Self::Remote }
    }
}

/// The clients for all hosts.
pub(super) struct HttpClients {
    connect: Duration,
    certificate_dirs: Vec<PathBuf>,
    loopback: reqwest::Client,
    remote: reqwest::Client,
    /// The client for a host that is asked on behalf of a registry; `None` for one of the two above.
    own: Mutex<HashMap<(String, String), Option<reqwest::Client>>>,
}

impl HttpClients {
    /// Sets up the clients. Opens no connection.
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, RegistryError> {
        // Fails if a provider is installed already, which can only be the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connect = options.deadlines.connect;
        let shared = |kind| build(connect, kind, &HostCertificates::default());
        Ok(Self {
            connect,
            certificate_dirs: options.certificate_dirs.clone(),
            loopback: shared(HostKind::Loopback)?,
            remote: shared(HostKind::Remote)?,
            own: Mutex::default(),
        })
    }

    /// Whether certificates are set up for a registry, which then uses TLS even on loopback.
    pub(super) fn has_certificates(&self, registry: &str) -> Result<bool, RegistryError> {
        self.of_host(registry, registry)?;
        let key = (registry.to_owned(), registry.to_owned());
        Ok(ignore_poison(self.own.lock()).get(&key).is_some_and(Option::is_some))
    }

    /// Returns the client for `host`, which is `registry` itself, or a host to which the registry leads: its token server, or
    /// where its blobs are. The certificate authorities of the registry are trusted for those too; docker and podman do the same.
    pub(super) fn of_host(&self, host: &str, registry: &str) -> Result<reqwest::Client, RegistryError> {
        let kind = HostKind::of(host);
        let mut own = ignore_poison(self.own.lock());
        let key = (host.to_owned(), registry.to_owned());
        let client = match own.get(&key) {
            Some(client) => client.clone(),
            None => {
                let mut certificates = HostCertificates::read(&self.certificate_dirs, host)?;
                if host != registry {
                    let of_registry = HostCertificates::read(&self.certificate_dirs, registry)?;
                    certificates.authorities.extend(of_registry.authorities);
                }
                let client = match certificates.is_empty() {
                    true => None,
                    false => Some(build(self.connect, kind, &certificates)?),
                };
                own.insert(key, client.clone());
                client
            }
        };
        let shared = match kind {
            HostKind::Loopback => &self.loopback,
            HostKind::Remote => &self.remote,
        };
        Ok(client.unwrap_or_else(|| shared.clone()))
    }
}

/// Sets up a client. It follows no redirects: each of them may need another client and other credentials.
fn build(
    connect: Duration,
    kind: HostKind,
    certificates: &HostCertificates,
) -> Result<reqwest::Client, RegistryError> {
    let mut authorities = Vec::new();
    for pem in &certificates.authorities {
        authorities.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(RegistryError::TlsSetup)?);
    }
    let identity = match &certificates.identity {
        Some(pem) => Some(reqwest::Identity::from_pem(pem).map_err(RegistryError::TlsSetup)?),
        None => None,
    };
    let builder = || {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(connect)
            .redirect(Policy::none());
        if let Some(identity) = &identity {
            builder = builder.identity(identity.clone());
        }
        if kind == HostKind::Loopback { builder.no_proxy() } else { builder }
    };
    builder().tls_certs_merge(authorities.clone()).build().or_else(|error| {
        // A system without certificate authorities can still use plain HTTP and the additional authorities.
        tracing::warn!(%error, "cannot load the system's certificate authorities");
        builder().tls_certs_only(authorities).build().map_err(RegistryError::TlsSetup)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_recognized_by_their_spelling() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
            "LOCALHOST:1",
        ] {
            assert_eq!(HostKind::of(host), HostKind::Loopback, "{host}");
        }
        for host in ["localhost.example", "10.0.0.1:5000", "[::2]", "docker.io", "128.0.0.1", "0.0.0.0:5000"]
        {
            assert_eq!(HostKind::of(host), HostKind::Remote, "{host}");
        }
    }
}
