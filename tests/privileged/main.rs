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
#[path = "../common/layers.rs"]
mod layers;
#[path = "../common/program.rs"]
mod program;

#[path = "../conformance/blob.rs"]
mod blob;
#[path = "../conformance/case.rs"]
#[allow(dead_code, reason = "the files of the suite are read by the suite alone")]
mod case;
#[path = "../conformance/disk.rs"]
mod disk;
#[path = "../conformance/layout.rs"]
mod layout;

mod canary;
mod scene;
mod text;
mod trees;

mod bad_host;
mod bad_input;
mod compare;
mod damage;
mod engines;
mod escape;
mod live;
mod mount;
mod posix;

mod pull;
mod remove;
mod root;
mod run;
mod shim;
mod store;
mod unpack;
mod warm;
