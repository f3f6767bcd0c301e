//! The filesystem as plain Rust: answers requests for names and inode numbers with attributes and bytes.
//!
//! There are two filesystems: [`ImageFs`] has the images, and [`LayerFiles`] the layers as files. Neither depends on FUSE; [`crate::fuse`]
//! translates between them and the kernel.

mod ahead;
mod answers;
mod attr;
mod cache;
mod content;
mod error;
mod image_fs;
mod images;
mod inodes;
mod layer_files;
mod layers;
mod namespace;
mod resolve;
mod source;
mod traces;

pub use answers::{DirEntry, FsStatus, Lookup, StatFs};
pub use attr::{FileKind, InodeAttr};
pub use cache::{CacheCounters, SpanBytes, SpanCache, SpanFault, SpanKey};
pub use content::FileBytes;
pub use error::{ContentFault, FailedContent, FsError, ImageFault, LoadError};
pub use image_fs::{FsOptions, ImageFs, NAME_MAX};
pub use inodes::{DecodedIno, Ino};
pub use layer_files::{LayerFiles, layer_file_name};
pub use namespace::{
    NameTarget, Namespace, NamespaceChanges, NamespaceDirectory, NamespaceNode, NamespaceSymlink,
    PublishedImage, PublishedReference,
};
pub use source::ImageSource;
