//! Build contexts: directories and tars of authors, written as one canonical tar.
//!
//! A tar of an author is not stored as it is. Programs read unusual tars in different ways, so the builder could see other files
//! than the reviewer. What is stored has sorted names, no times and no owners, so the same files always give the same digest.

mod archive;
mod directory;
mod links;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dockerfile::{DOCKERFILE_MAX, Dockerfile, DockerfileError};
use crate::error::ErrorCode;
use crate::image::Digest;
use crate::os::PathError;

/// The name of the Dockerfile in a context.
pub const DOCKERFILE: &str = "Dockerfile";
/// Largest number of files, directories and links in a context: their names are kept in memory.
const ENTRIES_MAX: usize = 200_000;
/// Longest path in a context, in bytes: that of Linux.
const PATH_MAX: usize = 4096;

/// Where a context comes from.
#[derive(Debug, Clone, Copy)]
pub enum ContextSource<'a> {
    /// A directory.
    Directory(&'a Path),
    /// A tar that is not compressed.
    Archive(&'a File),
}

/// What a context is, once it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextSummary {
    /// The digest of the tar.
    pub digest: Digest,
    /// The size of the tar, in bytes.
    pub size: u64,
    /// Number of files, directories and links.
    pub entries: usize,
}

/// A context is refused.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A file of the directory cannot be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A name in the context cannot be used.
    #[error("`{}` in the context {reason}", .path.display())]
    Entry {
        /// The path in the context.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A link leads out of the context.
    #[error("`{}` in the context is a link to `{}`, which leads out of the context", .path.display(), .target.display())]
    Link {
        /// The path in the context.
        path: PathBuf,
        /// The target of the link.
        target: PathBuf,
    },
    /// The context is larger than the limit.
    #[error("the context has more than {limit} bytes (`context-limit`)")]
    Size {
        /// The limit.
        limit: u64,
    },
    /// The context has too many files.
    #[error("the context has more than {ENTRIES_MAX} files")]
    Entries,
    /// The operating system cannot read the tar.
    #[error("cannot read the context")]
    Read(#[source] io::Error),
    /// The file is no tar.
    #[error("the context is not a tar, or it is damaged")]
    NoArchive,
    /// The tar is compressed.
    #[error("the context is compressed; submit the tar itself, or the directory")]
    Compressed,
    /// The context has no Dockerfile.
    #[error("the context has no regular file `{DOCKERFILE}` at its top")]
    NoDockerfile,
    /// The Dockerfile is too long.
    #[error("the Dockerfile is longer than {DOCKERFILE_MAX} bytes")]
    DockerfileSize,
    /// The Dockerfile is not UTF-8.
    #[error("the Dockerfile is not UTF-8")]
    DockerfileEncoding,
    /// The Dockerfile cannot be read.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
}

impl ContextError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(error) => error.code(),
            Self::Read(error) => ErrorCode::of_io(error),
            Self::Entry { .. }
            | Self::Link { .. }
            | Self::Size { .. }
            | Self::Entries
            | Self::NoArchive
            | Self::Compressed
            | Self::NoDockerfile => ErrorCode::Context,
            Self::DockerfileSize | Self::DockerfileEncoding | Self::Dockerfile(_) => ErrorCode::Dockerfile,
        }
    }

    /// The error of reading a tar.
    fn archive(error: io::Error) -> Self {
        // The messages of the tar crate quote the file.
        if error.raw_os_error().is_some() { Self::Read(error) } else { Self::NoArchive }
    }

    fn entry(path: &Path, reason: &'static str) -> Self {
        Self::Entry { path: path.to_owned(), reason }
    }
}

/// The names of a context, by path. Paths are relative and have no `.` and `..`.
type ContextEntries = BTreeMap<PathBuf, ContextEntry>;

/// A file, directory or link of a context.
#[derive(Debug)]
struct ContextEntry {
    /// The permission bits.
    mode: u32,
    kind: ContextEntryKind,
}

#[derive(Debug)]
enum ContextEntryKind {
    Directory,
    Link(PathBuf),
    File {
        size: u64,
        /// Where the content starts in the tar; 0 for a file of a directory.
        offset: u64,
    },
}

