//! The filesystems of a root: the image below, the skeleton, and the writable upper, joined by an overlay.

pub(super) mod lower;
pub(super) mod mount;
mod plan;
pub(super) mod quota;
pub(super) mod skeleton;
mod target;
pub(super) mod upper;
pub(super) mod watch;
