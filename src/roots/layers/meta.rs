//! The file `meta.json` of a layer directory.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::META;

/// Largest `meta.json` that is read, in bytes.
const META_MAX: u64 = 4096;

/// The description of a layer directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerMeta {
    pub(super) version: u32,
    /// Whether the lower layers alone show the tree, so that the overlay omits the directory.
    pub(super) empty: bool,
    /// Whether nothing from the lower layers remains visible, so that the overlay omits them.
    pub(super) replaces_all: bool,
    /// Total size of the files in bytes.
    pub(super) bytes: u64,
}

impl LayerMeta {
    pub(super) fn read(directory: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(directory, META, flags, Mode::empty())?);
        let mut text = Vec::new();
        file.take(META_MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(super) fn write(&self, directory: &OwnedFd) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, META, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(&text)
    }
}
