//! Changes credential files as `podman login` and `podman logout` do.
//!
//! Entries and fields that this program does not know are kept. A file is replaced as a whole, so a reader never sees half of
//! it, and only its owner can read the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use serde_json::{Map, Value, json};

use super::error::AuthError;
use super::file::{CredentialFile, bare_host, is_whole_host};
use super::login::encode;
use crate::os::{AtPath as _, PathError, Sharing, lock_until, make_directories};

/// How long to wait for another process that changes a file of the same directory.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The object with one member for each login.
const AUTHS: &str = "auths";

/// A credential file that is being changed. The directory is locked.
struct FileEdit {
    /// The file itself, not a symlink to it.
    path: PathBuf,
    directory: File,
    content: Map<String, Value>,
    parsed: CredentialFile,
}

/// Stores a login for `key`, a host or a namespace of a host. Makes the file and its directory if they do not exist.
///
/// # Errors
///
/// The file cannot be read or written, is not a credential file, or names a helper that would hide the login.
pub fn add_login(path: &Path, key: &str, user: &str, password: &str) -> Result<(), AuthError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        make_directories(directory, Mode::RWXU)?;
    }
    let mut edit = FileEdit::open(path)?;
    let host = key.split('/').next().unwrap_or_default();
    if let Some(helper) = edit.parsed.helper_of(host) {
        return Err(AuthError::HelperTakesPrecedence { path: edit.path, helper, key: key.to_owned() });
    }
    edit.auths().insert(key.to_owned(), json!({"auth": encode(user, password)}));
    edit.write()
}

/// Removes the login for `key`, in all spellings of its host.
///
/// # Errors
///
/// The file has no such login, cannot be read or written, or is not a credential file.
pub fn remove_login(path: &Path, key: &str) -> Result<(), AuthError> {
    let missing = || AuthError::NoLogin { path: path.to_owned(), key: key.to_owned() };
    if !path.exists() {
        return Err(missing());
    }
    let mut edit = FileEdit::open(path)?;
    let is_removed = |stored: &str| {
        stored == key || (is_whole_host(key) && is_whole_host(stored) && bare_host(stored) == bare_host(key))
    };
    let before = edit.auths().len();
    edit.auths().retain(|stored, _| !is_removed(stored));
    if edit.auths().len() == before {
        return Err(missing());
    }
    edit.write()
}

/// Removes all logins of a file. Returns their number.
///
/// # Errors
///
/// The file cannot be read or written, or is not a credential file.
pub fn remove_all_logins(path: &Path) -> Result<usize, AuthError> {
    if !path.exists() {
        return Ok(0);
    }
    let mut edit = FileEdit::open(path)?;
    let count = edit.auths().len();
    if count > 0 {
        edit.auths().clear();
        edit.write()?;
    }
    Ok(count)
}

impl FileEdit {
    /// Locks the directory and reads the file.
    fn open(path: &Path) -> Result<Self, AuthError> {
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::path::absolute(path).at("find", path)?
            }
            Err(error) => return Err(PathError::new("find", path, error).into()),
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = File::open(parent).at("open", parent)?;
        if !lock_until(&directory, Sharing::Exclusive, Some(Instant::now() + LOCK_WAIT)).at("lock", parent)? {
            return Err(AuthError::Busy(parent.to_owned()));
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(PathError::new("read", &path, error).into()),
        };
        let parsed = CredentialFile::parse(&path, &bytes)?;
        let content = match bytes.trim_ascii() {
            b"" => Map::new(),
            bytes => serde_json::from_slice(bytes)
                .map_err(|source| AuthError::Parse { path: path.clone(), source })?,
        };
        Ok(Self { path, directory, content, parsed })
    }

    fn auths(&mut self) -> &mut Map<String, Value> {
        let auths = self.content.entry(AUTHS).or_insert_with(|| json!({}));
        if !auths.is_object() {
            // `null` was parsed as no logins.
            *auths = json!({});
        }
        auths.as_object_mut().expect("made an object above")
    }

    /// Replaces the file.
    fn write(self) -> Result<(), AuthError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        // The lock makes the name unique; a file of this name was left behind by a process that was killed.
        let temporary = self.path.with_file_name(format!(".{name}.new"));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.at("remove", &temporary)?,
        }
        let mut text =
            serde_json::to_vec_pretty(&self.content).map_err(io::Error::from).at("write", &self.path)?;
        text.push(b'\n');
        let written = (|| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            self.directory.sync_all()
        })();
        if written.is_err() {
            // The error of writing matters more.
            let _ = fs::remove_file(&temporary);
        }
        Ok(written.at("write", &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn stored(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn login_is_added_to_a_private_file_and_everything_else_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/containers/auth.json");
        add_login(&path, "reg:1", "u", "p:q").unwrap();
        assert_eq!(stored(&path), json!({"auths": {"reg:1": {"auth": "dTpwOnE="}}}));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        fs::write(&path, r#"{"auths": {"a": {"auth": "YTpi", "email": "x"}}, "HttpHeaders": {"k": "v"}}"#)
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let link = directory.path().join("link.json");
        symlink(&path, &link).unwrap();
        add_login(&link, "reg:1/lab", "u", "p").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(mode(&path), 0o600);
        let expected = json!({
            "auths": {"a": {"auth": "YTpi", "email": "x"}, "reg:1/lab": {"auth": "dTpw"}},
            "HttpHeaders": {"k": "v"},
        });
        assert_eq!(stored(&path), expected);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "a temporary file is left behind"
        );
    }

    #[test]
    fn logout_removes_every_spelling_of_the_host_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        let entry = json!({"auth": "YTpi"});
        let auths = json!({"auths": {
            "reg:1": entry, "https://reg:1/v2/": entry, "reg:1/lab": entry, "reg:2": entry,
            "https://index.docker.io/v1/": entry,
        }});
        fs::write(&path, auths.to_string()).unwrap();
        remove_login(&path, "reg:1").unwrap();
        remove_login(&path, "docker.io").unwrap();
        assert_eq!(stored(&path), json!({"auths": {"reg:1/lab": entry, "reg:2": entry}}));
        let error = remove_login(&path, "reg:1").unwrap_err();
        assert!(matches!(error, AuthError::NoLogin { .. }), "{error}");
        assert_eq!(remove_all_logins(&path).unwrap(), 2);
        assert_eq!(stored(&path), json!({"auths": {}}));
        assert_eq!(remove_all_logins(&directory.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn file_that_is_not_json_or_names_a_helper_is_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        for (content, expected) in [
            ("{\"auths\"", "is not a valid credential file"),
            (r#"{"credHelpers": {"reg:1": "pass"}}"#, "`docker-credential-pass` for reg:1"),
            (r#"{"credsStore": "pass"}"#, "`docker-credential-pass` for reg:1"),
        ] {
            fs::write(&path, content).unwrap();
            let error = add_login(&path, "reg:1", "u", "p").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("auth.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn logins_that_are_added_at_the_same_time_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || add_login(path, &format!("reg:{number}"), "u", "p").unwrap());
            }
        });
        assert_eq!(stored(&path)["auths"].as_object().unwrap().len(), 8);
    }
}
