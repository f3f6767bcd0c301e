//! Writes the files of `/etc` into a layer.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::image::Digest;
use crate::roots::mounts::OPEN_DIRECTORY;

/// Longest list of the names of extended attributes (linux/limits.h).
const NAMES_MAX: usize = 64 << 10;
/// Largest values of all extended attributes together: what ext4 can certainly store.
const XATTRS_MAX: usize = 2 << 10;
/// Size of a page, the unit in which a tmpfs counts.
const PAGE: u64 = 4 << 10;

/// Names and values of extended attributes.
type ExtendedAttributes = Vec<(CString, Vec<u8>)>;

/// Owner, mode, time and extended attributes of a file.
#[derive(Debug, Clone)]
pub(super) struct FileAttributes {
    uid: u32,
    gid: u32,
    mode: u32,
    modified: (i64, i64),
    /// `None` if they are too large to be copied.
    xattrs: Option<ExtendedAttributes>,
}

impl FileAttributes {
    /// Returns the attributes of a file that the image does not have: those of files that no layer has an entry for.
    pub(super) fn default_file() -> Self {
        Self::new(FileType::RegularFile.as_raw_mode() | 0o644)
    }

    /// Returns the attributes of a directory that the image does not have.
    pub(super) fn default_directory() -> Self {
        Self::new(FileType::Directory.as_raw_mode() | 0o755)
    }

    fn new(mode: u32) -> Self {
        Self { uid: 0, gid: 0, mode, modified: (0, 0), xattrs: Some(Vec::new()) }
    }

    /// Reads the attributes of a file that is only looked up (`O_PATH`).
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat: Stat = rustix::fs::fstat(file)?;
        let modified = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
        let xattrs = if is_plain(stat.st_mode) { xattrs(file)? } else { Some(Vec::new()) };
        Ok(Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode, modified, xattrs })
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Returns whether another file can have these attributes.
    pub(super) fn can_be_copied(&self) -> bool {
        self.xattrs.is_some()
    }

    /// Gives a file these attributes.
    fn apply(&self, file: &OwnedFd) -> Result<(), Errno> {
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode & 0o7777))?;
        for (name, value) in self.xattrs.iter().flatten() {
            match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                // A tmpfs does not support all attributes of other filesystems.
                Err(Errno::OPNOTSUPP) => {
                    tracing::debug!("cannot copy the attribute {name:?} to a file of the skeleton")
                }
                result => result?,
            }
        }
        let (tv_sec, tv_nsec) = self.modified;
        let time = Timespec { tv_sec, tv_nsec };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
    }
}

/// Returns whether extended attributes can be read through `/proc/self/fd`, which does not open the file.
fn is_plain(mode: u32) -> bool {
    matches!(FileType::from_raw_mode(mode), FileType::RegularFile | FileType::Directory)
}

fn xattrs(file: BorrowedFd<'_>) -> Result<Option<ExtendedAttributes>, Errno> {
    // fgetxattr(2) refuses descriptors of `O_PATH`.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut names = vec![0_u8; NAMES_MAX];
    let length = match rustix::fs::listxattr(&path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    let mut xattrs = Vec::new();
    let mut rest = XATTRS_MAX;
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // Attributes in which an overlay keeps its own state, if the image is unpacked into a layer of one.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        // One byte more: with an empty buffer, getxattr(2) returns only the size.
        let mut value = vec![0_u8; rest + 1];
        let length = match rustix::fs::getxattr(&path, name, &mut value[..]) {
            Err(Errno::RANGE) => return Ok(None),
            result => result?,
        };
        let Some(less) = rest.checked_sub(length + name.to_bytes().len()) else { return Ok(None) };
        rest = less;
        value.truncate(length);
        xattrs.push((name.to_owned(), value));
    }
    Ok(Some(xattrs))
}

/// A file to write into `/etc`.
#[derive(Debug)]
pub(super) struct EtcFile {
    pub(super) name: &'static str,
    pub(super) content: Vec<u8>,
    pub(super) attributes: FileAttributes,
}

/// The files of `/etc` that a root has in addition to those of its image.
#[derive(Debug)]
pub(in crate::roots::mounts) struct EtcLayer {
    /// The directories on the way to `/etc` and this directory, outermost first. overlayfs shows the attributes of the topmost
    /// layer, so they have those of the image.
    pub(super) directories: Vec<(PathBuf, FileAttributes)>,
    pub(super) files: Vec<EtcFile>,
}

impl EtcLayer {
    /// The bytes and inodes that the files and directories need at most on a tmpfs.
    pub(in crate::roots::mounts) fn size(&self) -> (u64, u64) {
        let bytes = self.files.iter().map(|file| (file.content.len() as u64).next_multiple_of(PAGE)).sum();
        (bytes, (self.directories.len() + self.files.len()) as u64)
    }

    /// The digests of the files by their paths in the root. A path that is not text has none.
    pub(in crate::roots::mounts) fn digests(&self) -> BTreeMap<String, Digest> {
        let Some((etc, _)) = self.directories.last() else { return BTreeMap::new() };
        let digest =
            |file: &EtcFile| Some((etc.join(file.name).to_str()?.to_owned(), Digest::of(&file.content)));
        self.files.iter().filter_map(digest).collect()
    }

    /// Writes the files into an empty layer.
    pub(in crate::roots::mounts) fn write(&self, layer: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut made = Vec::new();
        for (path, attributes) in &self.directories {
            rustix::fs::mkdirat(layer, path, Mode::RWXU)?;
            made.push((rustix::fs::openat(layer, path, OPEN_DIRECTORY, Mode::empty())?, attributes));
        }
        if let Some((etc, _)) = made.last() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            for EtcFile { name, content, attributes } in &self.files {
                let file = rustix::fs::openat(etc, *name, flags, Mode::RUSR | Mode::WUSR)?;
                let mut rest = &content[..];
                while !rest.is_empty() {
                    let length = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                    rest = &rest[length..];
                }
                attributes.apply(&file)?;
            }
        }
        // Writing in a directory changes its time.
        made.iter().rev().try_for_each(|(directory, attributes)| attributes.apply(directory))
    }
}
