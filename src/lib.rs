//! OCI images as read-only directories for sandboxes.

pub mod image;
pub mod layer;
