//! OCI images as read-only directories for sandboxes.

pub mod daemon;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod index;
pub mod layer;
pub mod registry;
pub mod store;
pub mod tree;
