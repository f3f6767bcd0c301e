//! Why the filesystem does not answer, and the one table of what the kernel is told then.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Ino, SpanFault};
use crate::index::ReadError;

/// Why a request is not answered with data.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// No such name, or no longer.
    #[error("no such name")]
    NotFound,
    /// A name longer than any can be.
    #[error("name too long")]
    NameTooLong,
    /// The number stands for nothing that this mount has.
    #[error("no inode {0}")]
    Stale(Ino),
    /// A directory was needed.
    #[error("inode {0} is not a directory")]
    NotADirectory(Ino),
    /// Something with bytes was needed.
    #[error("inode {0} is a directory")]
    IsADirectory(Ino),
    /// A request that this kind of file does not have (a link target of a file, the bytes of a fifo).
    #[error("inode {0} is of the wrong kind")]
    WrongKind(Ino),
    /// The inode has no such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The answer does not fit into the room that was given.
    #[error("answer is larger than the room for it")]
    NoRoom,
    /// No data, or no hole, at or behind this offset.
    #[error("offset is behind the last of its kind")]
    BehindEnd,
    /// An argument with no meaning.
    #[error("invalid argument")]
    Invalid,
    /// Something would change.
    #[error("images are read-only")]
    ReadOnly,
    /// A request that this filesystem leaves to the kernel.
    #[error("not implemented")]
    NotImplemented,
    /// The image is published and cannot be served.
    #[error(transparent)]
    Image(#[from] Arc<ImageFault>),
    /// A layer that is in use cannot be opened (any more).
    #[error("layer with slot {slot}")]
    Layer {
        /// Its slot in the store.
        slot: u32,
        /// What came of opening it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Content cannot be read.
    #[error(transparent)]
    Content(SpanFault<ReadError>),
    /// Two parts of what was validated contradict each other.
    #[error("inode {0}: tree and index contradict each other")]
    Inconsistent(Ino),
    /// The handler of the request panicked.
    #[error("the request's handler panicked")]
    Panicked,
}

/// Why an image that is published cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// Its blobs, indexes or tree.
    #[error("image {image}")]
    Open {
        /// Where the mount has it.
        image: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Opening it panicked.
    #[error("image {0}: opening it panicked")]
    Panicked(String),
    /// Another request has been opening it for too long.
    #[error("image {image}: not open after {waited:?}")]
    Deadline {
        /// Where the mount has it.
        image: String,
        /// How long this request waited.
        waited: Duration,
    },
}

impl FsError {
    /// What the kernel is told.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::NOENT,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::Stale(_) => Errno::STALE,
            Self::NotADirectory(_) => Errno::NOTDIR,
            Self::IsADirectory(_) => Errno::ISDIR,
            Self::WrongKind(_) | Self::Invalid => Errno::INVAL,
            Self::NoAttribute => Errno::NODATA,
            Self::NoRoom => Errno::RANGE,
            Self::BehindEnd => Errno::NXIO,
            Self::ReadOnly => Errno::ROFS,
            Self::NotImplemented => Errno::NOSYS,
            Self::Image(_)
            | Self::Layer { .. }
            | Self::Content(_)
            | Self::Inconsistent(_)
            | Self::Panicked => Errno::IO,
        }
    }
}

/// An error and all that it comes from, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
