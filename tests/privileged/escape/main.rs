//! Images that try to write, read or change something outside their own tree: see [`support::escape`].

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod archives;
mod canary;
mod engines;
mod rights;
