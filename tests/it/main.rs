//! Tests that need neither privileges nor a kernel's mount: they run as any user.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

#[path = "../common/layers.rs"]
mod layers;
#[path = "../common/stored.rs"]
mod stored;

mod architecture;
mod fs;
mod gnu_tar;
mod import;
mod index;
mod merge;
mod registry;
mod store;
