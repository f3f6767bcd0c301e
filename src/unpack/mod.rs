//! Writes trees to disk: a whole tree, or the difference between two trees.
//!
//! An [`UnpackPlan`] lists the files to write and is a pure function of trees. [`write()`] carries it out on several threads
//! and never writes outside the target directory; [`write_tar()`] writes it as a tar. [`check()`] compares a directory with the plan from which it was
//! written, and [`differences()`] compares two images.

mod attributes;
mod check;
mod content;
mod difference;
mod directories;
mod error;
mod plan;
mod staging;
mod stream;
mod tar;
mod write;

pub use self::tar::write_tar;
pub use check::check;
pub use difference::{PathChange, PathDifference, differences};
pub use error::UnpackError;
pub use plan::{DirectoryNo, PlanDirectory, PlanName, PlanNode, UnpackPlan};
pub use staging::{Staging, StagingError};
pub use stream::{FileReader, FileStream};
pub use write::{UnpackOptions, UnpackStats, write};
