//! Makes layer directories.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;

use super::chain::ChainStep;
use super::meta::LayerMeta;
use super::{LayerDir, LayerDirectories, META, TREE, VERSION};
use crate::index::Index;
use crate::os::{AtPath as _, NamedLock, PathError, Sharing, lock_named, remove_tree, unlock};
use crate::pipeline::OpenImage;
use crate::roots::RootsError;
use crate::roots::mounts::OPEN_DIRECTORY;
use crate::tree::{Tree, merge};
use crate::unpack::{UnpackOptions, UnpackPlan, write};

impl LayerDirectories {
    /// Makes a layer directory, or waits for another process that is making it.
    pub(super) fn make(
        &self,
        step: &ChainStep,
        planner: &mut StepPlanner<'_>,
    ) -> Result<LayerDir, RootsError> {
        let name = step.id.hex();
        let partial = format!(".{name}.partial");
        let path = self.path.join(&partial);
        loop {
            let lock = self.lock_partial(&partial, &path)?;
            // Another process may have made the directory before this process locked it. Only the holder of the lock can
            // give the directory its final name.
            if let Some(directory) = self.open_step(step)? {
                remove_tree(self.fd.as_fd(), partial.as_ref()).at("remove", &path)?;
                return Ok(directory);
            }
            // Remove incomplete content of a process that died.
            for name in [TREE, META] {
                remove_tree(lock.as_fd(), name.as_ref()).at("remove", &path.join(name))?;
            }
            if let Err(error) = write_step(step, planner, &lock, &path) {
                if let Err(error) = remove_tree(self.fd.as_fd(), partial.as_ref()) {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
                return Err(error);
            }
            rustix::fs::renameat_with(&self.fd, &partial, &self.fd, &name, RenameFlags::NOREPLACE)
                .at("rename", &path)?;
            rustix::fs::fsync(&self.fd).at("sync", &self.path)?;
            // `open_step` locks the directory anew, with a shared lock.
            unlock(&lock);
            // The directory is missing only if `collect` has removed it meanwhile.
            if let Some(directory) = self.open_step(step)? {
                return Ok(directory);
            }
        }
    }

    /// Makes the partial directory if it does not exist, and locks it.
    fn lock_partial(&self, name: &str, path: &Path) -> Result<OwnedFd, PathError> {
        let open = || {
            loop {
                match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(PathError::new("make directory", path, errno)),
                }
                match rustix::fs::openat(&self.fd, name, OPEN_DIRECTORY, Mode::empty()) {
                    // Another process has renamed or removed the directory meanwhile.
                    Err(Errno::NOENT) => {}
                    opened => return opened.map(Some).at("open", path),
                }
            }
        };
        match lock_named(self.fd.as_fd(), path, Sharing::Exclusive, None, open)? {
            NamedLock::Locked(lock) => Ok(lock),
            NamedLock::Busy | NamedLock::Missing => {
                unreachable!("waits without a deadline and makes the directory")
            }
        }
    }
}

/// Plans the steps of an image.
pub(super) struct StepPlanner<'a> {
    image: &'a OpenImage,
    /// The tree of the last planned step and its number of layers. The next step usually starts from this tree.
    last: Option<(usize, Tree)>,
}

impl<'a> StepPlanner<'a> {
    pub(super) fn new(image: &'a OpenImage) -> Self {
        Self { image, last: None }
    }

    /// Plans the content of a layer directory, and describes it except for its size.
    pub(super) fn plan(&mut self, step: &ChainStep) -> Result<(UnpackPlan, LayerMeta), RootsError> {
        let upper = self.merge(step.to)?;
        let plan = match (step.from, self.last.take()) {
            (0, _) => UnpackPlan::whole(&upper),
            (from, Some((layers, lower))) if layers == from => UnpackPlan::difference(&upper, &lower),
            (from, _) => UnpackPlan::difference(&upper, &self.merge(from)?),
        };
        self.last = Some((step.to, upper));
        // The lowest directory is always used: an overlay needs a lower layer, even for an image without files.
        let empty = step.from > 0 && plan.is_empty();
        let meta = LayerMeta { version: VERSION, empty, replaces_all: plan.replaces_all, bytes: 0 };
        Ok((plan, meta))
    }

    /// Merges the lowest layers of the image.
    fn merge(&self, layers: usize) -> Result<Tree, RootsError> {
        let indexes: Vec<&Index<_>> = self.image.layers[..layers].iter().map(|layer| layer.index()).collect();
        merge(&indexes).map_err(|source| RootsError::Merge { image: self.image.digest, source })
    }
}

/// Writes the content of a layer directory into `directory`. `path` is the path of `directory`.
fn write_step(
    step: &ChainStep,
    planner: &mut StepPlanner<'_>,
    directory: &OwnedFd,
    path: &Path,
) -> Result<(), RootsError> {
    let (plan, mut meta) = planner.plan(step)?;
    let tree = path.join(TREE);
    rustix::fs::mkdirat(directory, TREE, Mode::RWXU).at("make directory", &tree)?;
    let root = rustix::fs::openat(directory, TREE, OPEN_DIRECTORY, Mode::empty()).at("open", &tree)?;
    let layers: Vec<_> = planner.image.layers.iter().map(AsRef::as_ref).collect();
    let stats = write(&plan, &layers, root.as_fd(), &tree, &UnpackOptions::default())
        .map_err(|source| RootsError::Unpack { layer: step.to, source })?;
    meta.bytes = stats.bytes;
    meta.write(directory).at("write", &path.join(META))?;
    // After a crash, the final name must not exist without the content.
    Ok(rustix::fs::syncfs(directory).at("sync", path)?)
}
