//! The tree image of an image: made from the indexes of its layers when it is first needed.

use std::io;

use super::{OpenImage, PipelineError, read_image};
use crate::erofs::{ErofsError, TreeFile, TreeImage};
use crate::error::chain_text;
use crate::image::{Image, ImageLayer, ManifestDigest, TreeKey};
use crate::index::Index;
use crate::store::{Store, StoreError};

/// Returns the key of an image's tree image.
#[must_use]
pub fn tree_key(image: &Image) -> TreeKey {
    TreeKey::of(image.layers().iter().map(ImageLayer::digest))
}

/// Opens the tree image of an image and checks its content; `None` if there is none that can be used.
///
/// # Errors
/// The store cannot be read.
pub fn existing_tree_image(store: &Store, key: &TreeKey) -> Result<Option<TreeFile>, PipelineError> {
    let Some(file) = store.tree_file(key)? else { return Ok(None) };
    match TreeFile::open(file).and_then(|tree| tree.verify().map(|()| tree)) {
        Ok(tree) => Ok(Some(tree)),
        Err(fault) => {
            tracing::warn!("{fault}: it is made anew (trees/{})", key.hex());
            Ok(None)
        }
    }
}

/// Opens the tree image of an image. One that is missing, damaged or outdated is made.
///
/// Several processes may make the same one: all write the same bytes.
///
/// # Errors
/// The image cannot be opened, EROFS cannot express its tree, or the file cannot be written.
pub fn tree_image(store: &Store, image: &Image) -> Result<TreeFile, PipelineError> {
    match existing_tree_image(store, &tree_key(image))? {
        Some(tree) => Ok(tree),
        None => make_tree_image(store, &OpenImage::open(store, image, |_| None)?, &tree_key(image)),
    }
}

/// Makes the tree images of those images that have none, one after the other, until `stopped` returns true. Failures are only
/// logged: a root makes one that is missing, but waits for it.
pub fn make_tree_images(
    store: &Store,
    images: impl IntoIterator<Item = ManifestDigest>,
    stopped: &dyn Fn() -> bool,
) {
    for digest in images {
        if stopped() {
            return;
        }
        let made = read_image(store, &digest).and_then(|image| tree_image(store, &image));
        if let Err(error) = made {
            tracing::warn!("no tree image: {}", chain_text(&error));
        }
    }
}

/// Writes the tree image of an open image to the store, replacing an existing one.
///
/// # Errors
/// EROFS cannot express the tree, or the file cannot be written. Nothing is left of it then.
pub fn make_tree_image(store: &Store, image: &OpenImage, key: &TreeKey) -> Result<TreeFile, PipelineError> {
    let failed = |source| PipelineError::TreeImage { image: image.digest, source };
    let indexes: Vec<&Index<_>> = image.layers.iter().map(|layer| layer.index()).collect();
    let plan = TreeImage::plan(&image.tree, &indexes).map_err(|fault| failed(fault.into()))?;
    let temp = store.create_tree(key)?;
    let path = temp.path();
    plan.write_file(key.uuid(), temp.file()).map_err(|error| match error {
        ErofsError::Io(error) => StoreError::from_write(&path, error).into(),
        error => failed(error),
    })?;
    temp.commit()?;
    // Opened again: the descriptor of a temporary file holds its lock. Only `gc` may have removed the file already.
    existing_tree_image(store, key)?.ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound).into()))
}
