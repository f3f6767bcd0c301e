//! Tests of the library and the command line that need neither root nor a mount.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod architecture;
mod cli;
mod closing;
mod erofs;
mod fs;
mod gnu_tar;
mod import;
mod index;
mod layer_files;
mod merge;
mod plain;
mod registry;
mod store;
