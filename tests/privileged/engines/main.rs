//! All engines (the mount, layer directories, plain copies) show the same tree, compared with each other and with umoci.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod acl;
mod compare;
mod cp;
mod etc;
mod foreign;
mod hostile;
mod layer_directories;
mod tree_image;
mod unpack;
