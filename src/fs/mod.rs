//! The filesystem, without a kernel: names and numbers in, attributes and bytes out.

mod cache;
mod inodes;

pub use cache::{CacheCounters, SpanBytes, SpanCache, SpanFault, SpanKey};
pub use inodes::{Ino, Place};
