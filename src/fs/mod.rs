//! The filesystem, without a kernel: names and numbers in, attributes and bytes out.

mod answers;
mod attr;
mod cache;
mod content;
mod error;
mod image_fs;
mod images;
mod inodes;
mod namespace;
mod resolve;
mod source;

pub use answers::{DirEntry, Figures, FsStatus, Lookup};
pub use attr::{Attr, FileKind};
pub use cache::{CacheCounters, SpanBytes, SpanCache, SpanFault, SpanKey};
pub use content::Bytes;
pub use error::{FsError, ImageFault};
pub use image_fs::{FsOptions, ImageFs, NAME_MAX};
pub use inodes::{Ino, Place};
pub use namespace::{Changes, Directory, Image, Namespace, Node, Published, Symlink, Target};
pub use source::{LoadError, Source};
