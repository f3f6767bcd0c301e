//! Mounts the filesystem, and answers the kernel's FUSE requests with [`crate::fs::ImageFs`].

mod adapter;
mod answer;
mod convert;
mod error;
mod failures;
mod mount;
mod requests;
mod session;

pub use error::SessionError;
pub use failures::{AccountMark, ReadAccounts, ReadFailure, ReadFailureReport};
pub use mount::{FuseMount, MOUNT_NAME, UnmountResult, UnservedMount, mount, prepare_mountpoint};
pub use requests::{Operation, RequestCounters};
pub use session::{CacheInvalidator, FuseSession, serve};
