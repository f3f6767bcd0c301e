//! The codes of errors from registries, and what users can do about them.

use std::ffi::OsString;

use super::RegistryError;
use super::http::HostKind;
use crate::error::ErrorCode;
use crate::image::ManifestError;

/// The variables that name a proxy, in the order in which they are used for a registry.
const PROXY_VARIABLES: &[&str] = &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Says that requests to a host may go through a proxy, which then is what cannot be reached.
fn proxy_hint(host: &str, variable: impl Fn(&str) -> Option<OsString>) -> String {
    let is_set = |name: &&&str| variable(name).is_some_and(|value| !value.is_empty());
    match PROXY_VARIABLES.iter().find(is_set) {
        Some(name) if HostKind::of(host) == HostKind::Remote => {
            format!(", and that the proxy in ${name} is right")
        }
        _ => String::new(),
    }
}

impl RegistryError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Local(_) | Self::Address { .. } => ErrorCode::Reference,
            Self::NotFound { .. } | Self::NoRepository { .. } => ErrorCode::NotFound,
            Self::Unauthorized { .. }
            | Self::Denied { .. }
            | Self::LoginRefused { .. }
            | Self::Scheme { .. } => ErrorCode::Unauthorized,
            Self::RateLimited { .. } => ErrorCode::RateLimited,
            Self::Deadline { .. } => ErrorCode::Timeout,
            Self::Connect { .. } | Self::Tls { .. } | Self::Broken { .. } | Self::Short { .. } => {
                ErrorCode::Network
            }
            Self::Server { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Html { .. }
            | Self::Range { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::UploadLost { .. }
            | Self::Token { .. } => ErrorCode::Registry,
            Self::NotDistributable { .. } => ErrorCode::NotDistributable,
            Self::Read { source, .. } => ErrorCode::of_io(source),
            Self::Damaged { .. } => ErrorCode::Damaged,
            Self::Document { source, .. } => source.code(),
            Self::TooLong { .. } => ErrorCode::Document,
            Self::Digest { .. } | Self::Length { .. } => ErrorCode::WrongContent,
            Self::Credentials { source, .. } => source.code(),
            Self::LoginUnusable { .. } => ErrorCode::Credentials,
            Self::Certificate { .. } | Self::TlsSetup(_) => ErrorCode::Configuration,
        }
    }

    /// What the user can do about this error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unauthorized { object, .. } | Self::Denied { object, .. } => Some(format!(
                "log in with `rcx-imagefs login {0}`; a login of docker or podman is used too (`docker login {0}`)",
                object.host()
            )),
            Self::LoginRefused { object, .. } | Self::LoginUnusable { object, .. } => Some(format!(
                "log in again with `rcx-imagefs login {0}`, or remove the login with `rcx-imagefs logout {0}`",
                object.host()
            )),
            Self::NotFound { object, .. } if object.is_manifest() => Some(
                "check the name and the tag; some registries also report this for a repository that requires a login"
                    .to_owned(),
            ),
            Self::NoRepository { .. } => {
                Some("create the repository or its project at the registry, and check the name".to_owned())
            }
            Self::TooLarge { .. } => Some(
                "raise the limit of the registry or of the proxy before it; for nginx, that is client_max_body_size"
                    .to_owned(),
            ),
            Self::Damaged { .. } => {
                Some("`rcx-imagefs verify --repair` fetches damaged blobs again".to_owned())
            }
            Self::RateLimited { object, .. } => Some(format!(
                "try again later, or log in with `rcx-imagefs login {}` for a higher limit",
                object.host()
            )),
            Self::Tls { object, .. } => Some(format!(
                "use --plain-http if this registry serves plain HTTP; put the certificate of its authority into /etc/containers/certs.d/{}/ca.crt if it is not a public one, and a client certificate beside it if the registry requires one",
                object.host()
            )),
            Self::Connect { object, .. } => Some(format!(
                "check that the registry `{}` exists and is running{}",
                object.host(),
                proxy_hint(object.host(), |name| std::env::var_os(name))
            )),
            Self::Document { source, .. } if matches!(**source, ManifestError::NoPlatform { .. }) => {
                Some("choose a platform with --platform OS/ARCH".to_owned())
            }
            Self::TlsSetup(_) => Some("install the package ca-certificates".to_owned()),
            Self::Credentials { source, .. } => source.hint(),
            _ => None,
        }
    }
}
