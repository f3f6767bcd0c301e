//! The conformance suite: what layers make of each other, case by case, through every engine.
//!
//! A case is a file in `cases`; nothing else has to be told of it. `README.md` has the rules and the language of the cases,
//! `RESULTS.md` what other tools make of them.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

#[path = "../common/child.rs"]
mod child;
#[path = "../common/layers.rs"]
mod layers;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/shown.rs"]
mod shown;

mod blob;
mod case;
mod disk;
mod engines;
mod layout;
mod merge;
mod results;
