//! Signatures of the list of environments, made and checked by OpenSSH's `ssh-keygen`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::MemfdFlags;

use crate::error::ErrorCode;
use crate::os::{AtPath as _, PathError};

/// What the signatures are for: one that was made for something else is not valid.
const NAMESPACE: &str = "rcx-imagefs-environments";

/// A signature cannot be made, or is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file of keys cannot be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// `ssh-keygen` cannot be started.
    #[error("cannot run ssh-keygen")]
    Start(#[source] io::Error),
    /// The key makes no signature.
    #[error("cannot sign with {}: {reason}", .key.display())]
    Sign {
        /// The key.
        key: PathBuf,
        /// The message of `ssh-keygen`.
        reason: String,
    },
    /// The list has no signature.
    #[error("the list of environments is not signed, but {} requires a signature", .signers.display())]
    Missing {
        /// The file of allowed signers.
        signers: PathBuf,
    },
    /// The signature is not one of an allowed signer.
    #[error("the signature of the list of environments is not valid by {}: {reason}", .signers.display())]
    Wrong {
        /// The file of allowed signers.
        signers: PathBuf,
        /// The message of `ssh-keygen`.
        reason: String,
    },
}

impl SignatureError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(error) => error.code(),
            Self::Start(_) => ErrorCode::Host,
            Self::Sign { .. } | Self::Missing { .. } | Self::Wrong { .. } => ErrorCode::Signature,
        }
    }

    /// Advice for the user.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Start(_) => Some("install OpenSSH's client (Debian: openssh-client)"),
            Self::Missing { .. } => Some("publish the list with `rcx-imagefs env publish --sign KEY`"),
            _ => None,
        }
    }
}

/// Signs bytes with a key file of OpenSSH.
///
/// # Errors
///
/// The key cannot be read or makes no signature.
pub fn sign(key: &Path, bytes: &[u8]) -> Result<Vec<u8>, SignatureError> {
    File::open(key).at("open", key)?;
    let arguments = [OsStr::new("-Y"), "sign".as_ref(), "-n".as_ref(), NAMESPACE.as_ref(), "-f".as_ref()];
    let output = key_program(arguments.into_iter().chain([key.as_os_str()]), bytes)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(SignatureError::Sign { key: key.to_owned(), reason: message(&output) }),
    }
}

/// Checks that a key of the file `signers` has signed bytes.
///
/// # Errors
///
/// There is no signature, or it is not valid.
pub fn check_signature(signers: &Path, bytes: &[u8], signature: Option<&[u8]>) -> Result<(), SignatureError> {
    File::open(signers).at("open", signers)?;
    let missing = || SignatureError::Missing { signers: signers.to_owned() };
    let signature = signature.ok_or_else(missing)?;
    let wrong = |reason| SignatureError::Wrong { signers: signers.to_owned(), reason };
    let file = in_memory(signature).map_err(SignatureError::Start)?;
    let path = OsString::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    let common =
        [OsStr::new("-s"), &path, "-n".as_ref(), NAMESPACE.as_ref(), "-f".as_ref(), signers.as_os_str()];
    let find = [OsStr::new("-Y"), "find-principals".as_ref()].into_iter().chain(common);
    let found = key_program(find, b"")?;
    let names = String::from_utf8_lossy(&found.stdout).into_owned();
    let Some(name) = names.lines().next().filter(|_| found.status.success()) else {
        return Err(wrong("no allowed signer has its key".to_owned()));
    };
    let verify =
        [OsStr::new("-Y"), "verify".as_ref(), "-I".as_ref(), name.as_ref()].into_iter().chain(common);
    let verified = key_program(verify, bytes)?;
    match verified.status.success() {
        true => Ok(()),
        false => Err(wrong(message(&verified))),
    }
}

fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("signature", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes).map(|()| file)
}

/// Runs `ssh-keygen` with `input` as its standard input.
fn key_program<'a>(
    arguments: impl Iterator<Item = &'a OsStr>,
    input: &[u8],
) -> Result<Output, SignatureError> {
    let run = || {
        use std::io::Seek as _;
        let mut input = in_memory(input)?;
        input.rewind()?;
        Command::new("ssh-keygen").args(arguments).stdin(Stdio::from(input)).output()
    };
    run().map_err(SignatureError::Start)
}

/// The last line that `ssh-keygen` printed.
fn message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("ssh-keygen failed").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Makes a key, and returns its file and its line for a file of allowed signers.
    fn key(dir: &Path, name: &str) -> (PathBuf, String) {
        let path = dir.join(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path);
        assert!(command.status().unwrap().success());
        let public = fs::read_to_string(dir.join(format!("{name}.pub"))).unwrap();
        (path, format!("{name} {public}"))
    }

    #[test]
    fn only_a_signature_of_an_allowed_signer_for_the_same_bytes_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let ((mine, line), (other, _)) = (key(dir.path(), "mine"), key(dir.path(), "other"));
        let signers = dir.path().join("signers");
        fs::write(&signers, line).unwrap();
        let signature = sign(&mine, b"list").unwrap();
        check_signature(&signers, b"list", Some(&signature)).unwrap();
        let code = |bytes: &[u8], signature: Option<&[u8]>| {
            check_signature(&signers, bytes, signature).unwrap_err().code()
        };
        assert_eq!(code(b"other", Some(&signature)), ErrorCode::Signature);
        assert_eq!(code(b"list", Some(&sign(&other, b"list").unwrap())), ErrorCode::Signature);
        assert_eq!(code(b"list", Some(b"garbage")), ErrorCode::Signature);
        assert_eq!(code(b"list", None), ErrorCode::Signature);
        let missing = check_signature(&dir.path().join("none"), b"list", Some(&signature)).unwrap_err();
        assert_eq!(missing.code(), ErrorCode::Io);
        fs::write(&other, "no key").unwrap();
        assert_eq!(sign(&other, b"list").unwrap_err().code(), ErrorCode::Signature);
    }

    #[test]
    fn signature_for_another_purpose_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, line) = key(dir.path(), "mine");
        let (signers, list) = (dir.path().join("signers"), dir.path().join("list"));
        fs::write(&signers, line).unwrap();
        fs::write(&list, "list").unwrap();
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "sign", "-n", "git", "-f"]).arg(&mine).arg(&list);
        assert!(command.output().unwrap().status.success());
        let signature = fs::read(dir.path().join("list.sig")).unwrap();
        let error = check_signature(&signers, b"list", Some(&signature)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Signature);
    }
}
