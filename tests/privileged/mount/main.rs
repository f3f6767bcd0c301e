//! The mount: its content, refused changes, updates from the store, and behaviour on damaged hosts and stores.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bad_host;
mod calls;
mod closing;
mod control;
mod damage;
mod doctor;
mod layer_files;
mod live;
mod plain;
mod private;
mod warm;
