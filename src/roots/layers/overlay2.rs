//! The engine overlay2: layers unpacked into directories, for the kernel's overlayfs to merge.
//!
//! A directory holds what a layer changes in the tree of the layers below it, as [`UnpackPlan::difference`] finds it, and not
//! what stands in the layer's tar: where a path leads depends on the links below. So a directory belongs to a chain of
//! layers, and its name is the chain's id (image-spec, config.md, "Layer ChainID"). Images that begin with the same layers
//! share the directories of those.
//!
//! ```text
//! <base>/<chain id>/tree          what is given to overlayfs; locked (shared) while a root is made of it
//! <base>/<chain id>/meta.json     whether there is anything in it, and whether it replaces all that is below
//! <base>/.<chain id>.partial      one that is being written; locked (exclusive) by who writes it
//! ```

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::image::{DiffId, Digest, ImageLayer, ManifestDigest};
use crate::index::Index;
use crate::os::remove_tree;
use crate::pipeline::{OpenImage, read_image, verified_diff_ids};
use crate::roots::Lower;
use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::home::DIRECTORY;
use crate::store::Store;
use crate::tree::{Tree, merge};
use crate::unpack::{UnpackOptions, UnpackPlan, check, write};

/// Directories that an image is stacked of at most; overlayfs takes 500 (fs/overlayfs/params.h, `OVL_MAX_STACK`), and each
/// one costs a lookup of a name that is in none. An image of more layers has several of them in one directory.
const STACK_MAX: usize = 250;
const TREE: &str = "tree";
const META: &str = "meta.json";
/// Format of the directories. Changes when an older program would misread what a newer one writes.
const VERSION: u32 = 1;
/// Longest `meta.json` that is read, in bytes.
const META_MAX: u64 = 4096;

/// The directory of all unpacked layers.
#[derive(Debug)]
pub struct LayerDirectories {
    fd: OwnedFd,
    path: PathBuf,
}

/// What stands beside a layer's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    version: u32,
    /// The layers below show the tree by themselves.
    empty: bool,
    /// Nothing of the layers below is left.
    replaces_all: bool,
    /// Bytes of content.
    bytes: u64,
}

/// One directory of an image's stack: the layers `from..to`, counted from the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    from: usize,
    to: usize,
    id: Digest,
}

/// An opened directory, with its lock.
#[derive(Debug)]
struct Opened {
    path: PathBuf,
    lock: OwnedFd,
    meta: Meta,
}

