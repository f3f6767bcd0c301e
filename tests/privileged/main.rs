//! Tests on the real kernel: real FUSE mounts, a real registry, images that umoci and GNU tar made.
//!
//! They run as root and fail when a prerequisite is missing; `scripts/test` installs them all.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

#[path = "../common/child.rs"]
mod child;
#[path = "../common/docker_registry.rs"]
mod docker_registry;
#[path = "../common/images.rs"]
mod images;
#[path = "../common/program.rs"]
mod program;

mod scene;
mod trees;

mod bad_host;
mod bad_input;
mod compare;
mod damage;
mod engines;
mod live;
mod mount;
mod pull;
mod remove;
mod root;
mod run;
mod shim;
mod store;
mod unpack;
mod warm;
