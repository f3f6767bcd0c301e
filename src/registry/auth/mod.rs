//! Logins for registries: from the files of docker and podman, and from the helper programs that they name.
//!
//! Logins are looked up only when a registry refuses a request without one, so a broken file or helper does not affect images
//! that need no login.

mod credential_helper;
mod edit;
mod error;
mod file;
mod login;
mod places;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

pub use edit::{add_login, remove_all_logins, remove_login};
pub use error::AuthError;
use file::CredentialFile;
pub(crate) use login::{Login, LoginSecret};
use places::AuthPlaces;

use crate::os::ignore_poison;

/// The files with logins, in order of precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFiles(Vec<PathBuf>);

impl AuthFiles {
    /// The files that docker and podman write for this user, in podman's order; see `rcx-imagefs-registries(7)`.
    #[must_use]
    pub fn of_user() -> Self {
        Self(of_environment(|places| places.files()))
    }

    /// Uses only `files`.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    /// The file that `login` writes unless another one is given: that of `podman login`.
    #[must_use]
    pub fn written_by_login() -> PathBuf {
        of_environment(|places| places.written())
    }

    /// The files.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Returns the login for a repository from the first file that has one.
    pub(super) async fn find(
        &self,
        host: &str,
        repository: &str,
        deadline: Duration,
    ) -> Result<Option<Login>, AuthError> {
        for path in &self.0 {
            let Some(file) = CredentialFile::read(path).await? else { continue };
            if let Some(login) = file.find(path, host, repository, deadline).await? {
                tracing::debug!("found {login} for {host}");
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

fn of_environment<T>(choose: impl FnOnce(&AuthPlaces<'_>) -> T) -> T {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    choose(&AuthPlaces { variable: &variable, uid: rustix::process::getuid().as_raw() })
}

/// Logs a warning unless this process has logged it before. Logins are looked up several times during one pull.
fn warn_once(text: String) {
    static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if ignore_poison(LOGGED.lock()).insert(text.clone()) {
        tracing::warn!("{text}");
    }
}