impl LayerDirectories {
    /// Opens the directory, made where it is missing; that which it is in has to be there.
    ///
    /// # Errors
    /// It is not a directory, or cannot be made.
    pub fn open(path: &Path) -> Result<Self, RootsError> {
        let path = std::path::absolute(path).at("make absolute", path)?;
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(RootsError::io("make", &path, errno)),
        }
        let fd = rustix::fs::open(&path, DIRECTORY, Mode::empty()).at("open", &path)?;
        Ok(Self { fd, path })
    }

    /// The directories that an image is stacked of, the topmost first; unpacks those that are not there yet. `progress` is
    /// told how many of how many layers that were missing are unpacked.
    ///
    /// # Errors
    /// The image cannot be read, or the disk does not take a layer.
    pub fn lower(
        &self,
        store: &Store,
        image: ManifestDigest,
        name: &str,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Lower, RootsError> {
        let unreadable = |source| self.unreadable(source);
        let image = read_image(store, &image).map_err(unreadable)?;
        let steps = steps(&verified_diff_ids(store, &image).map_err(unreadable)?);
        let mut opened: Vec<Option<Opened>> = Vec::with_capacity(steps.len());
        for step in &steps {
            opened.push(self.opened(step)?);
        }
        let missing = opened.iter().filter(|one| one.is_none()).count();
        if missing > 0 {
            let open = OpenImage::open(store, &image, |_| None).map_err(unreadable)?;
            let mut trees = Trees::new(&open);
            let mut done = 0;
            progress(done, missing);
            for (step, place) in steps.iter().zip(&mut opened) {
                if place.is_none() {
                    *place = Some(self.make(step, &mut trees)?);
                    done += 1;
                    progress(done, missing);
                }
            }
        }
        let mut stack = Vec::new();
        for one in opened.into_iter().flatten().rev() {
            let cut = one.meta.replaces_all;
            if !one.meta.empty {
                stack.push((one.path.join(TREE), one.lock));
            }
            if cut {
                break;
            }
        }
        Lower::of_directories(stack, name)
    }

    /// Compares the directories of an image with its layers, with `content` byte by byte; those that are not there are not
    /// missed. Returns what differs, one line each.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn verify(&self, image: &OpenImage, content: bool) -> Result<Vec<String>, RootsError> {
        let mut found = Vec::new();
        let mut trees = Trees::new(image);
        let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| *layer.index().diff_id()).collect();
        for step in steps(&diff_ids) {
            let opened = match self.opened(&step) {
                Ok(Some(opened)) => opened,
                Ok(None) => continue,
                Err(error) => {
                    found.push(error.to_string());
                    continue;
                }
            };
            let path = opened.path.join(TREE);
            let (plan, meta) = trees.plan(&step)?;
            if (Meta { bytes: opened.meta.bytes, ..meta }) != opened.meta {
                found.push(format!("{}: {META} is of another layer", opened.path.display()));
            }
            let root = match rustix::fs::open(&path, DIRECTORY, Mode::empty()) {
                Ok(root) => root,
                Err(errno) => {
                    found.push(format!("{}: {errno}", path.display()));
                    continue;
                }
            };
            let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
            found.extend(
                check(&plan, &layers, root.as_fd(), &path, content)
                    .map_err(|source| RootsError::Unpack { layer: step.to, source })?,
            );
        }
        Ok(found)
    }

    /// Removes the directories that none of the images needs and no root uses: those of named roots are told in `used`, and
    /// of others there are locks. Returns how many, and bytes of content. With `dry_run`, counts them only.
    ///
    /// # Errors
    /// A directory cannot be removed.
    pub fn collect(
        &self,
        store: &Store,
        images: &[ManifestDigest],
        used: impl IntoIterator<Item = String>,
        dry_run: bool,
    ) -> Result<(u64, u64), RootsError> {
        let mut kept: HashSet<String> = used.into_iter().collect();
        for image in images {
            // Of an image that cannot be read no root can be made, and what a root is made of is kept by its lock.
            let Ok(image) = read_image(store, image) else { continue };
            // Diff IDs that are not verified do no harm here: at worst, a directory is kept that nobody needs.
            let diff_ids: Vec<DiffId> = image.layers().iter().map(ImageLayer::diff_id).collect();
            kept.extend(steps(&diff_ids).iter().map(|step| step.id.hex()));
        }
        let (mut count, mut bytes) = (0, 0);
        for entry in fs::read_dir(&self.path).at("list", &self.path)? {
            let entry = entry.at("list", &self.path)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !kept.contains(*name)) else { continue };
            let is_partial = name.starts_with('.') && name.ends_with(".partial");
            let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_partial && !is_digest {
                continue;
            }
            let Ok(fd) = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty()) else { continue };
            // Whoever writes it, or has a root of it, holds the lock.
            if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            bytes += read_meta(&fd).map_or(0, |meta| meta.bytes);
            count += 1;
            if !dry_run {
                remove_tree(self.fd.as_fd(), name.as_ref()).at("remove", &self.path.join(name))?;
            }
        }
        Ok((count, bytes))
    }

    /// Opens a directory that is whole, and takes its lock.
    fn opened(&self, step: &Step) -> Result<Option<Opened>, RootsError> {
        let path = self.path.join(step.id.hex());
        loop {
            let fd = match rustix::fs::openat(&self.fd, step.id.hex(), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(RootsError::io("open", &path, errno)),
            };
            rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockShared))
                .at("lock", &path)?;
            // It may have been collected while this waited.
            if !is_linked(&self.fd, &step.id.hex(), &fd).at("stat", &path)? {
                continue;
            }
            let meta = read_meta(&fd).at("read the description in", &path)?;
            if meta.version != VERSION {
                let what = format!("has version {}, and only {VERSION} is known", meta.version);
                return Err(RootsError::io("use", &path, io::Error::other(what)));
            }
            return Ok(Some(Opened { path, lock: fd, meta }));
        }
    }

    /// Unpacks a step, unless another process does so meanwhile.
    fn make(&self, step: &Step, trees: &mut Trees<'_>) -> Result<Opened, RootsError> {
        let partial = format!(".{}.partial", step.id.hex());
        let path = self.path.join(&partial);
        loop {
            if let Some(opened) = self.opened(step)? {
                return Ok(opened);
            }
            match rustix::fs::mkdirat(&self.fd, &partial, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(RootsError::io("make", &path, errno)),
            }
            let fd = match rustix::fs::openat(&self.fd, &partial, DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(RootsError::io("open", &path, errno)),
            };
            rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive))
                .at("lock", &path)?;
            if !is_linked(&self.fd, &partial, &fd).at("stat", &path)? {
                // It has got its name, or was given up.
                continue;
            }
            // What a process that died had written goes, with the lock held.
            for left in [TREE, META] {
                remove_tree(fd.as_fd(), left.as_ref()).at("remove", &path)?;
            }
            if let Err(error) = write_step(step, trees, &fd, &path) {
                if let Err(error) = remove_tree(self.fd.as_fd(), partial.as_ref()) {
                    tracing::warn!("{}: {error}", path.display());
                }
                return Err(error);
            }
            let (place, id) = (&self.fd, step.id.hex());
            rustix::fs::renameat_with(place, &partial, place, &id, RenameFlags::NOREPLACE)
                .at("rename", &path)?;
            rustix::fs::fsync(place).at("write out", &self.path)?;
        }
    }

    fn unreadable(&self, source: crate::pipeline::PipelineError) -> RootsError {
        RootsError::Layers { path: self.path.clone(), source: Box::new(source) }
    }
}

