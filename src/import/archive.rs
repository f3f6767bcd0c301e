//! An opened archive: its files, whatever it is made of, and the images they make.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::members::{Extent, Members};
use super::{ImportError, ImportImage, docker, layout};
use crate::image::{Descriptor, Digest, Platform};

/// First bytes of compressed files and the program that decompresses them.
const COMPRESSED: [(&[u8], &str); 4] =
    [(&[0x1f, 0x8b], "gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")];

/// An OCI layout or a `docker save` archive, opened; its images are for one platform.
#[derive(Debug)]
pub struct Archive {
    files: Files,
    /// Blobs that are not at their place in a layout, by digest.
    blobs: HashMap<Digest, Extent>,
    images: Vec<ImportImage>,
}

/// Where an archive's files are.
#[derive(Debug)]
pub(super) enum Files {
    Directory(OwnedFd),
    Tar(Arc<File>, Members),
}

/// A blob of an archive, read from its start.
#[derive(Debug)]
pub struct BlobReader {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Archive {
    /// Opens an archive, finds its images and checks that all their blobs are there.
    ///
    /// # Errors
    /// See [`ImportError`]; `path` is for the caller to add.
    pub fn open(path: &Path, platform: &Platform) -> Result<Self, ImportError> {
        let files = Files::open(path)?;
        let (images, blobs) = if files.has("oci-layout")? && files.has("index.json")? {
            (layout::images(&files, platform)?, HashMap::new())
        } else if files.has("manifest.json")? {
            docker::images(&files)?
        } else {
            return Err(ImportError::Unknown(if files.has("repositories")? {
                "it has a list of repositories only, as docker wrote it before version 1.10"
            } else {
                "it has no index.json with oci-layout, and no manifest.json"
            }));
        };
        if images.is_empty() {
            return Err(ImportError::Empty);
        }
        let archive = Self { files, blobs, images };
        archive.check()?;
        Ok(archive)
    }

    /// The images; at least one.
    #[must_use]
    pub fn images(&self) -> &[ImportImage] {
        &self.images
    }

    /// Opens a config or a layer. Its bytes are not checked against the digest.
    ///
    /// # Errors
    /// [`ImportError::MissingBlob`], or why it cannot be read.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader, ImportError> {
        if let (Some(extent), Files::Tar(file, _)) = (self.blobs.get(digest), &self.files) {
            return Ok(BlobReader::new(file, *extent));
        }
        self.files.blob(digest)
    }

    /// Finds at once what would otherwise show after most of an image has been read.
    fn check(&self) -> Result<(), ImportError> {
        for image in &self.images {
            for Descriptor { digest, size, .. } in
                image.manifest.layers().iter().chain([image.manifest.config()])
            {
                let found = self.open_blob(digest)?.size();
                if found != *size {
                    return Err(ImportError::BlobSize { digest: *digest, wanted: *size, found });
                }
            }
        }
        Ok(())
    }
}

impl Files {
    fn open(path: &Path) -> Result<Self, ImportError> {
        // Not to wait for a writer, should it be a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ImportError::Open(e.into()))?;
        let file = File::from(opened);
        let kind = file.metadata().map_err(ImportError::Open)?.file_type();
        if kind.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        if !kind.is_file() {
            return Err(ImportError::FileType);
        }
        let mut start = [0; 8];
        let length = file.read_at(&mut start, 0).map_err(ImportError::Open)?;
        if let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| start[..length].starts_with(magic)) {
            return Err(ImportError::Compressed(program));
        }
        let members = Members::read(&file)?;
        Ok(Self::Tar(Arc::new(file), members))
    }

    fn has(&self, path: &str) -> Result<bool, ImportError> {
        Ok(self.file(path)?.is_some())
    }

    /// Opens a file; `None` if there is none.
    pub(super) fn file(&self, path: &str) -> Result<Option<BlobReader>, ImportError> {
        let directory = match self {
            Self::Tar(file, members) => {
                return Ok(members.find(path)?.map(|extent| BlobReader::new(file, extent)));
            }
            Self::Directory(directory) => directory,
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Links may be in the directory, but must not lead out of it.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let failed = |source| ImportError::Read { what: path.to_owned(), source };
        let opened = match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
            Ok(opened) => File::from(opened),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
                return Err(ImportError::Link(path.to_owned()));
            }
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = opened.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(Some(BlobReader::new(&Arc::new(opened), Extent { offset: 0, size: metadata.len() })))
    }

    /// Where a file of a tar is; see [`Members::find`].
    pub(super) fn extent(&self, path: &str) -> Result<Option<Extent>, ImportError> {
        match self {
            Self::Tar(_, members) => members.find(path),
            Self::Directory(_) => Ok(None),
        }
    }

    /// Reads a short file as a whole; `None` if there is none.
    pub(super) fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
        self.file(path)?.map(|file| file.all(path, limit)).transpose()
    }

    /// Opens a blob at its place in a layout.
    pub(super) fn blob(&self, digest: &Digest) -> Result<BlobReader, ImportError> {
        self.file(&format!("blobs/sha256/{}", digest.hex()))?.ok_or(ImportError::MissingBlob(*digest))
    }

    /// Reads a short blob as a whole and checks it.
    pub(super) fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImportError> {
        let bytes = self.blob(digest)?.all(&format!("blob {digest}"), limit)?;
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(ImportError::Digest { expected: *digest, found }) }
    }
}

impl BlobReader {
    fn new(file: &Arc<File>, extent: Extent) -> Self {
        Self { file: Arc::clone(file), position: extent.offset, end: extent.offset + extent.size }
    }

    /// Bytes from here to its end: as long as nothing is read, its length.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end - self.position
    }

    /// Reads all of it.
    pub(super) fn all(mut self, what: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        if self.size() > limit {
            return Err(ImportError::TooLong { what: what.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        let read = self.read_to_end(&mut bytes);
        read.map_err(|source| ImportError::Read { what: what.to_owned(), source })?;
        Ok(bytes)
    }
}

impl Read for BlobReader {
    /// A file that has become shorter since it was opened is an error, not an end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += u64::try_from(length).expect("a length in memory");
        Ok(length)
    }
}
