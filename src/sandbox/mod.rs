//! Isolated runs: one command in a root of its own, under `isolate` or bubblewrap.
//!
//! What a run asks for is a value; the argument vectors that come of it are made by pure functions. Processes and
//! namespaces are the business of few files.

pub mod isolate;