/// The trees of an image's lowest layers, as steps need them in turn.
struct Trees<'a> {
    image: &'a OpenImage,
    /// The one that was made last, and of how many layers: mostly what the next step is compared with.
    last: Option<(usize, Tree)>,
}

impl<'a> Trees<'a> {
    fn new(image: &'a OpenImage) -> Self {
        Self { image, last: None }
    }

    fn of(&self, layers: usize) -> Result<Tree, RootsError> {
        let indexes: Vec<&Index<_>> = self.image.layers[..layers].iter().map(|layer| layer.index()).collect();
        merge(&indexes).map_err(|source| RootsError::Merge { image: self.image.digest, source })
    }

    fn plan(&mut self, step: &Step) -> Result<(UnpackPlan, Meta), RootsError> {
        let upper = self.of(step.to)?;
        let plan = match (step.from, self.last.take()) {
            (0, _) => UnpackPlan::whole(&upper),
            (from, Some((layers, lower))) if layers == from => UnpackPlan::difference(&upper, &lower),
            (from, _) => UnpackPlan::difference(&upper, &self.of(from)?),
        };
        self.last = Some((step.to, upper));
        // The lowest is there even for an image without files: an overlay has a lower layer.
        let empty = step.from > 0 && plan.is_empty();
        let meta = Meta { version: VERSION, empty, replaces_all: plan.replaces_all, bytes: 0 };
        Ok((plan, meta))
    }
}

