//! Writes trees to disk: a whole tree, or the difference between two trees.
//!
//! An [`UnpackPlan`] lists the files to write and is a pure function of trees. [`write()`] carries it out on several threads
//! and never writes outside the target directory. [`check()`] compares a directory with the plan from which it was written.

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
