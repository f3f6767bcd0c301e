//! Commits a root: what was written to it becomes a layer on its image.
//!
//! The files of a root are compared with the tree of its image, and the layer has only what differs. Names, attributes and content are
//! read through the root itself, as programs see it; the upper only tells which paths can differ. So the layer does not depend on how
//! overlayfs keeps its state: whiteouts, opaque directories and redirects are never interpreted, except that everything below
//! a redirected directory is compared.
//!
//! | file | contents |
//! |---|---|
//! | `tree` | reads a directory tree on disk |
//! | `file` | attributes of a file, on disk or in an image |
//! | `options` | what is changed on the way: owners, times |
//! | `walk` | finds the files of a root that can differ from its image |
//! | `compare` | finds what differs |
//! | `layer` | writes the differences as a layer |
//! | `words`, `instruction` | parse Dockerfile instructions |
//! | `document` | the configuration and the manifest of the new image |

mod compare;
mod document;
mod error;
mod file;
mod instruction;
mod layer;
mod options;
mod tree;
mod walk;
mod words;

pub use compare::{RootChanges, root_changes};
pub use error::CommitError;
pub use instruction::{ConfigChange, InstructionError};
pub use options::{CommitOptions, OwnerMapping};

use crate::image::{Image, Reference};
use crate::pipeline::{NewLayer, OpenImage, StoredImage, put_image, store_new_layer};
use crate::roots::NamedRoot;
use crate::store::Store;

/// What the configuration of the new image says beside its layers.
#[derive(Debug, Clone, Default)]
pub struct CommitNotes {
    /// The comment in the history.
    pub message: Option<String>,
    /// Changes of the configuration, in order.
    pub changes: Vec<ConfigChange>,
}

/// The result of [`commit()`].
#[derive(Debug)]
pub struct CommittedImage {
    /// The new image.
    pub image: StoredImage,
    /// Its new layer; `None` if the root does not differ from its image.
    pub layer: Option<NewLayer>,
}

/// Makes an image of a held root ([`Roots::hold`](crate::roots::Roots::hold)) and its image, and gives it a tag.
///
/// The caller must hold a [`GcLease`](crate::store::GcLease).
///
/// # Errors
/// A file of the root cannot be read or expressed in a layer, a process uses the root, or the store fails. No image is visible then.
pub fn commit(
    store: &Store,
    root: &NamedRoot,
    image: &Image,
    target: &Reference,
    options: &CommitOptions,
    notes: &CommitNotes,
) -> Result<CommittedImage, CommitError> {
    let open = OpenImage::open(store, image, |_| None)?;
    let changes = root_changes(root, &open, options)?;
    let layer = match changes.is_empty() {
        true => None,
        false => Some(store_new_layer(store, |out| layer::write(&changes, out))?),
    };
    let newest = changes.newest();
    // Closes the root, so that only other processes count as its users.
    drop(changes);
    root.require_unused()?;
    let (manifest, config) = document::extend(image, layer.as_ref(), newest, options, notes)?;
    let image = put_image(store, &target.name, &target.tag_or_latest(), manifest, config)?;
    Ok(CommittedImage { image, layer })
}
