//! Where commands that only show images find them: in the store, or at the daemon for users who may not read the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Context, error};
use crate::daemon::{ControlRequest, ControlResponse, DaemonStatus, ask, control_socket};
use crate::error::{ErrorCode, chain_text};
use crate::image::ManifestDigest;
use crate::pipeline::{ImageDescription, ImageSummary, describe_image, list_images};
use crate::store::{Refs, Store, StoreError};

/// How long to wait for the daemon's status.
const STATUS: Duration = Duration::from_secs(5);
/// How long to wait for the daemon's answer about images. It may have to rebuild an index first.
const IMAGES: Duration = Duration::from_secs(60);

/// The images of the store that the user may see.
pub(super) enum Catalog {
    /// The user may read the store.
    Store(Store),
    /// Only the daemon may. It answers at the socket.
    Daemon { socket: PathBuf, status: Box<DaemonStatus> },
}

impl Context {
    /// Opens the store, or asks the daemon in its place if the user may not read the store.
    pub(super) fn catalog(&self) -> anyhow::Result<Catalog> {
        let refused = match self.open_store().map_err(anyhow::Error::downcast::<StoreError>) {
            Ok(store) => return Ok(Catalog::Store(store)),
            Err(Ok(refused @ (StoreError::Private { .. } | StoreError::Permission { .. }))) => refused,
            Err(Ok(error)) => return Err(error.into()),
            Err(Err(error)) => return Err(error),
        };
        let socket = control_socket(&self.run_dir);
        let reason = match ask_status(&socket) {
            Ok(status) if is_same(&status.store, &self.store) => {
                return Ok(Catalog::Daemon { socket, status });
            }
            Ok(status) => {
                format!("the daemon at {} serves the store {}", socket.display(), status.store.display())
            }
            Err(error) => format!("{error:#}"),
        };
        Err(error::fail_with_hint(
            ErrorCode::Permission,
            format!("{}; {reason}", chain_text(&refused)),
            "start the daemon, which answers for a private store, or run as root or as the owner of the store",
        ))
    }
}

impl Catalog {
    /// All images, sorted by name.
    pub(super) fn images(&self) -> anyhow::Result<Vec<ImageSummary>> {
        match self {
            Self::Store(store) => Ok(list_images(store)?),
            Self::Daemon { socket, .. } => match ask(socket, ControlRequest::Images, IMAGES)? {
                ControlResponse::Images(images) => Ok(images),
                other => Err(unexpected(&other)),
            },
        }
    }

    /// The names and tags of all images.
    pub(super) fn refs(&self) -> anyhow::Result<Refs> {
        match self {
            Self::Store(store) => Ok(store.refs()?),
            Self::Daemon { .. } => {
                Ok(Refs { images: self.images()?.into_iter().map(|image| image.record).collect() })
            }
        }
    }

    /// The parts of an image.
    pub(super) fn describe(&self, digest: ManifestDigest) -> anyhow::Result<ImageDescription> {
        match self {
            Self::Store(store) => Ok(describe_image(store, &digest)?),
            Self::Daemon { socket, .. } => match ask(socket, ControlRequest::Image { digest }, IMAGES)? {
                ControlResponse::Image(image) => Ok(*image),
                ControlResponse::UnreadableImage(failure) => {
                    let code = ErrorCode::ALL.iter().find(|code| code.as_str() == failure.code);
                    Err(error::fail(code.copied().unwrap_or(ErrorCode::DaemonRefused), failure.message))
                }
                other => Err(unexpected(&other)),
            },
        }
    }

    /// Where the images are mounted.
    pub(super) fn mountpoint(&self, context: &Context) -> anyhow::Result<PathBuf> {
        match self {
            Self::Store(store) => Ok(context.daemon(store)?.mountpoint),
            Self::Daemon { status, .. } => Ok(status.mountpoint.clone()),
        }
    }

    /// The status of the daemon, which must run.
    pub(super) fn status(self, context: &Context) -> anyhow::Result<Box<DaemonStatus>> {
        match self {
            Self::Store(store) => ask_status(&context.daemon(&store)?.socket),
            Self::Daemon { status, .. } => Ok(status),
        }
    }
}

fn ask_status(socket: &Path) -> anyhow::Result<Box<DaemonStatus>> {
    match ask(socket, ControlRequest::Status, STATUS)? {
        ControlResponse::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &ControlResponse) -> anyhow::Error {
    error::fail(ErrorCode::DaemonRefused, format!("unexpected answer from the daemon: {answer:?}"))
}

/// Whether two paths lead to the same directory. Neither need be readable.
fn is_same(served: &Path, asked: &Path) -> bool {
    let resolved = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    matches!((resolved(served), resolved(asked)), (Ok(served), Ok(asked)) if served == asked)
}
