//! Describes a failed connection in the words of an administrator: `connection refused`, `no such host`.
//!
//! The errors of the HTTP client are chains of five or more errors that repeat each other. The cause is near their end.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};

use rustls::CertificateError;

/// What kind of failure an error of the HTTP client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No connection was made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The connection broke, or the server did not speak HTTP.
    Broken,
}

/// Returns the kind and the cause of an error of the HTTP client. Timeouts are the caller's concern.
pub(super) fn describe(error: &reqwest::Error) -> (FailureKind, String) {
    let causes = causes(error);
    if let Some(tls) = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
        return (FailureKind::Tls, describe_tls(tls));
    }
    let kind = if error.is_connect() { FailureKind::Connect } else { FailureKind::Broken };
    let texts = || causes.iter().map(ToString::to_string);
    if let Some(reason) = texts().find_map(|text| describe_proxy(&text)) {
        return (kind, reason);
    }
    // `getaddrinfo` has its own errors, which have no number of the operating system.
    if let Some(text) = texts().find(|text| text.starts_with("failed to lookup address information")) {
        return (kind, describe_lookup(&text));
    }
    let of_io = causes.iter().rev().find_map(|cause| describe_io(cause.downcast_ref::<io::Error>()?));
    let reason = of_io.or_else(|| {
        let innermost = causes.last()?.to_string();
        Some(format!("the connection failed: {innermost}"))
    });
    (kind, reason.unwrap_or_default())
}

/// An error with everything that it wraps.
///
/// `io::Error::source` skips the error that it wraps, so that error is added.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut causes = vec![error];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => cause.source(),
        };
    }
    causes
}

fn describe_lookup(text: &str) -> String {
    match text.rsplit(": ").next().unwrap_or_default() {
        "Name or service not known" | "No address associated with hostname" => "no such host".to_owned(),
        reason => format!("cannot look up the host name: {}", lower_first(reason)),
    }
}

/// The errors of asking a proxy for a connection (CONNECT).
fn describe_proxy(text: &str) -> Option<String> {
    Some(match text.strip_prefix("tunnel error: ")? {
        "proxy authorization required" => "the proxy requires a user name and a password".to_owned(),
        "unsuccessful" => "the proxy refused the connection".to_owned(),
        // Its cause says more.
        "failed to create underlying connection" => return None,
        reason => format!("the proxy failed: {reason}"),
    })
}

fn describe_io(error: &io::Error) -> Option<String> {
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset".to_owned(),
        ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            "the server closed the connection".to_owned()
        }
        _ => {
            let text = io::Error::from_raw_os_error(error.raw_os_error()?).to_string();
            lower_first(text.split(" (os error").next().unwrap_or_default())
        }
    })
}

fn describe_tls(error: &rustls::Error) -> String {
    use rustls::{AlertDescription, Error};
    match error {
        Error::InvalidCertificate(certificate) => {
            format!("certificate is not trusted: {}", describe_certificate(certificate))
        }
        Error::InvalidMessage(_) => "the server does not speak TLS".to_owned(),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server requires a client certificate".to_owned()
        }
        // Some servers also send these if there is no client certificate.
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied,
        ) => "the server requires a client certificate that it accepts".to_owned(),
        Error::AlertReceived(alert) => format!("the server refuses the TLS connection: {alert:?}"),
        error => format!("the TLS connection failed: {error}"),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "its issuer is unknown".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host name".to_owned()
        }
        CertificateError::Revoked => "it was revoked".to_owned(),
        other => lower_first(&other.to_string()),
    }
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_lowercase().to_string());
    first.unwrap_or_default() + characters.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_in_plain_words() {
        let lookup = "failed to lookup address information: Name or service not known";
        assert_eq!(describe_lookup(lookup), "no such host");
        let temporary = "failed to lookup address information: Temporary failure in name resolution";
        assert_eq!(
            describe_lookup(temporary),
            "cannot look up the host name: temporary failure in name resolution"
        );
        let io = |number| describe_io(&io::Error::from_raw_os_error(number));
        assert_eq!(io(libc::ECONNREFUSED).as_deref(), Some("connection refused"));
        assert_eq!(io(libc::EHOSTUNREACH).as_deref(), Some("no route to the host"));
        assert_eq!(io(libc::EACCES).as_deref(), Some("permission denied"));
        assert_eq!(
            describe_proxy("tunnel error: unsuccessful").as_deref(),
            Some("the proxy refused the connection")
        );
        assert_eq!(
            describe_tls(&rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            "certificate is not trusted: its issuer is unknown"
        );
    }
}
