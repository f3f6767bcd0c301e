//! What hostile input may cost: memory, disk and time stay within the limits that the program states, whatever a layer says.
//!
//! A binary of its own, since its allocator counts. What C libraries take is measured from outside: the program runs under
//! a limit of the kernel.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bombs;
mod directory;
mod index;
mod memory;
mod program_limits;
mod stream;
mod tar_walk;
mod tree;
