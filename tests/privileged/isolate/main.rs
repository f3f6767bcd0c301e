//! Tests of the stand-in for isolate, called the way judge workers call it.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod host;

mod attempts;
mod attempts_configuration;
mod attempts_files;
mod attempts_images;
mod commands;
mod failures;
mod guardian;
mod kills;
mod names;
mod no_daemon;
mod unreadable;
mod worker;
