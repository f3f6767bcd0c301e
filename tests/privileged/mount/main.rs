//! The mount: what it shows and refuses, how it follows the store, and what it does when the host or the store is damaged.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod bad_host;
mod calls;
mod damage;
mod live;
mod warm;
