//! The daemon: serves one store at one mountpoint, follows changes in the store, and answers control requests.

mod control;
mod error;
mod server;
mod status;
mod watch;

pub use control::{ControlError, ControlListener, ControlRequest, ControlResponse, ask};
pub use error::DaemonError;
pub use server::{ServeOptions, refresh, serve};
pub use status::DaemonStatus;
