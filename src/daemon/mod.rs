//! The daemon: serves one store at one mountpoint, follows changes in the store, and answers control requests.

mod account;
mod control;
mod error;
mod layer_mount;
mod listener;
mod protocol;
mod server;
mod status;
mod upkeep;
mod watch;

pub use account::{AccountedImage, ReadFault, RunAccount};
pub use control::{ControlError, ask, ask_with_protocol};
pub use error::DaemonError;
pub use layer_mount::LAYERS;
pub use listener::ControlListener;
pub use protocol::{ControlRequest, ControlResponse, MessageForm, PROTOCOL, decode_answer, decode_request};
pub use server::{ServeOptions, control_socket, refresh, serve};
pub use status::{DaemonStatus, LayerFilesStatus, PlainLayersStatus};
