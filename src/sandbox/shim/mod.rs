//! A stand-in for isolate: called with a worker's arguments, it becomes the real one, in a root of an image where one is chosen.
//!
//! A worker that runs `isolate` from its PATH needs no change: it finds this program under that name. Without an image the
//! real isolate is executed with the same arguments, descriptors and identity. With one, the call is rewritten for a root
//! that exists in a mount namespace of this process alone; then this process *becomes* isolate, since workers kill it by
//! its number.
//!
//! Workers are not root, and only root can make such a namespace. So the program is installed set-uid, as isolate is, and
//! what it does before it gives its privileges up is kept small:
//!
//! - Nothing that the caller names is opened, followed or run with privileges. The path of an image is compared as text with
//!   the mountpoint, and looked up below it by the kernel's own rules; the meta file is opened, and isolate executed, with
//!   the caller's identity, for good.
//! - Settings come from the configuration file alone, and only where nobody but root can write it.
//! - What has been made is removed by a second process (the guardian), which the caller cannot reach, however the
//!   first one ends.

mod caller;
mod exec;
mod guardian;
mod images;
mod real_isolate;
mod rewrite;

use std::io;
use std::path::PathBuf;

pub use caller::{Caller, Rights};
pub use exec::{ShimSettings, become_isolate, meta_file, require_trusted};
pub use images::{BoxImages, ImageName};
pub use rewrite::{CallRewrite, ImageChoice, choose, may_be_for_an_image};

use super::isolate::IsolateError;
use crate::pipeline::PipelineError;
use crate::roots::RootsError;
use crate::store::StoreError;

/// Why the stand-in could not become isolate.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Not a name of an image in the mount.
    #[error("image `{0}`: not of the form NAME[:TAG][@DIGEST]")]
    ImageName(String),
    /// Not boxes.
    #[error("boxes `{0}`: neither a number, nor a range as 10-19, nor `default`")]
    Boxes(String),
    /// Two images for the same box.
    #[error("box {0} has two images")]
    BoxTwice(u32),
    /// A call that isolate may understand, and this program does not. It could have been for an image.
    #[error("arguments that cannot be told to be for no image")]
    Arguments(#[source] IsolateError),
    /// The call, or the real isolate.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// The box's number decides on its image, and cannot be read.
    #[error("box `{0}` is not a number, and boxes have images of their own")]
    BoxId(String),
    /// A path in the mount that would climb.
    #[error("image {0}: `..` in a path of the mount")]
    Climbs(PathBuf),
    /// The mount itself, or a path that is no text.
    #[error("{0} in the mount is not an image")]
    NotAnImage(PathBuf),
    /// A rule's place leads to the root itself.
    #[error("directory rule for {0}: in the image this is the root")]
    OverRoot(PathBuf),
    /// A rule's place leads to what another rule mounts.
    #[error("directory rule for {0}: in the image this leads into {1}, where something else is mounted")]
    Covered(PathBuf, PathBuf),
    /// There is no isolate to become.
    #[error("there is no isolate at {}", list(.0))]
    NoIsolate(Vec<PathBuf>),
    /// The configured isolate is this program.
    #[error("isolate {0} is this program itself")]
    Itself(PathBuf),
    /// A file that others than root could have put there.
    #[error("{path} is not to be trusted: {why}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody shows the store's images.
    #[error("no daemon serves the store {0}")]
    NoDaemon(PathBuf),
    /// An image is wanted, and this process has no privileges.
    #[error("a root of an image takes privileges: this program is neither run by root nor set-uid root")]
    Unprivileged,
    /// The root.
    #[error(transparent)]
    Overlay(#[from] RootsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image's configuration.
    #[error("configuration of image {image}")]
    Config {
        /// The image.
        image: String,
        /// What is wrong with it.
        source: PipelineError,
    },
    /// The process that cleans up could not be started.
    #[error("guardian process")]
    Guardian(#[source] io::Error),
    /// Identity, limits or namespaces of this process.
    #[error("{0}")]
    Process(&'static str, #[source] io::Error),
    /// The real isolate could not be executed.
    #[error("execute {path}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
}

impl ShimError {
    /// What to do about it, if anything can be said.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoIsolate(_) | Self::Itself(_) => {
                Some("set `path` in the table [isolate] of the configuration")
            }
            Self::NoDaemon(_) => Some("start one with `rcx-imagefs mount DIR`"),
            Self::Unprivileged => Some("install it set-uid, as the README says"),
            Self::Overlay(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Config { source, .. } => source.hint(),
            _ => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if paths.is_empty() { "any place of the PATH".to_owned() } else { paths.join(", ") }
}
