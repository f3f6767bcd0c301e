//! Where the images of the stand-in are: in the mount of the daemon, or without a daemon, in the store.

use std::path::{Path, PathBuf};

use super::stored::{known_mountpoint, open_store};
use super::{ShimError, ShimSettings};
use crate::fs::{ImageSource, NameTarget, Namespace};
use crate::image::{Image, ManifestDigest};
use crate::pipeline;
use crate::roots::{HeldTree, Lower, RootsError, TreeMounts};
use crate::store::{DaemonInfo, Store};

/// Where the images are.
#[derive(Debug)]
pub(super) enum ImageHome {
    /// In the mount of a daemon.
    Mount(DaemonInfo),
    /// In the store, with the same names. Only images whose layers are all plain can be used.
    Store {
        /// The names that a daemon would show.
        names: Box<Namespace>,
        /// The mountpoint of the last daemon, or of the configuration.
        mountpoint: Option<PathBuf>,
    },
}

/// An image that was found by one of its names.
#[derive(Debug)]
pub(super) struct LocatedImage {
    /// `NAME@DIGEST`.
    pub(super) name: String,
    /// Its directory in the mount; `None` without a daemon.
    directory: Option<Lower>,
}

impl ImageHome {
    /// Finds the daemon of the store. Without one, reads the names of the images from the store.
    ///
    /// # Errors
    /// There is no store, or it cannot be used, or the configuration allows only images in the mount of a daemon.
    pub(super) fn find(settings: &ShimSettings) -> Result<Self, ShimError> {
        let no_daemon = || ShimError::NoDaemon(settings.store.clone());
        let store = open_store(settings)?.ok_or_else(no_daemon)?;
        if let Some(daemon) = store.running_daemon()? {
            let mountpoint = settings.mountpoint.clone().unwrap_or(daemon.mountpoint);
            return Ok(Self::Mount(DaemonInfo { mountpoint, ..daemon }));
        }
        if settings.tree_idle.is_none() {
            return Err(no_daemon());
        }
        let mountpoint = known_mountpoint(settings)?;
        let names = ImageSource::new(store, settings.default_registry.clone()).namespace();
        let names = names.map_err(|source| ShimError::Names(settings.store.clone(), Box::new(source)))?;
        Ok(Self::Store { names: Box::new(names), mountpoint })
    }

    /// The daemon.
    pub(super) fn daemon(&self) -> Option<&DaemonInfo> {
        match self {
            Self::Mount(daemon) => Some(daemon),
            Self::Store { .. } => None,
        }
    }

    /// The mountpoint of the images, also of a daemon that has ended.
    pub(super) fn mountpoint(&self) -> Option<&Path> {
        match self {
            Self::Mount(daemon) => Some(&daemon.mountpoint),
            Self::Store { mountpoint, .. } => mountpoint.as_deref(),
        }
    }

    /// Finds an image by its path below the mountpoint; `None` for a directory of names.
    ///
    /// # Errors
    /// There is no such image, or the mount cannot be used.
    pub(super) fn image(&self, path: &Path) -> Result<Option<LocatedImage>, ShimError> {
        match self {
            Self::Mount(daemon) => match Lower::in_mount(&daemon.mountpoint, path) {
                Err(RootsError::NotAnImage { .. }) => Ok(None),
                Ok(lower) => {
                    let name = lower.resolved_name().to_owned();
                    Ok(Some(LocatedImage { name, directory: Some(lower) }))
                }
                Err(error) => Err(error.into()),
            },
            Self::Store { names, .. } => match names.resolve(path) {
                Some(NameTarget::Image(image)) => {
                    let name = names.path_of(image.slot).ok_or_else(|| ShimError::NotAnImage(path.into()))?;
                    Ok(Some(LocatedImage { name, directory: None }))
                }
                Some(_) => Ok(None),
                None => Err(ShimError::NotAnImage(path.into())),
            },
        }
    }

    /// Returns the lower layers of a root of an image.
    ///
    /// # Errors
    /// The image needs a daemon, and there is none.
    pub(super) fn lower(
        &self,
        settings: &ShimSettings,
        store: &Store,
        image: &Image,
        named: LocatedImage,
    ) -> Result<Lower, ShimError> {
        let LocatedImage { name, directory } = named;
        let layers = self.daemon().and_then(|daemon| daemon.layers.as_deref());
        match (in_tree(settings, store, image, layers), directory) {
            (Ok(Some(tree)), _) => Ok(Lower::in_tree(tree, &name)),
            (Ok(None), Some(directory)) => Ok(directory),
            // The daemon shows the same image.
            (Err(error), Some(directory)) => {
                tracing::debug!("{error}");
                Ok(directory)
            }
            (Ok(None) | Err(RootsError::NoLayer(_)), None) => {
                Err(ShimError::NoDaemon(settings.store.clone()))
            }
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Reads the manifest and the configuration of the image.
pub(super) fn stored_image(settings: &ShimSettings, name: &str) -> Result<(Store, Image), ShimError> {
    let digest = name.rsplit_once('@').and_then(|(_, digest)| digest.parse::<ManifestDigest>().ok());
    let digest = digest.ok_or_else(|| ShimError::NotAnImage(name.into()))?;
    let store = open_store(settings)?.ok_or_else(|| ShimError::NoDaemon(settings.store.clone()))?;
    let image = pipeline::read_image(&store, &digest)
        .map_err(|source| ShimError::Config { image: name.to_owned(), source })?;
    Ok((store, image))
}

/// Returns a mount of the image's tree image; `None` if there is none, or the configuration wants none.
///
/// Only a mount of what another process has made: this process may be set-uid, and reads no layer.
fn in_tree(
    settings: &ShimSettings,
    store: &Store,
    image: &Image,
    layers: Option<&Path>,
) -> Result<Option<HeldTree>, RootsError> {
    let Some(idle) = settings.tree_idle else { return Ok(None) };
    TreeMounts::open(&settings.run_dir)?.with_idle(idle).mount_made(store, image, layers)
}
