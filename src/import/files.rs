//! The files of an archive, which is a directory or a tar.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::ImportError;
use super::compressed::{ArchiveCompression, CompressedTar};
use super::members::{ArchiveMembers, Extent};
use super::tar_bytes::TarBytes;
use crate::image::Digest;

/// The files of an archive.
#[derive(Debug)]
pub(super) enum ArchiveFiles {
    Directory(OwnedFd),
    Tar(Arc<TarBytes>, ArchiveMembers),
}

/// Identifies a file of an archive under any of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileIdentity {
    /// Device and inode number in a directory; zero in a tar.
    inode: (u64, u64),
    /// Position in a tar; zero in a directory.
    offset: u64,
}

/// A file or blob of an archive, read from its start.
#[derive(Debug)]
pub struct BlobReader {
    bytes: Arc<TarBytes>,
    identity: FileIdentity,
    position: u64,
    end: u64,
}

impl ArchiveFiles {
    /// Opens a directory or a tar, which may be compressed. Lists the members of a tar.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        // NONBLOCK: opening a pipe must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ImportError::Open(e.into()))?;
        let file = File::from(opened);
        let file_type = file.metadata().map_err(ImportError::Open)?.file_type();
        if file_type.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        if !file_type.is_file() {
            return Err(ImportError::FileType);
        }
        let mut start = [0; 8];
        let length = file.read_at(&mut start, 0).map_err(ImportError::Open)?;
        let bytes = match ArchiveCompression::sniff(&start[..length]) {
            Some(compression) => TarBytes::Compressed(CompressedTar::open(file, compression)?),
            None => TarBytes::Plain(file),
        };
        let members = ArchiveMembers::read(&bytes)?;
        Ok(Self::Tar(Arc::new(bytes), members))
    }

    /// Whether the archive has a file at `path`.
    pub(super) fn has(&self, path: &str) -> Result<bool, ImportError> {
        Ok(self.file(path)?.is_some())
    }

    /// Opens a file; `None` if it does not exist. Follows links inside the archive.
    pub(super) fn file(&self, path: &str) -> Result<Option<BlobReader>, ImportError> {
        ImportError::check_path(path)?;
        let directory = match self {
            Self::Tar(bytes, members) => {
                return Ok(members.find(path)?.map(|extent| BlobReader::of_member(bytes, extent)));
            }
            Self::Directory(directory) => directory,
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let failed = |source| ImportError::Read { file: path.to_owned(), source };
        let opened = match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
            Ok(opened) => File::from(opened),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::XDEV | Errno::LOOP) => return Err(ImportError::Link(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = opened.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let identity = FileIdentity { inode: (metadata.dev(), metadata.ino()), offset: 0 };
        let bytes = Arc::new(TarBytes::Plain(opened));
        Ok(Some(BlobReader { bytes, identity, position: 0, end: metadata.len() }))
    }

    /// Reads a document of at most `limit` bytes; `None` if it does not exist.
    ///
    /// Other programs may use another one of several members with one name, so their content must be the same.
    pub(super) fn read_document(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(document) = self.file(path)?.map(|file| file.read_all(path, limit)).transpose()? else {
            return Ok(None);
        };
        if let Self::Tar(bytes, members) = self {
            for &earlier in members.replaced(path) {
                if BlobReader::of_member(bytes, earlier).read_all(path, limit)? != document {
                    return Err(ImportError::Twice(path.to_owned()));
                }
            }
        }
        Ok(Some(document))
    }

    /// The directories at the top of a tar that contain a file or link of this name, in byte order. None for a directory.
    pub(super) fn directories_with(&self, name: &str) -> Vec<String> {
        match self {
            Self::Tar(_, members) => members.directories_with(name),
            Self::Directory(_) => Vec::new(),
        }
    }

    /// Opens a blob at its path in an OCI layout.
    pub(super) fn blob(&self, digest: &Digest) -> Result<BlobReader, ImportError> {
        self.file(&format!("blobs/sha256/{}", digest.hex()))?.ok_or(ImportError::MissingBlob(*digest))
    }

    /// Reads a blob of at most `limit` bytes and verifies its digest.
    pub(super) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImportError> {
        let bytes = self.blob(digest)?.read_all(&format!("blob {digest}"), limit)?;
        let actual = Digest::of(&bytes);
        if actual == *digest { Ok(bytes) } else { Err(ImportError::Digest { expected: *digest, actual }) }
    }
}

impl BlobReader {
    fn of_member(bytes: &Arc<TarBytes>, Extent { offset, size }: Extent) -> Self {
        let identity = FileIdentity { inode: (0, 0), offset };
        Self { bytes: Arc::clone(bytes), identity, position: offset, end: offset + size }
    }

    /// Reads a generated document.
    pub(super) fn in_memory(bytes: &Arc<TarBytes>) -> Self {
        let identity = FileIdentity { inode: (0, 0), offset: 0 };
        let end = bytes.length().unwrap_or_default();
        Self { bytes: Arc::clone(bytes), identity, position: 0, end }
    }

    /// Identifies the file in its archive.
    pub(super) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The number of bytes that remain to be read; before the first read, the length of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end - self.position
    }

    /// Reads the whole file. `name` is its name in errors.
    pub(super) fn read_all(mut self, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        if self.size() > limit {
            return Err(ImportError::TooLong { file: name.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        let read = self.read_to_end(&mut bytes);
        read.map_err(|source| ImportError::Read { file: name.to_owned(), source })?;
        Ok(bytes)
    }
}

impl Read for BlobReader {
    /// Fails with `UnexpectedEof` if the file has become shorter since it was opened.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let count = buffer.len().min(remaining);
        if count == 0 {
            return Ok(0);
        }
        let length = self.bytes.read_at(&mut buffer[..count], self.position)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += u64::try_from(length).expect("a length in memory fits into u64");
        Ok(length)
    }
}
