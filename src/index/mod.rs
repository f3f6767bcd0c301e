//! The index of one layer: a memory-mapped file with all that stat, readdir, readlink and getxattr need, and the
//! checkpoints that let any byte of the layer be read without decoding from the start.
//!
//! [`build()`] makes it in the one pass in which a blob is downloaded; [`Index::open`] validates the whole file once,
//! after which look-ups cannot fail; [`Layer`] reads content through it. [`format`](mod@format) is the file's specification.

mod build;
mod entry;
pub mod format;
mod limits;
mod open;
mod read;
mod records;
mod tables;
mod thin;
mod validate;
mod windows;
mod write;

use std::fmt;

pub use build::{BuildError, BuildOptions, BuiltIndex, build};
pub use entry::{Entry, IndexedKind};
pub use limits::{LayerLimits, RATIO_FROM, TarLimit};
pub use open::{Index, IndexError, open_file, recorded_diff_id};
pub use read::{Layer, LayerBytes, Piece, ReadError};
pub use tables::TABLES_MAX;
pub use thin::SPAN_MAX;

/// One entry of a layer that is not a marker: its ordinal in the tar. A pure function of the layer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(u32);

/// One span of a layer: its ordinal in the index.
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

            /// The ordinal as an index into memory (`usize` has at least 32 bits on every host with FUSE).
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

ordinal!(EntryId);
ordinal!(SpanId);
