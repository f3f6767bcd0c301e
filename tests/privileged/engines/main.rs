//! All engines show the same tree: the mount, layer directories and plain copies, compared with each other and with umoci.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod compare;
mod foreign;
mod layer_directories;
mod unpack;
