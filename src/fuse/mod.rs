//! The kernel's side: FUSE requests in, answers of the filesystem out.

mod adapter;
mod convert;
mod mount;
mod requests;
mod session;

pub use mount::{MOUNT_NAME, Mount, MountedFuse, SessionError, Unmounted, mount, prepare_mountpoint};
pub use requests::{Operation, Requests};
pub use session::{Kernel, Serving, serve};
