//! Mounts the filesystems of [`crate::fs`], and answers the kernel's FUSE requests with them.

mod adapter;
mod answer;
mod convert;
mod error;
mod failures;
mod family;
mod layer_adapter;
mod mount;
mod negotiate;
mod readers;
mod requests;
mod session;

pub use error::SessionError;
pub use failures::{AccountMark, ReadAccounts, ReadFailure, ReadFailureReport};
pub use mount::{FuseMount, MOUNT_NAME, UnmountResult, UnservedMount, mount, prepare_mountpoint};
pub use readers::{LazyReads, ReaderQuery};
pub use requests::{Operation, RequestCounters};
pub use session::{CacheInvalidator, FuseSession, serve, serve_layers};
