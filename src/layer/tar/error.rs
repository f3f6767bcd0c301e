//! Errors from reading a tar.

use std::io;

use super::{MAX_EXTENSIONS, MAX_SEGMENTS, MAX_TARGET};
use crate::error::ErrorCode;
use crate::layer::TarOffset;
use crate::layer::name::{NameError, Printable};

/// A tar that is not a valid layer, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("tar offset {offset}{}: {fault}", entry_text(path))]
pub struct TarError {
    /// The position of the faulty member's header block; for errors of the stream, the position in the stream.
    pub offset: TarOffset,
    /// The member's name, not normalised; `None` if it had not been read yet.
    pub path: Option<Box<[u8]>>,
    /// The reason.
    pub fault: TarFault,
}

impl TarError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.fault.code()
    }
}

fn entry_text(path: &Option<Box<[u8]>>) -> String {
    path.as_ref().map(|path| format!(", entry `{}`", Printable(path))).unwrap_or_default()
}

/// The reason why a tar is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// The stream cannot be read.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("tar is truncated")]
    Truncated,
    /// A block is neither a header nor an end block.
    #[error("header checksum does not match")]
    Checksum,
    /// A single zero block is followed by another entry.
    #[error("entry after a single end block")]
    LoneEndBlock,
    /// A number in a header is malformed.
    #[error("malformed {0} in header")]
    HeaderNumber(&'static str),
    /// A number is well-formed but out of range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// The member's name is refused.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The target of a hard link is refused.
    #[error("hard link target: {0}")]
    LinkName(#[source] NameError),
    /// The target of a symlink is empty, longer than [`MAX_TARGET`] bytes, or contains a NUL byte.
    #[error("symlink target is empty, longer than {MAX_TARGET} bytes or contains a NUL byte")]
    SymlinkTarget,
    /// No image tool unpacks entries of this type.
    #[error("unsupported entry type `{}`", std::ascii::escape_default(*.0))]
    Type(u8),
    /// The name of a regular file with data ends in `/`.
    #[error("regular file with data has a name that ends in `/`")]
    FileWithSlash,
    /// The entry for the root is not a directory.
    #[error("entry for the root is not a directory")]
    RootKind,
    /// Character device 0:0 is a whiteout of overlayfs.
    #[error("character device 0:0 is not allowed: overlayfs treats it as a whiteout")]
    WhiteoutDevice,
    /// An extension header is too long.
    #[error("extension header of {size} bytes exceeds the limit of {limit} bytes")]
    LongExtension {
        /// Its length.
        size: u64,
        /// The limit for this kind of header.
        limit: u64,
    },
    /// More than [`MAX_EXTENSIONS`] extension headers precede an entry.
    #[error("more than {MAX_EXTENSIONS} extension headers before one entry")]
    ManyExtensions,
    /// The tar ends after an extension header.
    #[error("extension header without an entry")]
    LoneExtension,
    /// A PAX record is malformed. Holds its key, if that is known.
    #[error("malformed PAX record{}", if .0.is_empty() { String::new() } else { format!(" `{}`", Printable(.0)) })]
    PaxRecord(Box<[u8]>),
    /// A global PAX header sets a value that can only apply to one entry.
    #[error("PAX record `{}` is not allowed in a global header", Printable(.0))]
    GlobalRecord(Box<[u8]>),
    /// Linux cannot store an xattr with this name or length.
    #[error("xattr `{}` is too long or has a malformed name", Printable(.0))]
    Xattr(Box<[u8]>),
    /// The kernel would refuse to set this ACL or capability.
    #[error("xattr `{}` has a malformed value", Printable(.0))]
    XattrValue(Box<[u8]>),
    /// A sparse map contradicts itself, the file's size or the data.
    #[error("malformed sparse map")]
    SparseMap,
    /// A sparse map has more than [`MAX_SEGMENTS`] segments.
    #[error("sparse map has more than {MAX_SEGMENTS} segments")]
    ManySegments,
    /// The walk was continued after it had returned an error.
    #[error("the tar walk has already failed")]
    AlreadyFailed,
}

impl TarFault {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Read(error) => ErrorCode::of_io(error),
            Self::Name(error) | Self::LinkName(error) => error.code(),
            Self::LongExtension { .. } | Self::ManyExtensions | Self::ManySegments => ErrorCode::LayerLimit,
            Self::Truncated
            | Self::Checksum
            | Self::LoneEndBlock
            | Self::HeaderNumber(_)
            | Self::Range(_)
            | Self::SymlinkTarget
            | Self::Type(_)
            | Self::FileWithSlash
            | Self::RootKind
            | Self::WhiteoutDevice
            | Self::LoneExtension
            | Self::PaxRecord(_)
            | Self::GlobalRecord(_)
            | Self::Xattr(_)
            | Self::XattrValue(_)
            | Self::SparseMap => ErrorCode::Layer,
            Self::AlreadyFailed => ErrorCode::Internal,
        }
    }
}
