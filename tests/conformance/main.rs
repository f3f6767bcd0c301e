//! The conformance suite: what layers make of each other, case by case, through every engine.
//!
//! A case is a file in `cases`; nothing else has to be told of it. `README.md` has the rules and the language of the cases,
//! `RESULTS.md` what other tools make of them.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod engines;
mod merge;
mod results;
