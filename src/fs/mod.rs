//! The filesystem, without a kernel: names and numbers in, attributes and bytes out.

mod cache;
mod inodes;
mod namespace;

pub use cache::{CacheCounters, SpanBytes, SpanCache, SpanFault, SpanKey};
pub use inodes::{Ino, Place};
pub use namespace::{Changes, Directory, Image, Namespace, Node, Published, Symlink, Target};
