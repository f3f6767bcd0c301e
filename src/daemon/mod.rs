//! The daemon: serves one store at one mountpoint, follows the store's changes, and answers questions about itself.

mod control;
mod metrics;
mod server;
mod watch;

pub use control::{ControlError, Listener, Request, Response, ask};
pub use metrics::Status;
pub use server::{DaemonError, ServeOptions, refresh, serve};
