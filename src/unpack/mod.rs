//! Writes trees to a disk: whole, or what one has in place of another.
//!
//! A [`UnpackPlan`] says what to write and is a pure function of trees; [`write()`] carries it out, in parallel, and never
//! outside the directory it is given.

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
