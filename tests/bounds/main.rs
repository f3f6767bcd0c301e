//! The cost of hostile input: memory, disk and time stay within the documented limits, whatever a layer declares.
//!
//! These tests need their own binary, because it installs a counting allocator. Memory that C libraries allocate is bounded
//! from outside: the program runs under a resource limit.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bombs;
mod directory;
mod index;
mod memory;
mod program_limits;
mod stream;
mod tar_walk;
mod tree;
