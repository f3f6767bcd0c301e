//! A merged tree as an EROFS image: names, attributes and extents, but no content.
//!
//! The kernel mounts the image together with one device for each layer, and finds the bytes of a regular file there:
//!
//! ```text
//! Tree + indexes --TreeImage::write--> tree image --mount--> the image's directories and attributes
//!                                          | extents
//!                                          v
//!                     device 1..N: decoded tars of the layers (LayerDevice)
//! ```
//!
//! An image has these parts: 1024 unused bytes, the superblock, the device table, the inodes (each with its xattrs, and the
//! tail of a directory or a symlink), the shared xattrs, and the blocks of directories and long symlinks. An inode stands
//! after the inode of its directory, so that a walk reads the image from its start to its end.
//!
//! The writer is deterministic and streams: it keeps 4 bytes for each node, and the shared xattrs. All content is where the tar
//! has it. So a regular file needs one address, and no block is copied.

mod device;
mod directory;
mod error;
mod file;
pub mod format;
mod inode;
mod plain;
mod plain_file;
mod plan;
mod write;
mod xattrs;

pub use device::{DevicePart, LayerDevice};
pub use error::{ErofsError, Inexpressible, TreeFileFault};
pub use file::{TreeDevice, TreeFile};
pub use plain::{PlainLayerError, PlainWriter, write_plain};
pub use plain_file::{PlainFile, PlainFileFault};
pub use plan::TreeImage;
