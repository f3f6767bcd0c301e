//! `pull` and `load` with a real registry, and the store on full, read-only and closed filesystems.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bad_input;
mod registry;
mod store;
