//! The stand-in for isolate, as workers call it.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod host;

mod attempts;
mod attempts_files;
mod attempts_images;
mod failures;
mod kills;
mod worker;
