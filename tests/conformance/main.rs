//! The conformance suite: how layers combine, case by case, through every engine.
//!
//! A case is a file in `cases`; a new file needs no other change. `README.md` defines the rules and the language of the cases.
//! `RESULTS.md` records the results of other tools.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod engines;
mod merge;
mod results;
