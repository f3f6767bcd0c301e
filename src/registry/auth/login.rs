//! A stored login: what it consists of, and where it comes from.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A login for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// The secret.
    pub(crate) secret: LoginSecret,
    /// Where the login is from, for messages: a file or a credential helper. Empty if the user has just typed it.
    pub(crate) origin: String,
}

/// The secret of a login.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum LoginSecret {
    /// A user name with a password or an access token.
    Password {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token, which a token server exchanges for tokens (distribution-spec, "OAuth2 Token Authentication").
    IdentityToken(String),
    /// A token for the registry itself.
    RegistryToken(String),
}

impl Login {
    /// The login of a user who types the password.
    pub(crate) fn typed(user: &str, password: &str) -> Self {
        let secret = LoginSecret::Password { user: user.to_owned(), password: password.to_owned() };
        Self { secret, origin: String::new() }
    }
}

/// Only the kind: a secret must not reach a log.
impl fmt::Debug for LoginSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(..)"),
        }
    }
}

/// Describes the login without its secret.
impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.secret {
            LoginSecret::Password { user, .. } => write!(f, "the login of `{user}`")?,
            LoginSecret::IdentityToken(_) => f.write_str("the identity token")?,
            LoginSecret::RegistryToken(_) => f.write_str("the registry token")?,
        }
        if self.origin.is_empty() { Ok(()) } else { write!(f, " ({})", self.origin) }
    }
}

/// Encodes a user name and a password as credential files and the scheme `Basic` have them (RFC 7617).
pub(super) fn encode(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// Decodes a user name and a password; a password may contain colons.
pub(super) fn decode(text: &str) -> Result<(String, String), &'static str> {
    // Files that were written by hand may lack the padding.
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD
        .decode(text.trim().trim_end_matches('='))
        .map_err(|_| "`auth` is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "`auth` is not UTF-8")?;
    // Some versions of docker padded the password with NUL bytes.
    let (user, password) = text.split_once(':').ok_or("`auth` has no colon between user and password")?;
    Ok((user.to_owned(), password.trim_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_survive_encoding() {
        for (user, password) in [("u", "p"), ("u", "p:q"), ("", ""), ("lab", "öpen sesame")] {
            let expected = (user.to_owned(), password.to_owned());
            assert_eq!(decode(&encode(user, password)), Ok(expected.clone()));
            assert_eq!(decode(encode(user, password).trim_end_matches('=')), Ok(expected));
        }
        assert!(decode("%%").is_err() && decode("YWI=").is_err());
    }

    #[test]
    fn no_secret_is_printed() {
        let login = Login::typed("lab", "hunter2");
        assert!(!format!("{login} {login:?}").contains("hunter2"));
        let token =
            Login { secret: LoginSecret::IdentityToken("hunter2".to_owned()), origin: "f".to_owned() };
        assert!(!format!("{token} {token:?}").contains("hunter2"));
    }
}
