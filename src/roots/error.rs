//! Errors of making, using and removing roots.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::Pid;

use super::RootId;
use crate::error::ErrorCode;
use crate::image::{LayerDigest, ManifestDigest};
use crate::os::PathError;
use crate::pipeline::PipelineError;
use crate::store::StoreError;
use crate::tree::MergeError;
use crate::unpack::UnpackError;

/// The error of an operation on a root or its image.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The name of a root is invalid.
    #[error(
        "root name `{0}` is invalid: it must have 1 to 64 characters of a-z, 0-9, `.`, `_` and `-`, and start with a \
         letter or digit"
    )]
    Id(String),
    /// The engine does not exist.
    #[error("engine `{0}` does not exist: expected `erofs`, `fuse`, `overlay2` or `unpack`")]
    Engine(String),
    /// The width of inode numbers is not supported.
    #[error("inode numbers `{0}` are not supported: expected `64bit` or `32bit`")]
    InodeWidth(String),
    /// The description of an upper is invalid.
    #[error("upper `{text}` is invalid: {why}")]
    Upper {
        /// The description.
        text: String,
        /// Why the description is invalid, and the form that is expected.
        why: &'static str,
    },
    /// isolate and overlayfs split paths at these characters.
    #[error("the path of run directory {} may not contain `{character}`", .path.display())]
    Separator {
        /// The directory.
        path: PathBuf,
        /// `:` or `,`.
        character: char,
    },
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A directory was not made by this program, or another user could change it.
    #[error("cannot use directory {}: {reason}", .path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// Why the directory cannot be used.
        reason: String,
    },
    /// A layer of an image is not a file, and no daemon serves it.
    #[error("layer {0} is not decoded in the store, and no daemon serves it")]
    NoLayer(LayerDigest),
    /// A plain layer of the store cannot be read.
    #[error("plain layer of {layer}")]
    PlainLayer {
        /// The layer.
        layer: LayerDigest,
        /// The underlying error.
        source: Box<PipelineError>,
    },
    /// The mountpoint shows another filesystem.
    #[error("{} is not a mount of rcx-imagefs", .0.display())]
    NotTheMount(PathBuf),
    /// The daemon that served the mount has ended.
    #[error("mount {} is dead: its daemon is gone", .mountpoint.display())]
    DeadMount {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The error of the system call on the mountpoint.
        source: io::Error,
    },
    /// The mount does not contain the image.
    #[error("image {} is not in the mount {}", .name.display(), .mountpoint.display())]
    NoImage {
        /// The name of the image.
        name: PathBuf,
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The name resolves to something other than an image.
    #[error("{} in the mount {} is not an image", .name.display(), .mountpoint.display())]
    NotAnImage {
        /// The name.
        name: PathBuf,
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The mount lists the image but cannot show it.
    #[error("cannot open image {} in the mount {}", .name.display(), .mountpoint.display())]
    Image {
        /// The name of the image.
        name: PathBuf,
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file of the image, from which a root gets a file of its own, cannot be read.
    #[error("cannot read {} of image {image}", .path.display())]
    ImageFile {
        /// The path in the image.
        path: PathBuf,
        /// The image.
        image: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The kernel does not support a filesystem type.
    #[error("the kernel has no {0} filesystem (is the module loaded?)")]
    NoFilesystem(&'static str, #[source] io::Error),
    /// The process lacks a privilege.
    #[error("cannot {action}: this requires root privileges (CAP_SYS_ADMIN)")]
    Permission {
        /// The attempted action.
        action: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The filesystem of the homes cannot hold an upper.
    #[error("cannot keep uppers in {}: {filesystem} cannot be the upper layer of an overlay", .path.display())]
    UpperFilesystem {
        /// The directory of all homes.
        path: PathBuf,
        /// Its filesystem type.
        filesystem: String,
    },
    /// The filesystem of the homes has no quotas.
    #[error("cannot limit the size of uppers in {}: {filesystem} has no project quotas", .path.display())]
    NoQuota {
        /// The directory of all homes.
        path: PathBuf,
        /// Its filesystem type.
        filesystem: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The kernel refused a mount operation.
    #[error("cannot {action}: {step}{}", .log.as_deref().map(|log| format!(" ({log})")).unwrap_or_default())]
    Mount {
        /// The attempted action.
        action: String,
        /// The system call or mount option that failed.
        step: &'static str,
        /// The kernel's message (fsopen(2)), if any.
        log: Option<String>,
        /// The operating system's error.
        source: io::Error,
    },
    /// A path in the root cannot be used as a mountpoint.
    #[error("cannot use {} in the root as a mountpoint: {why}", .path.display())]
    InRoot {
        /// The path inside the root.
        path: PathBuf,
        /// Why the path cannot be used.
        why: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A root with this name already exists.
    #[error("root {0} already exists")]
    Exists(RootId),
    /// No root has this name.
    #[error("there is no root {0}")]
    Missing(RootId),
    /// Another process makes or removes the root, or runs a program in it.
    #[error("root {0} is in use: another process holds its lock")]
    Locked(RootId),
    /// Processes use the root.
    #[error("root {id} is in use{}", .by.first().map(|(pid, program)| format!(" by process {} ({program})", pid.as_raw_nonzero())).unwrap_or_default())]
    InUse {
        /// The root.
        id: RootId,
        /// The processes and their programs, as far as `/proc` shows them.
        by: Vec<(Pid, String)>,
    },
    /// The files of the root remain, but it is not mounted.
    #[error("root {0} is not mounted")]
    NotMounted(RootId),
    /// The daemon that served the image of the root has ended.
    #[error("cannot read root {0}: the daemon that served its image has ended")]
    LostDaemon(RootId),
    /// The record of the root is missing, damaged or of another version.
    #[error("cannot read root {0}: nothing records of which image it is")]
    NoRecord(RootId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image in the store cannot be opened.
    #[error("cannot open image {image}")]
    StoredImage {
        /// The image.
        image: ManifestDigest,
        /// The underlying error.
        source: Box<PipelineError>,
    },
    /// The lowest layers of an image cannot be merged.
    #[error("cannot merge the layers of image {image}")]
    Merge {
        /// The image.
        image: ManifestDigest,
        /// The underlying error.
        source: MergeError,
    },
    /// An image cannot be copied into a root.
    #[error("cannot copy image {image} into the root")]
    Copy {
        /// The image.
        image: String,
        /// The underlying error.
        source: UnpackError,
    },
    /// A layer cannot be unpacked, or cannot be compared with its directory.
    #[error("cannot unpack or verify layer {layer} of the image, counted from the lowest")]
    Unpack {
        /// The number of the layer; the lowest is 1.
        layer: usize,
        /// The underlying error.
        source: UnpackError,
    },
    /// A layer directory was written by another version of the program.
    #[error("layer directory {} has format version {version}, but this program supports only {supported}", .path.display())]
    LayerVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The version of this program.
        supported: u32,
    },
    /// The kernel still uses the overlay of a root.
    #[error("root {0} is still in use: its overlay exists outside the mount table")]
    Alive(RootId),
}

impl RootsError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Id(_)
            | Self::Engine(_)
            | Self::InodeWidth(_)
            | Self::Upper { .. }
            | Self::Separator { .. } => ErrorCode::Usage,
            Self::Io(error) => error.code(),
            Self::Untrusted { .. } => ErrorCode::Untrusted,
            Self::NotTheMount(_) => ErrorCode::Mountpoint,
            Self::DeadMount { .. } | Self::NoLayer(_) | Self::LostDaemon(_) => ErrorCode::NoDaemon,
            Self::NoImage { .. } | Self::NotAnImage { .. } => ErrorCode::NoImage,
            Self::Image { .. } | Self::ImageFile { .. } => ErrorCode::Io,
            Self::NoFilesystem(..) => ErrorCode::Kernel,
            Self::Permission { .. } => ErrorCode::Permission,
            Self::UpperFilesystem { .. } | Self::NoQuota { .. } => ErrorCode::Filesystem,
            Self::Mount { .. } => ErrorCode::Mount,
            Self::InRoot { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::NOSPC | Errno::DQUOT) => ErrorCode::DiskFull,
                Some(Errno::ROFS) => ErrorCode::ReadOnlyFilesystem,
                _ => ErrorCode::Mountpoint,
            },
            Self::Exists(_) => ErrorCode::Exists,
            Self::Missing(_) | Self::NotMounted(_) | Self::NoRecord(_) => ErrorCode::NoRoot,
            Self::Locked(_) | Self::InUse { .. } | Self::Alive(_) => ErrorCode::InUse,
            Self::Store(error) => error.code(),
            Self::StoredImage { source, .. } | Self::PlainLayer { source, .. } => source.code(),
            Self::Merge { source, .. } => source.code(),
            Self::Copy { source, .. } | Self::Unpack { source, .. } => source.code(),
            Self::LayerVersion { .. } => ErrorCode::StoreFormat,
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoImage { .. } => Some(
                "`rcx-imagefs pull` fetches an image; `rcx-imagefs images` lists the images in the store",
            ),
            Self::NotTheMount(_) => Some("mount the store's images with `rcx-imagefs mount DIR`"),
            Self::DeadMount { .. } => {
                Some("start the daemon again: `rcx-imagefs mount DIR` replaces the dead mount")
            }
            Self::NoLayer(_) => Some("start a daemon with `rcx-imagefs mount DIR`"),
            Self::Image { .. } | Self::ImageFile { .. } => {
                Some("`rcx-imagefs status` shows why the image cannot be read")
            }
            Self::Separator { .. } => Some("choose another directory with `--run-dir`"),
            Self::UpperFilesystem { .. } => {
                Some("set `upper-dir` in the table [root] of the configuration, or use `--upper tmpfs:SIZE`")
            }
            Self::NoQuota { .. } => Some(
                "use `tmpfs:SIZE`, or put the uppers on ext4 or XFS with project quotas (mount option `prjquota`)",
            ),
            Self::Store(error) => error.hint(),
            Self::InUse { .. } => {
                Some("`--force` detaches the root; its files are removed once no process uses it")
            }
            Self::Missing(_) => Some("`rcx-imagefs root list` lists all roots"),
            Self::LayerVersion { .. } => {
                Some("remove the directory when no root uses it; it is made again when needed")
            }
            _ => None,
        }
    }
}
