//! Writes trees to disk: a whole tree, or the difference between two trees.
//!
//! An [`UnpackPlan`] lists what to write and is a pure function of trees. [`write()`] carries it out on several threads and
//! never writes outside the directory it is given. [`check()`] compares a directory with the plan it was written by.

mod attributes;
mod check;
mod content;
mod directories;
mod error;
mod plan;
mod staging;
mod write;

pub use check::check;
pub use error::UnpackError;
pub use plan::{DirectoryNo, PlanDirectory, PlanName, PlanNode, UnpackPlan};
pub use staging::{Staging, StagingError};
pub use write::{UnpackOptions, UnpackStats, write};
