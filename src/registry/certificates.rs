//! Reads the certificates for one host from the `certs.d` directories of docker and podman.
//!
//! `certs.d/HOST[:PORT]/` has certificate authorities (`*.crt`), and a client certificate with its key (`*.cert`, `*.key`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RegistryError;

/// The certificates that an administrator has set up for a host.
#[derive(Debug, Clone, Default)]
pub(super) struct HostCertificates {
    /// Certificate authorities to trust in addition to the system's, as PEM.
    pub(super) authorities: Vec<Vec<u8>>,
    /// The client certificate and its key, as PEM.
    pub(super) identity: Option<Vec<u8>>,
}

impl HostCertificates {
    /// Whether connections to the host need no client of their own.
    pub(super) fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.identity.is_none()
    }

    /// Reads the certificates for `host` from the first of the directories that has a subdirectory for it.
    pub(super) fn read(directories: &[PathBuf], host: &str) -> Result<Self, RegistryError> {
        // The host of a URL may be anything; a name that starts with a dot leads elsewhere.
        if host.is_empty() || host.starts_with('.') || host.contains('/') {
            return Ok(Self::default());
        }
        for directory in directories {
            let directory = directory.join(host);
            match fs::read_dir(&directory) {
                Ok(entries) => {
                    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<BTreeSet<_>>>();
                    return Self::of_files(&paths.map_err(|error| unusable(&directory, error))?);
                }
                // Rootless podman also passes over directories that only root may read.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    tracing::warn!("cannot read {}: {error}; going on without it", directory.display());
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(unusable(&directory, error)),
            }
        }
        Ok(Self::default())
    }

    fn of_files(paths: &BTreeSet<PathBuf>) -> Result<Self, RegistryError> {
        let mut certificates = Self::default();
        let with_extension = |extension: &'static str| {
            paths.iter().filter(move |path| path.extension() == Some(OsStr::new(extension)))
        };
        for path in with_extension("crt") {
            let pem = read(path)?;
            match reqwest::Certificate::from_pem_bundle(&pem) {
                Ok(found) if !found.is_empty() => certificates.authorities.push(pem),
                _ => return Err(unusable(path, "it contains no PEM certificate")),
            }
        }
        for path in with_extension("key") {
            if !paths.contains(&path.with_extension("cert")) {
                let reason = "there is no certificate (`.cert`) for this key";
                return Err(unusable(path, reason));
            }
        }
        for path in with_extension("cert") {
            let key = path.with_extension("key");
            if !paths.contains(&key) {
                let reason = "there is no key (`.key`) for this client certificate; a certificate authority must be named `.crt`";
                return Err(unusable(path, reason));
            }
            if certificates.identity.is_some() {
                tracing::warn!("{} is not used: the host has another client certificate", path.display());
                continue;
            }
            let pem = [read(path)?, b"\n".to_vec(), read(&key)?].concat();
            reqwest::Identity::from_pem(&pem)
                .map_err(|_| unusable(path, "it and its key are not a PEM certificate and a PEM key"))?;
            certificates.identity = Some(pem);
        }
        Ok(certificates)
    }
}

/// The directories of docker and podman, in podman's order: the user's, then the system's.
pub(super) fn directories_of_user() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let of_user = of_user.map(|directory| directory.join("containers/certs.d"));
    of_user.into_iter().chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    fs::read(path).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, reason: impl ToString) -> RegistryError {
    RegistryError::Certificate { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory `certs.d/reg:1` with these files.
    fn read_with(files: &[(&str, &str)]) -> Result<HostCertificates, String> {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("reg:1");
        fs::create_dir(&host).unwrap();
        for (name, content) in files {
            fs::write(host.join(name), content).unwrap();
        }
        HostCertificates::read(&[directory.path().to_owned()], "reg:1").map_err(|error| error.to_string())
    }

    #[test]
    fn error_names_the_file_that_cannot_be_used() {
        for (files, file, reason) in [
            (&[("ca.crt", "hello")][..], "ca.crt", "no PEM certificate"),
            (&[("a.cert", "hello")], "a.cert", "no key (`.key`)"),
            (&[("a.key", "hello")], "a.key", "no certificate (`.cert`)"),
            (&[("a.cert", "hello"), ("a.key", "hello")], "a.cert", "not a PEM certificate"),
        ] {
            let error = read_with(files).unwrap_err();
            assert!(error.contains(&format!("reg:1/{file}")) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn other_files_and_other_hosts_are_passed_over() {
        assert!(read_with(&[("README", "hello")]).unwrap().is_empty());
        let directory = tempfile::tempdir().unwrap();
        let certs = directory.path().join("certs.d");
        fs::create_dir(&certs).unwrap();
        fs::write(directory.path().join("ca.crt"), "hello").unwrap();
        for host in ["..", ".", "", "reg:1", "../certs.d"] {
            assert!(HostCertificates::read(std::slice::from_ref(&certs), host).unwrap().is_empty(), "{host}");
        }
    }
}
