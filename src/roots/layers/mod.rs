//! The overlay2 engine: layers unpacked into directories, which the kernel's overlayfs merges.
//!
//! A layer directory holds the difference between two trees ([`UnpackPlan::difference`](crate::unpack::UnpackPlan)): the tree
//! up to a layer, and the tree below it. The difference is not the content of the layer's tar, because paths in the tar resolve
//! through links of lower layers. So a directory belongs to a chain of layers, and its name is the chain ID (image-spec,
//! config.md, "Layer ChainID"). Images that start with the same layers share the directories of those layers.
//!
//! ```text
//! <base>/<chain ID>/tree          the lower directory for overlayfs
//! <base>/<chain ID>/meta.json     whether the tree is empty, and whether it replaces all lower layers
//! <base>/.<chain ID>.partial      a directory that is being written
//! ```
//!
//! Locks are flock(2) on `<chain ID>` and on the partial directory: shared while a root uses the layer, exclusive while it
//! is written or removed.

mod chain;
mod check;
mod collect;
mod make;
mod meta;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use self::chain::{ChainStep, chain_steps};
use self::make::StepPlanner;
use self::meta::LayerMeta;
use super::mounts::OPEN_DIRECTORY;
use super::trusted::open_trusted;
use super::{Lower, RootsError};
use crate::image::ManifestDigest;
use crate::os::{AtPath as _, NamedLock, PathError, Sharing, lock_named, make_directory};
use crate::pipeline::{OpenImage, read_image, verified_diff_ids};
use crate::store::Store;

/// The directory of all layer directories, in `rcx-imagefs` of the store.
const LAYERS: &str = "layers";
/// The lower directory in a layer directory.
const TREE: &str = "tree";
/// The description in a layer directory.
const META: &str = "meta.json";
/// Format version of layer directories. Increased whenever older programs would misread newer directories.
const VERSION: u32 = 1;

/// The directory of all layer directories.
#[derive(Debug)]
pub struct LayerDirectories {
    fd: OwnedFd,
    path: PathBuf,
}

/// A complete layer directory.
#[derive(Debug)]
struct LayerDir {
    path: PathBuf,
    /// The directory, with a shared lock.
    lock: OwnedFd,
    meta: LayerMeta,
}

impl LayerDirectories {
    /// Opens the directory of all layer directories of a store; makes it if it does not exist.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or opened, or another user could change it.
    pub fn open(store: &Store) -> Result<Self, RootsError> {
        let (parent, path) = store.private_dir()?;
        let path = path.join(LAYERS);
        make_directory(&parent, LAYERS, Mode::RWXU).at("make directory", &path)?;
        let fd = open_trusted(parent.as_fd(), LAYERS, &path)?;
        Ok(Self { fd, path })
    }

    /// The same, but returns `None` if the directory does not exist.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened, or another user could change it.
    pub fn existing(store: &Store) -> Result<Option<Self>, RootsError> {
        let (parent, _) = store.private_dir()?;
        match rustix::fs::statat(&parent, LAYERS, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            _ => Self::open(store).map(Some),
        }
    }

    /// Returns the lower directories of an image, and unpacks those that do not exist.
    ///
    /// `progress` is called with the number of directories unpacked so far and the number to unpack.
    ///
    /// # Errors
    ///
    /// The image cannot be opened, or a layer cannot be unpacked.
    pub fn lower(
        &self,
        store: &Store,
        image: ManifestDigest,
        name: &str,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Lower, RootsError> {
        let failed = |source| RootsError::StoredImage { image, source: Box::new(source) };
        let read = read_image(store, &image).map_err(failed)?;
        let steps = chain_steps(&verified_diff_ids(store, &read).map_err(failed)?);
        let mut directories: Vec<Option<LayerDir>> = Vec::with_capacity(steps.len());
        for step in &steps {
            directories.push(self.open_step(step)?);
        }
        let missing = directories.iter().filter(|directory| directory.is_none()).count();
        if missing > 0 {
            let open = OpenImage::open(store, &read, |_| None).map_err(failed)?;
            let mut planner = StepPlanner::new(&open);
            let mut done = 0;
            progress(done, missing);
            for (step, directory) in steps.iter().zip(&mut directories) {
                if directory.is_none() {
                    *directory = Some(self.make(step, &mut planner)?);
                    done += 1;
                    progress(done, missing);
                }
            }
        }
        let mut lowers = Vec::new();
        for directory in directories.into_iter().flatten().rev() {
            if !directory.meta.empty {
                lowers.push((directory.path.join(TREE), directory.lock));
            }
            if directory.meta.replaces_all {
                break;
            }
        }
        Lower::from_directories(lowers, name)
    }

    /// Opens a complete layer directory with a shared lock, waiting for the lock if needed. Returns `None` if it does not
    /// exist.
    fn open_step(&self, step: &ChainStep) -> Result<Option<LayerDir>, RootsError> {
        let name = step.id.hex();
        let path = self.path.join(&name);
        let open = || match rustix::fs::openat(&self.fd, &name, OPEN_DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(PathError::new("open", &path, errno)),
        };
        let lock = match lock_named(self.fd.as_fd(), &path, Sharing::Shared, None, open)? {
            NamedLock::Locked(lock) => lock,
            NamedLock::Missing => return Ok(None),
            NamedLock::Busy => unreachable!("waits without a deadline"),
        };
        let meta = LayerMeta::read(&lock).at("read meta.json in", &path)?;
        if meta.version != VERSION {
            return Err(RootsError::LayerVersion { path, version: meta.version, supported: VERSION });
        }
        Ok(Some(LayerDir { path, lock, meta }))
    }
}
