//! Removes layer directories that no image and no root needs.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd as _;

use rustix::fs::{Dir, Mode};

use super::LayerDirectories;
use super::chain::chain_steps;
use super::meta::LayerMeta;
use crate::image::{DiffId, ImageLayer, ManifestDigest};
use crate::os::{AtPath as _, Sharing, remove_tree, try_lock};
use crate::pipeline::read_image;
use crate::roots::RootsError;
use crate::roots::mounts::OPEN_DIRECTORY;
use crate::store::Store;

impl LayerDirectories {
    /// The names of the directories that an image needs, whether or not they exist. None if the image cannot be read: no root can
    /// be made from it, and existing roots hold locks.
    #[must_use]
    pub fn names_for(store: &Store, image: ManifestDigest) -> Vec<String> {
        let Ok(image) = read_image(store, &image) else { return Vec::new() };
        // The diff IDs are not verified: false diff IDs can only keep a directory that is not needed.
        let diff_ids: Vec<DiffId> = image.layers().iter().map(ImageLayer::diff_id).collect();
        chain_steps(&diff_ids).iter().map(|step| step.id.hex()).collect()
    }

    /// The sizes of all complete directories, in bytes of file content, by name.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed.
    pub fn sizes(&self) -> Result<BTreeMap<String, u64>, RootsError> {
        let mut sizes = BTreeMap::new();
        for entry in Dir::read_from(&self.fd).at("list", &self.path)? {
            let entry = entry.at("list", &self.path)?;
            // Incomplete directories have other names.
            let name = entry.file_name().to_str().ok();
            let Some(name) = name.filter(|name| name.len() == 64) else { continue };
            let Ok(directory) = rustix::fs::openat(&self.fd, name, OPEN_DIRECTORY, Mode::empty()) else {
                continue;
            };
            if let Ok(meta) = LayerMeta::read(&directory) {
                sizes.insert(name.to_owned(), meta.bytes);
            }
        }
        Ok(sizes)
    }

    /// Removes the directories that none of `images` needs and no root uses. Returns their number, and the total size of their
    /// files in bytes. With `dry_run`, only counts them.
    ///
    /// `used` returns the names of the directories that named roots use; `None` if they are unknown, so that nothing may be
    /// removed. Leased roots hold locks.
    ///
    /// # Errors
    ///
    /// Those of `used`, or a directory cannot be removed.
    pub fn collect(
        &self,
        store: &Store,
        images: &[ManifestDigest],
        used: impl Fn() -> Result<Option<HashSet<String>>, RootsError>,
        dry_run: bool,
    ) -> Result<(u64, u64), RootsError> {
        let mut needed = HashSet::new();
        for image in images {
            needed.extend(Self::names_for(store, *image));
        }
        let (mut count, mut bytes) = (0, 0);
        for entry in Dir::read_from(&self.fd).at("list", &self.path)? {
            let entry = entry.at("list", &self.path)?;
            let name = entry.file_name().to_str().ok();
            let Some(name) = name.filter(|name| !needed.contains(*name)) else { continue };
            let is_partial = name.starts_with('.') && name.ends_with(".partial");
            let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_partial && !is_digest {
                continue;
            }
            let Ok(directory) = rustix::fs::openat(&self.fd, name, OPEN_DIRECTORY, Mode::empty()) else {
                continue;
            };
            // A process that writes the directory or uses it in a root holds the lock.
            if !try_lock(&directory, Sharing::Exclusive).at("lock", &self.path.join(name))? {
                continue;
            }
            // Asked while the directory is locked: a root that is made meanwhile waits for the lock.
            match used()? {
                Some(used) if used.contains(name) => continue,
                Some(_) => {}
                None => break,
            }
            bytes += LayerMeta::read(&directory).map_or(0, |meta| meta.bytes);
            count += 1;
            if !dry_run {
                remove_tree(self.fd.as_fd(), name.as_ref()).at("remove", &self.path.join(name))?;
            }
        }
        Ok((count, bytes))
    }
}