/// Writes what belongs to a step into the directory `fd`, which `path` is the name of.
fn write_step(step: &Step, trees: &mut Trees<'_>, fd: &OwnedFd, path: &Path) -> Result<(), RootsError> {
    let (plan, mut meta) = trees.plan(step)?;
    let tree = path.join(TREE);
    rustix::fs::mkdirat(fd, TREE, Mode::RWXU).at("make", &tree)?;
    let root = rustix::fs::openat(fd, TREE, DIRECTORY, Mode::empty()).at("open", &tree)?;
    let layers: Vec<_> = trees.image.layers.iter().map(AsRef::as_ref).collect();
    let written = write(&plan, &layers, root.as_fd(), &tree, &UnpackOptions::default())
        .map_err(|source| RootsError::Unpack { layer: step.to, source })?;
    meta.bytes = written.bytes;
    let text = serde_json::to_vec(&meta).map_err(io::Error::from).at("describe", path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(fd, META, flags, Mode::RUSR | Mode::WUSR).at("describe", path)?;
    fs::File::from(file).write_all(&text).at("describe", path)?;
    // The name must not outlive a crash that the content did not.
    rustix::fs::syncfs(fd).at("write out", path)
}

/// The directories of a stack of layers with these diff IDs, lowest first. The IDs must be verified before anything is written
/// to the directories or read from them.
fn steps(layers: &[DiffId]) -> Vec<Step> {
    let mut chain: Vec<Digest> = Vec::with_capacity(layers.len());
    for layer in layers {
        chain.push(match chain.last() {
            None => layer.digest(),
            Some(below) => Digest::of(format!("{below} {layer}").as_bytes()),
        });
    }
    let Some(top) = chain.len().checked_sub(1) else {
        return vec![Step { from: 0, to: 0, id: Digest::of(b"no layers") }];
    };
    let width = chain.len().div_ceil(STACK_MAX);
    (0..chain.len())
        .step_by(width)
        .map(|from| {
            let last = (from + width - 1).min(top);
            let id = match (last == from, from.checked_sub(1)) {
                (true, _) => chain[last],
                // Of several layers at once: not the chain's own, which is of the last one above the one before.
                (false, below) => {
                    let below = below.map_or_else(String::new, |below| chain[below].to_string());
                    Digest::of(format!("{below}..{}", chain[last]).as_bytes())
                }
            };
            Step { from, to: last + 1, id }
        })
        .collect()
}

fn read_meta(directory: &OwnedFd) -> io::Result<Meta> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::openat(directory, META, flags, Mode::empty())?);
    let mut text = Vec::new();
    file.take(META_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Whether a directory still has its name.
fn is_linked(parent: &OwnedFd, name: &str, fd: &OwnedFd) -> io::Result<bool> {
    let ours = rustix::fs::fstat(fd)?;
    match rustix::fs::statat(parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(count: usize) -> Vec<DiffId> {
        (0..count).map(|number| DiffId::new(Digest::of(number.to_string().as_bytes()))).collect()
    }

    #[test]
    fn images_that_begin_alike_share_the_directories_of_what_they_share() {
        let (short, long) = (steps(&layers(3)), steps(&layers(5)));
        assert_eq!(short[..], long[..3]);
        let mut other = layers(5);
        other[1] = DiffId::new(Digest::of(b"other"));
        let other = steps(&other);
        assert_eq!(other[0], long[0]);
        assert!(
            (1..5).all(|at| other[at].id != long[at].id),
            "what is above another layer is another directory"
        );
    }

    #[test]
    fn chain_ids_are_those_of_the_image_spec() {
        let layers = layers(2);
        let steps = steps(&layers);
        assert_eq!(steps[0].id, layers[0].digest());
        assert_eq!(steps[1].id, Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes()));
    }

    #[test]
    fn no_stack_is_higher_than_overlayfs_takes() {
        for count in [0, 1, 249, 250, 251, 499, 500, 501, 1000, 4001] {
            let steps = steps(&layers(count));
            assert!(!steps.is_empty() && steps.len() <= STACK_MAX, "{count}: {}", steps.len());
            assert_eq!((steps[0].from, steps[steps.len() - 1].to), (0, count));
            assert!(steps.windows(2).all(|two| two[0].to == two[1].from), "{count}");
            let ids: HashSet<_> = steps.iter().map(|step| step.id).collect();
            assert_eq!(ids.len(), steps.len());
        }
    }
}
