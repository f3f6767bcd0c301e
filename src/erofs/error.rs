//! The errors of the EROFS writer.

use std::io;

use crate::error::ErrorCode;

/// The reason why a tree has no EROFS image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The output cannot be written.
    #[error("cannot write the tree image")]
    Io(#[from] io::Error),
    /// The format cannot express the tree. Another engine can still show it.
    #[error("EROFS cannot express the image: {0}")]
    Inexpressible(Inexpressible),
}

/// The part of a tree that the format cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inexpressible {
    /// Block addresses have 32 bits.
    #[error("the content of layer {layer} takes {bytes} bytes, but a device has at most {max} bytes")]
    Device {
        /// The layer, counted from 1.
        layer: usize,
        /// The bytes of the layer's device.
        bytes: u64,
        /// The most bytes of a device.
        max: u64,
    },
    /// The root directory's number has 16 bits, and the device table stands before it.
    #[error("{layers} layers have content, but the device table has room for {max}")]
    Devices {
        /// The number of layers with content.
        layers: usize,
        /// The most devices.
        max: usize,
    },
    /// A file of nothing but holes needs one record for each TiB.
    #[error("a file without content has {bytes} bytes, more than {max}")]
    Hole {
        /// The size of the file.
        bytes: u64,
        /// The longest such file, in bytes.
        max: u64,
    },
    /// The size of an xattr's value has 16 bits.
    #[error("extended attribute `{name}` has {bytes} bytes, more than 65535")]
    XattrValue {
        /// The name, printable.
        name: String,
        /// The size of the value.
        bytes: usize,
    },
    /// An xattr of a namespace without a number in the format.
    #[error("extended attribute `{0}` is in an unknown namespace")]
    XattrName(String),
    /// A file has more xattrs than fit beside an inode.
    #[error("the extended attributes of a file take {bytes} bytes, more than {max}")]
    Xattrs {
        /// The bytes that the attributes take beside the inode.
        bytes: usize,
        /// The most bytes.
        max: usize,
    },
    /// The metadata is too large for 32-bit block addresses or inode numbers.
    #[error("the tree has too many nodes")]
    Metadata,
}

/// The reason why a file cannot be used as a tree image. It is made anew.
#[derive(Debug, thiserror::Error)]
pub enum TreeFileFault {
    /// The header or the content does not have its checksum.
    #[error("the tree image is damaged")]
    Damaged,
    /// Another version of this program made it.
    #[error("the tree image has format version {found}, not {supported}")]
    Version {
        /// The version of the file.
        found: u64,
        /// The version of this program.
        supported: u32,
    },
    /// The file is truncated or too long.
    #[error("the tree image has {actual} bytes instead of {declared}")]
    Length {
        /// The length of the file in bytes.
        actual: u64,
        /// The length in the header.
        declared: u64,
    },
    /// The file cannot be read.
    #[error("cannot read the tree image")]
    Io(#[from] io::Error),
}

impl From<Inexpressible> for ErofsError {
    fn from(fault: Inexpressible) -> Self {
        Self::Inexpressible(fault)
    }
}

impl ErofsError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io(error) => ErrorCode::of_io(error),
            Self::Inexpressible(_) => ErrorCode::UnsupportedImage,
        }
    }
}
