//! The stand-in for isolate, as workers call it.

mod host;

mod attempts;
mod attempts_files;
mod failures;
mod kills;
mod worker;
