//! The bubblewrap backend of a run, for hosts without isolate. bubblewrap isolates the program but enforces no limits.
//!
//! bubblewrap is started as an unprivileged user in a mount namespace that contains the root, and makes its own namespaces from
//! there. That user cannot reach the box and other directories of the host, so they are bound into the root first.

mod arguments;
mod backend;
mod check;
mod verdict;

pub use backend::BwrapSandbox;
