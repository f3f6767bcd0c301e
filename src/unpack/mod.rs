//! Writes trees to a disk: whole, or what one has in place of another.
//!
//! A [`Plan`] says what to write and is a pure function of trees; [`write()`] carries it out, in parallel, and never
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
pub use plan::{Directory, DirectoryNo, Name, Node, Plan};
pub use staging::{Staging, StagingError};
pub use write::{Options, Written, write};
