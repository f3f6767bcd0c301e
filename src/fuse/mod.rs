//! The kernel's side: FUSE requests in, answers of the filesystem out.

mod adapter;
mod convert;
mod mount;
mod requests;
mod session;

pub use mount::{
    FuseMount, MOUNT_NAME, SessionError, UnmountResult, UnservedMount, mount, prepare_mountpoint,
};
pub use requests::{Operation, RequestCounters};
pub use session::{CacheInvalidator, FuseSession, serve};
