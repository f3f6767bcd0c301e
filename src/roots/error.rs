//! Why a root could not be made, used or removed.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::RootId;
use crate::image::ManifestDigest;
use crate::pipeline::PipelineError;
use crate::tree::MergeError;
use crate::unpack::UnpackError;

/// What is wrong with a root, or with what it is made of.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Not a name that a root can have.
    #[error(
        "root `{0}`: a name has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or digit"
    )]
    Id(String),
    /// Not a way to show an image.
    #[error("engine `{0}`: known are `fuse`, `overlay2` and `unpack`")]
    Engine(String),
    /// Not an upper layer that a root can have.
    #[error("upper `{text}`: {why}")]
    Upper {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Roots are handed to programs that split on these.
    #[error("run directory {path}: the path of a root may not contain `{character}`")]
    Separator {
        /// The directory.
        path: PathBuf,
        /// `:` or `,`.
        character: char,
    },
    /// A file or directory could not be used.
    #[error("{step} {path}")]
    Io {
        /// What was done with it.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// There is no filesystem of this program.
    #[error("{0} is not a mount of rcx-imagefs")]
    NotTheMount(PathBuf),
    /// The filesystem's daemon died.
    #[error("mount {mountpoint} is dead: its daemon is gone")]
    DeadMount {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What came of asking it.
        source: io::Error,
    },
    /// The mount does not have the image.
    #[error("image {name} is not in the mount {mountpoint}")]
    NoImage {
        /// The image.
        name: PathBuf,
        /// Where images are mounted.
        mountpoint: PathBuf,
    },
    /// The name leads to something else.
    #[error("{name} in the mount {mountpoint} is not an image")]
    NotAnImage {
        /// The name.
        name: PathBuf,
        /// Where images are mounted.
        mountpoint: PathBuf,
    },
    /// The mount has the image and cannot show it.
    #[error("image {name} in the mount {mountpoint} cannot be read")]
    Image {
        /// The image.
        name: PathBuf,
        /// Where images are mounted.
        mountpoint: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The kernel has no overlay filesystem.
    #[error("no overlay filesystem in this kernel (is the module `overlay` loaded?)")]
    NoOverlay(#[source] io::Error),
    /// Making roots takes a privilege that this process does not have.
    #[error("{what}: no permission (this takes CAP_SYS_ADMIN)")]
    Permission {
        /// What was to be done.
        what: String,
        /// What came of it.
        source: io::Error,
    },
    /// The filesystem of the uppers cannot hold one.
    #[error("uppers in {path}: {filesystem} cannot be the upper layer of an overlay")]
    UpperFilesystem {
        /// Where uppers are kept.
        path: PathBuf,
        /// The filesystem there.
        filesystem: String,
    },
    /// The filesystem of the uppers cannot limit one.
    #[error("uppers in {path}: {filesystem} there does not limit how large one gets")]
    NoQuota {
        /// Where uppers are kept.
        path: PathBuf,
        /// The filesystem there.
        filesystem: String,
        /// What came of asking for it.
        source: io::Error,
    },
    /// A step of making a filesystem was refused.
    #[error("{what}: {step}{}", .log.as_deref().map(|log| format!(" ({log})")).unwrap_or_default())]
    Mount {
        /// What was to be made.
        what: String,
        /// The system call, or the option that it was to set.
        step: &'static str,
        /// What the kernel said about it.
        log: Option<String>,
        /// What came of it.
        source: io::Error,
    },
    /// Something in the root is in the way.
    #[error("{path} in the root: {why}")]
    InRoot {
        /// The path inside.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
        /// What came of it.
        source: io::Error,
    },
    /// A root of this name is there.
    #[error("root {0} is there already")]
    Exists(RootId),
    /// No root has this name.
    #[error("there is no root {0}")]
    Missing(RootId),
    /// Another process makes or removes the root, or runs something in it.
    #[error("root {0} is in use: another process holds its lock")]
    Locked(RootId),
    /// Programs use the root.
    #[error("root {id} is in use{}", .by.as_ref().map(|(pid, program)| format!(" by process {} ({program})", pid.as_raw_nonzero())).unwrap_or_default())]
    InUse {
        /// The root.
        id: RootId,
        /// One of the processes, and its program.
        by: Option<(Pid, String)>,
    },
    /// An image of the store cannot be read.
    #[error("layer directories in {path}")]
    Layers {
        /// The store, or where its layers are unpacked.
        path: PathBuf,
        /// What is wrong with the image.
        source: Box<PipelineError>,
    },
    /// The lowest layers of an image make no tree.
    #[error("image {image}")]
    Merge {
        /// The image.
        image: ManifestDigest,
        /// What is wrong with it.
        source: MergeError,
    },
    /// An image could not be copied.
    #[error("copy {image}")]
    Copy {
        /// The image.
        image: String,
        /// What came of it.
        source: UnpackError,
    },
    /// A layer could not be unpacked.
    #[error("layer {layer}")]
    Unpack {
        /// Its number, counted from 1 at the lowest.
        layer: usize,
        /// What came of it.
        source: UnpackError,
    },
    /// The kernel still has the root's overlay.
    #[error("root {0} is still alive: something outside the mount table keeps it")]
    Alive(RootId),
}

impl RootsError {
    /// What to do about it, if anything can be said.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoImage { .. } => {
                Some("`rcx-imagefs pull` fetches an image; `rcx-imagefs images` lists what is there")
            }
            Self::NotTheMount(_) => Some("`rcx-imagefs mount DIR` shows the store's images"),
            Self::DeadMount { .. } => {
                Some("start the daemon again: `rcx-imagefs mount DIR` replaces the dead mount")
            }
            Self::Image { .. } => Some("`rcx-imagefs status` tells what is wrong with it"),
            Self::Separator { .. } => Some("name another `--run-dir`"),
            Self::UpperFilesystem { .. } => {
                Some("set `upper-dir` in the table [root] of the configuration, or use `--upper tmpfs:SIZE`")
            }
            Self::NoQuota { .. } => Some(
                "use `tmpfs:SIZE`, or give uppers an ext4 or XFS with project quotas (mount option `prjquota`)",
            ),
            Self::InUse { .. } => Some("`--force` detaches it; its files go when nothing uses them any more"),
            Self::Missing(_) => Some("`rcx-imagefs root list` lists what is there"),
            _ => None,
        }
    }

    pub(super) fn io(step: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { step, path: path.to_owned(), source: source.into() }
    }
}

/// Names what was done with which file when that failed.
pub(super) trait At<T> {
    fn at(self, step: &'static str, path: &Path) -> Result<T, RootsError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str, path: &Path) -> Result<T, RootsError> {
        self.map_err(|error| RootsError::io(step, path, error))
    }
}
