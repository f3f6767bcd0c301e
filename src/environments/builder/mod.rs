//! Builds an approved revision with buildah.
//!
//! buildah and everything that it starts live in namespaces of their own: of processes, mounts and network. They end with this
//! process, however it ends, and so do their mounts. What is left then is the directory of the build, which the next builder
//! removes.
//!
//! ```text
//! QUEUE/.queue/build/lock        held by the builder: one at a time
//!                    ID@REVISION/  disk       the image of a filesystem of a limited size: context and storage of buildah
//!                                  base-N/    an OCI layout with one base image; its blobs are those of the store
//!                                  out/       an OCI layout with the image that was built
//!                                  build.log
//! ```

mod bases;
mod directory;
mod layers;
mod output;
mod run;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

pub use output::{BuildOutput, Ending, Supervision};
pub use run::BaseImages;

/// How much a build may use.
#[derive(Debug, Clone, Copy)]
pub struct BuildLimits {
    /// How long it may take.
    pub time: Duration,
    /// The size of its filesystem, in bytes.
    pub disk: u64,
    /// The length of its output, in bytes.
    pub log: u64,
}

/// The only builder of a queue, until it is dropped.
#[derive(Debug)]
pub struct Builder {
    path: PathBuf,
    /// Also the standard input of what it starts, so that the lock is held until the last of these processes has ended.
    lock: File,
}

/// The directory of one build. Dropping it removes it.
#[derive(Debug)]
pub struct BuildDirectory {
    parent: File,
    path: PathBuf,
}