/// Writes a context to `out` in its canonical form.
///
/// # Errors
///
/// Names the file that is refused, or the limit.
pub(super) fn pack(
    source: ContextSource<'_>,
    limit: u64,
    out: &mut File,
) -> Result<ContextSummary, ContextError> {
    let mut entries = match source {
        ContextSource::Directory(directory) => directory::read(directory, limit)?,
        ContextSource::Archive(archive) => archive::read(archive, limit)?,
    };
    add_parents(&mut entries)?;
    links::check(&entries)?;
    match entries.get(Path::new(DOCKERFILE)).map(|entry| &entry.kind) {
        Some(ContextEntryKind::File { size, .. }) if *size > DOCKERFILE_MAX => {
            return Err(ContextError::DockerfileSize);
        }
        Some(ContextEntryKind::File { .. }) => {}
        _ => return Err(ContextError::NoDockerfile),
    }
    write::write(source, &entries, limit, out)
}

/// Returns the digest of a stored context. Reads all of it.
pub(super) fn digest(context: &File) -> io::Result<Digest> {
    write::digest(context)
}

/// Reads the Dockerfile of a stored context.
///
/// # Errors
///
/// The context has no readable Dockerfile.
pub(super) fn dockerfile(context: &File) -> Result<Dockerfile, ContextError> {
    use std::io::Read as _;
    let mut archive = tar::Archive::new(archive::rewound(context)?);
    for entry in archive.entries().map_err(ContextError::archive)? {
        let entry = entry.map_err(ContextError::archive)?;
        if *entry.path_bytes() != *DOCKERFILE.as_bytes() {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(DOCKERFILE_MAX).read_to_end(&mut bytes).map_err(ContextError::archive)?;
        let text = String::from_utf8(bytes).map_err(|_| ContextError::DockerfileEncoding)?;
        return Ok(Dockerfile::parse(&text)?);
    }
    Err(ContextError::NoDockerfile)
}

/// Adds the directories that a tar leaves out, and checks that what files stand in are directories.
fn add_parents(entries: &mut ContextEntries) -> Result<(), ContextError> {
    let mut missing = Vec::new();
    for path in entries.keys() {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match entries.get(above).map(|entry| &entry.kind) {
                None => missing.push(above.to_owned()),
                Some(ContextEntryKind::Directory) => {}
                Some(_) => return Err(ContextError::entry(path, "is below a name that is no directory")),
            }
        }
    }
    for path in missing {
        entries.insert(path, ContextEntry { mode: 0o755, kind: ContextEntryKind::Directory });
    }
    match entries.len() {
        ..=ENTRIES_MAX => Ok(()),
        _ => Err(ContextError::Entries),
    }
}

/// Adds to the size of a context what a file takes in its tar.
fn add_size(total: &mut u64, size: u64, limit: u64) -> Result<(), ContextError> {
    const BLOCK: u64 = 512;
    *total = size
        .checked_next_multiple_of(BLOCK)
        .and_then(|size| total.checked_add(size)?.checked_add(BLOCK))
        .filter(|total| *total <= limit)
        .ok_or(ContextError::Size { limit })?;
    Ok(())
}

/// Checks the bytes of a path in a context, and returns it without `.`.
fn checked_path(bytes: &[u8]) -> Result<PathBuf, ContextError> {
    let given = Path::new(OsStr::from_bytes(bytes));
    if bytes.len() > PATH_MAX {
        return Err(ContextError::entry(given, "has a path that is too long"));
    }
    if bytes.contains(&0) {
        return Err(ContextError::entry(given, "has a zero byte in its path"));
    }
    if given.is_absolute() {
        return Err(ContextError::entry(given, "has an absolute path"));
    }
    let is_up = |component| component == std::path::Component::ParentDir;
    if given.components().any(is_up) {
        return Err(ContextError::entry(given, "has `..` in its path"));
    }
    Ok(given.components().filter(|component| *component != std::path::Component::CurDir).collect())
}

#[cfg(test)]
mod tests;
