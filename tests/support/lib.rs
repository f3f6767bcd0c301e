//! What the test binaries share: the program under test, images and registries, layers written as text, comparisons.

use std::path::{Path, PathBuf};

pub mod blob;
pub mod canary;
pub mod case;
pub mod child;
pub mod compare;
pub mod disk;
pub mod docker_registry;
pub mod engine_dump;
pub mod engines;
pub mod escape;
pub mod fixture;
pub mod images;
pub mod kernel_log;
pub mod layers;
pub mod layout;
pub mod model;
pub mod old_index;
pub mod program;
pub mod running;

pub mod stored;
pub mod text;
pub mod tmpfs;
pub mod token_server;
pub mod trees;

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the source is there")
}
