//! The daemon: serves one store at one mountpoint, follows the store's changes, and answers questions about itself.

mod control;
mod server;
mod status;
mod watch;

pub use control::{ControlError, ControlListener, ControlRequest, ControlResponse, ask};
pub use server::{DaemonError, ServeOptions, refresh, serve};
pub use status::DaemonStatus;
