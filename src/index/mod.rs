//! The index of one layer: a memory-mapped file with the metadata for stat, readdir, readlink and getxattr, and with
//! checkpoints, from which any byte of the layer can be read without decoding the blob from its start.
//!
//! [`build()`] builds the index in one pass while the blob is downloaded. [`Index::open`] validates the whole file once, after
//! which lookups cannot fail. [`Layer`] reads content through the index. [`format`](mod@format) specifies the file.

mod build;
mod content;
mod entry;
mod fetch;
pub mod format;
mod limits;
mod open;
mod peek;
mod read;
mod records;
mod span;
mod tables;
mod thin;
mod validate;
mod windows;
mod write;

use std::fmt;

use crate::layer::is_leftover;

pub use build::{BuildError, BuildOptions, BuiltIndex, build, build_and_pass_on};
pub use content::{Piece, SpanSlice, StoredContent};
pub use entry::{Entry, IndexedKind};
pub use fetch::{BlobRange, RangeHash, RangeKind, ReadBlob};
pub use limits::{LayerLimits, RATIO_FROM, TarLimit};
pub use open::{Index, IndexError, open_file};
pub use peek::{has_outdated_version, recorded_diff_id};
pub use read::{Layer, LayerBytes, ReadError};
pub use tables::TABLES_MAX;
pub use thin::SPAN_MAX;

/// The ordinal of an entry in the tar of its layer, without counting markers. It depends only on the bytes of the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(u32);

/// The ordinal of a span in the index of its layer. It depends only on the bytes of the blob and the version of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u32);

macro_rules! ordinal {
    ($name:ident) => {
        impl $name {
            /// Wraps an ordinal, counted from 0.
            #[must_use]
            pub const fn new(ordinal: u32) -> Self {
                Self(ordinal)
            }

            /// The ordinal, counted from 0.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0
            }

            /// The ordinal as an index into memory (`usize` has at least 32 bits on every supported host).
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// Whether a path is below a leftover of AUFS. Entries with such paths are only targets of hard links, in their own layer.
pub(crate) fn is_hidden(path: &[u8]) -> bool {
    let parent = path.iter().rposition(|&byte| byte == b'/').map_or(&[][..], |slash| &path[..slash]);
    parent.split(|&byte| byte == b'/').any(is_leftover)
}

ordinal!(EntryId);
ordinal!(SpanId);
