//! The stand-in for isolate, as workers call it.

mod host;

mod attempts;
mod attempts_files;
mod attempts_images;
mod failures;
mod kills;
mod worker;
