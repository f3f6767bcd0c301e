//! The HTTP clients: certificate authorities, proxies and redirects.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::redirect::Policy;

use super::{RegistryError, RegistryOptions};

/// Maximum number of redirects that are followed: the limit of browsers and of Go's HTTP client.
const REDIRECTS_MAX: usize = 10;

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

/// Reads the PEM files of the additional certificate authorities, and checks that each has a certificate.
pub(super) fn read_authorities(options: &RegistryOptions) -> Result<Vec<Vec<u8>>, RegistryError> {
    let read = |path: &PathBuf| {
        let error = |source| RegistryError::CaFile { path: path.clone(), source };
        let pem = std::fs::read(path).map_err(error)?;
        match reqwest::Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => Ok(pem),
            _ => Err(error(io::Error::new(io::ErrorKind::InvalidData, "it contains no PEM certificate"))),
        }
    };
    options.ca_files.iter().map(read).collect()
}

/// Sets up the HTTP client for one kind of host.
pub(super) fn client(
    options: &RegistryOptions,
    authorities: &[Vec<u8>],
    kind: HostKind,
) -> Result<reqwest::Client, RegistryError> {
    let mut certificates = Vec::new();
    for pem in authorities {
        certificates.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(RegistryError::TlsSetup)?);
    }
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(options.deadlines.connect)
            .redirect(redirects());
        if kind == HostKind::Loopback { builder.no_proxy() } else { builder }
    };
    builder().tls_certs_merge(certificates.clone()).build().or_else(|error| {
        // A system without certificate authorities can still use plain HTTP and the additional authorities.
        tracing::warn!(%error, "cannot load the system's certificate authorities");
        builder().tls_certs_only(certificates).build().map_err(RegistryError::TlsSetup)
    })
}

/// Follows redirects, except from HTTPS to HTTP. A redirect to another host or port drops the `Authorization` header.
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
