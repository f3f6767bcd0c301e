//! Copies files into and out of the box, the directory that a program runs in and writes to.

mod transfer;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

pub(super) use transfer::{copy_in, copy_out, make_directories};

use super::BOX;
use crate::error::ErrorCode;
use crate::os::PathError;

/// The error of copying a file.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The name of the file has the wrong form.
    #[error("`{}` does not name a file in the box", .0.display())]
    Name(OsString),
    /// The program did not make the file.
    #[error("{0} is missing after the run")]
    Missing(PathBuf),
    /// Only files and directories are copied.
    #[error("{path} is {kind}: only files and directories are copied")]
    Kind {
        /// The file.
        path: PathBuf,
        /// The type of the file, with an article.
        kind: &'static str,
    },
    /// The file and its directory are on different filesystems.
    #[error("{0} is on another filesystem: mounts are not copied")]
    Mount(PathBuf),
    /// Directories are nested deeper than is supported.
    #[error("{path} is nested deeper than {limit} directories")]
    TooDeep {
        /// The first directory that is too deep.
        path: PathBuf,
        /// Deepest nesting that is copied.
        limit: usize,
    },
    /// The operating system refused an operation.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl CopyError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Name(_) => ErrorCode::Usage,
            Self::Missing(_) | Self::Kind { .. } | Self::Mount(_) | Self::TooDeep { .. } | Self::Io(_) => {
                ErrorCode::Copy
            }
        }
    }
}

/// A file or directory to copy: its name in the box and its path on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCopy {
    /// Relative to the box.
    pub name: PathBuf,
    /// The path on the host.
    pub host: PathBuf,
}

impl FileCopy {
    /// Parses `HOST[=NAME]`. Without `NAME`, the copy has the name of the host's file.
    ///
    /// # Errors
    /// [`CopyError::Name`].
    pub fn into_box(text: &OsStr) -> Result<Self, CopyError> {
        let (host, name) = split(text);
        Self::new(name.unwrap_or_else(|| file_name(host)), host)
    }

    /// Parses `NAME[=HOST]`. Without `HOST`, the copy has the same name, in the working directory.
    ///
    /// # Errors
    /// [`CopyError::Name`].
    pub fn out_of_box(text: &OsStr) -> Result<Self, CopyError> {
        let (name, host) = split(text);
        Self::new(name, host.unwrap_or_else(|| file_name(name)))
    }

    fn new(name: &OsStr, host: &OsStr) -> Result<Self, CopyError> {
        let path = Path::new(name);
        let path = path.strip_prefix(BOX).unwrap_or(path);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if host.is_empty() || path.file_name().is_none() || !plain {
            return Err(CopyError::Name(name.to_owned()));
        }
        let name = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        Ok(Self { name, host: host.into() })
    }
}

/// Splits at the first `=`.
fn split(text: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        None => (text, None),
        Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]))),
    }
}

fn file_name(path: &OsStr) -> &OsStr {
    Path::new(path).file_name().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_parsed_and_names_outside_the_box_are_refused() {
        let parsed = |copy: Result<FileCopy, CopyError>| copy.map(|copy| (copy.name, copy.host)).ok();
        let pair = |name: &str, host: &str| Some((PathBuf::from(name), PathBuf::from(host)));
        for (text, expected) in [
            ("/home/a/main.c", pair("main.c", "/home/a/main.c")),
            ("main.c=src/a.c", pair("src/a.c", "main.c")),
            ("main.c=/box/a.c", pair("a.c", "main.c")),
            ("a=b=c", pair("b=c", "a")),
            ("./main.c=./x/./y", pair("x/y", "./main.c")),
            ("main.c=", None),
            ("main.c=/etc/passwd", None),
            ("main.c=../a", None),
            ("main.c=/box", None),
            ("=a", None),
            ("/", None),
            ("..", None),
        ] {
            assert_eq!(parsed(FileCopy::into_box(OsStr::new(text))), expected, "{text}");
        }
        for (text, expected) in [
            ("out.txt", pair("out.txt", "out.txt")),
            ("dir/out.txt", pair("dir/out.txt", "out.txt")),
            ("/box/out=/tmp/x", pair("out", "/tmp/x")),
            ("../out", None),
            ("out=", None),
        ] {
            assert_eq!(parsed(FileCopy::out_of_box(OsStr::new(text))), expected, "{text}");
        }
    }
}
