//! Reads `/etc` of an image without leaving its tree.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::FILE_MAX;
use super::layer::FileAttributes;
use crate::os::retry_again;
use crate::roots::RootsError;
use crate::roots::mounts::SKELETON;
use crate::roots::mounts::lower::path_of;

const ETC: &str = "etc";

/// The tree of an image.
#[derive(Debug)]
pub(super) struct ImageRoot<'a> {
    root: BorrowedFd<'a>,
    /// `NAME@DIGEST`, for errors.
    name: &'a str,
}

/// A file of an image, after its links are followed.
#[derive(Debug)]
pub(super) enum ImageFile {
    /// The file does not exist, or is a link that leads nowhere.
    Missing,
    /// A regular file, with its content.
    Regular(Vec<u8>, FileAttributes),
    /// Something else, or too large.
    Unusable,
}

impl<'a> ImageRoot<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, name: &'a str) -> Self {
        Self { root, name }
    }

    /// Returns the directories on the way to `/etc`, outermost first, with paths relative to the root and without links.
    ///
    /// If the image has no `/etc`, returns it with the attributes of a new directory. Returns `None` if it is no directory, or
    /// in a directory that the skeleton hides.
    pub(super) fn etc(&self) -> Result<Option<Vec<(PathBuf, FileAttributes)>>, RootsError> {
        let etc = Path::new(ETC);
        let Some(directory) = self.open(etc, OFlags::DIRECTORY)? else {
            let is_missing = self.open(etc, OFlags::NOFOLLOW)?.is_none();
            let directory = (PathBuf::from(ETC), FileAttributes::default_directory());
            return Ok(is_missing.then(|| vec![directory]));
        };
        let failed = |error: io::Error| self.failed(etc, error);
        let (path, root) = (path_of(directory.as_fd()).map_err(failed)?, path_of(self.root).map_err(failed)?);
        let Ok(path) = path.strip_prefix(&root) else { return Ok(None) };
        if SKELETON.iter().any(|(hidden, _)| path.starts_with(hidden)) {
            return Ok(None);
        }
        let mut directories = Vec::new();
        let mut part = PathBuf::new();
        for component in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            part.push(component);
            let Some(directory) = self.open(&part, OFlags::DIRECTORY | OFlags::NOFOLLOW)? else {
                return Ok(None);
            };
            let attributes = self.attributes(&part, &directory)?;
            if !attributes.can_be_copied() {
                let path = part.display();
                tracing::warn!(
                    "/etc of image {} stays as it is: /{path} has large extended attributes",
                    self.name
                );
                return Ok(None);
            }
            directories.push((part.clone(), attributes));
        }
        // A link to `/` makes the root directory `/etc`.
        Ok((!directories.is_empty()).then_some(directories))
    }

    /// Reads the file at a path relative to the root.
    pub(super) fn read(&self, path: &Path) -> Result<ImageFile, RootsError> {
        // Only looked up: opening a device or a fifo would have effects.
        let Some(file) = self.open(path, OFlags::empty())? else { return Ok(ImageFile::Missing) };
        let attributes = self.attributes(path, &file)?;
        if attributes.file_type() != FileType::RegularFile || !attributes.can_be_copied() {
            return Ok(ImageFile::Unusable);
        }
        let mut content = Vec::new();
        let read = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut content));
        match read {
            Ok(length) if length as u64 <= FILE_MAX => Ok(ImageFile::Regular(content, attributes)),
            Ok(_) => {
                let path = path.display();
                tracing::warn!(
                    "/{path} of image {} stays as it is: it is larger than {FILE_MAX} bytes",
                    self.name
                );
                Ok(ImageFile::Unusable)
            }
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Looks up a path relative to the root. Returns `None` if it does not exist or its links lead nowhere.
    fn open(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, RootsError> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match retry_again(|| rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve)) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV) => Ok(None),
            Err(errno) => Err(self.failed(path, errno)),
        }
    }

    fn attributes(&self, path: &Path, file: &OwnedFd) -> Result<FileAttributes, RootsError> {
        FileAttributes::of(file.as_fd()).map_err(|errno| self.failed(path, errno))
    }

    fn failed(&self, path: &Path, source: impl Into<io::Error>) -> RootsError {
        let path = Path::new("/").join(path);
        RootsError::ImageFile { path, image: self.name.to_owned(), source: source.into() }
    }
}
