//! `pull`, `load`, `push` and `copy` with a real registry, and stores on full, read-only and inaccessible filesystems.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bad_input;
mod environments;
mod logins;
mod plain;
mod private_registry;
mod push;
mod registry;
mod store;
