//! The names in the mount: an immutable snapshot of the directories, images, tags and aliases that the store publishes.
//!
//! ```text
//! host:5000/lab/python@sha256:<manifest>    an image: the root of its tree
//! host:5000/lab/python@sha256:<index>       symlink to the image
//! host:5000/lab/python:3.12                 symlink to the image
//! host-5000, python@sha256-<hex>, ...       aliases: symlinks to the name with `:`; they resolve but are not listed
//! ```
//!
//! A directory can have only one place in the kernel's dentry tree. An image that is published under two names is therefore
//! a directory under one of them and a symlink under the other.
//!
//! The inode number of a name is a hash of its kind, its path and, for a symlink, its target. Every process that serves the
//! mount gives the same number to the same name. A tag that moves becomes another inode, so no cached target is ever stale.

mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use plan::{PlannedNode, aliases, join, plan, split};

use super::Ino;
use super::attr::NO_TIME;
use crate::image::ManifestDigest;
use crate::layer::Timestamp;
use crate::os::{LINKS_MAX, PathWalk};

/// A reference in the store: a name for an image, with or without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedReference {
    /// The name in the mount: the familiar form, with components joined by `/`.
    pub name: String,
    /// The tag, if the reference has one.
    pub tag: Option<String>,
    /// Digest of the multi-platform index through which the image was pulled, if any.
    pub index: Option<ManifestDigest>,
    /// The image.
    pub image: PublishedImage,
}

/// An image that the mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublishedImage {
    /// Digest of its manifest.
    pub manifest: ManifestDigest,
    /// Its slot in the store, below [`Ino::SLOT_LIMIT`]. Part of its inode numbers.
    pub slot: u32,
}

/// The target of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameTarget {
    /// A directory of the namespace.
    Directory(Ino),
    /// A symbolic link of the namespace.
    Symlink(Ino),
    /// An image's root directory.
    Image(PublishedImage),
}

/// A node of the namespace.
#[derive(Debug)]
pub enum NamespaceNode {
    /// A directory of names.
    Directory(NamespaceDirectory),
    /// A symbolic link within the namespace.
    Symlink(NamespaceSymlink),
}

/// A directory of names.
#[derive(Debug)]
pub struct NamespaceDirectory {
    parent: Ino,
    path: String,
    mtime: Timestamp,
    /// In ascending order of the cookie.
    listed: Vec<(u64, Box<str>, NameTarget)>,
    names: HashMap<Box<str>, NameTarget>,
}

/// A symbolic link within the namespace.
#[derive(Debug)]
pub struct NamespaceSymlink {
    target: Box<str>,
    mtime: Timestamp,
}

/// The cache entries that the kernel must forget when one namespace replaces another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NamespaceChanges {
    /// Names that were removed or refer to another target, with their directory. Deeper names come first.
    pub names: Vec<(Ino, Box<str>)>,
    /// Directories whose attributes or listing have changed.
    pub directories: Vec<Ino>,
}

/// A snapshot of the mount's names.
#[derive(Debug)]
pub struct Namespace {
    nodes: HashMap<Ino, NamespaceNode>,
    /// For each image, by slot: the directory that contains it, and its name there.
    homes: HashMap<u32, (Ino, Box<str>)>,
}

impl Default for Namespace {
    /// Returns an empty namespace, as before the store is first read.
    fn default() -> Self {
        Self::new(&[], NO_TIME, None)
    }
}

impl Namespace {
    /// Builds the snapshot that replaces `previous`. `changed` is the time of the last change to the store's references; it
    /// becomes the mtime of every directory that differs from `previous`.
    ///
    /// If two references claim one path, a directory of names wins over a tag, and a later reference over an earlier one. An
    /// image with several names is a directory under the name that it had in `previous`, or else under its first name.
    #[must_use]
    pub fn new(published: &[PublishedReference], changed: Timestamp, previous: Option<&Self>) -> Self {
        Self::with_hash(published, changed, previous, path_hash)
    }

    fn with_hash(
        published: &[PublishedReference],
        changed: Timestamp,
        previous: Option<&Self>,
        hash: fn(&[&str]) -> u64,
    ) -> Self {
        let plans = plan(published, previous);
        let mut children: BTreeMap<&str, BTreeMap<&str, &PlannedNode>> =
            BTreeMap::from([("", BTreeMap::new())]);
        for (path, plan) in &plans {
            let (parent, name) = split(path);
            children.entry(parent).or_default().insert(name, plan);
            if *plan == PlannedNode::Directory {
                children.entry(path).or_default();
            }
        }
        let mut numbers = InoAllocator { hash, taken: HashSet::from([Ino::ROOT]) };
        let mut directories: BTreeMap<&str, Ino> = BTreeMap::from([("", Ino::ROOT)]);
        // Allocate in ascending order of the paths: even if hashes collide, the numbers do not depend on the order of the
        // references.
        for path in children.keys().filter(|path| !path.is_empty()) {
            directories.insert(path, numbers.next(&["d", path]));
        }
        let mut namespace = Self { nodes: HashMap::new(), homes: HashMap::new() };
        for (&path, entries) in &children {
            let ino = directories[path];
            let parent = if path.is_empty() { Ino::ROOT } else { directories[split(path).0] };
            let mut directory = NamespaceDirectory {
                parent,
                path: path.to_owned(),
                mtime: changed,
                listed: Vec::with_capacity(entries.len()),
                names: HashMap::new(),
            };
            let aliases = aliases(entries);
            let links = aliases
                .iter()
                .map(|(alias, name)| (alias.as_str(), PlannedNode::Symlink((*name).to_owned())));
            let links: Vec<_> = links.collect();
            let all = entries.iter().map(|(name, plan)| (*name, *plan, true));
            for (name, plan, listed) in all.chain(links.iter().map(|(name, plan)| (*name, plan, false))) {
                let full = join(path, name);
                let (cookie, target) = match plan {
                    PlannedNode::Directory => {
                        let ino = directories[full.as_str()];
                        (ino, NameTarget::Directory(ino))
                    }
                    PlannedNode::Image(image) => {
                        namespace.homes.insert(image.slot, (ino, name.into()));
                        (numbers.next(&["i", &full]), NameTarget::Image(*image))
                    }
                    PlannedNode::Symlink(target) => {
                        let link = numbers.next(&["l", &full, target]);
                        let symlink = NamespaceSymlink { target: target.as_str().into(), mtime: changed };
                        namespace.nodes.insert(link, NamespaceNode::Symlink(symlink));
                        (link, NameTarget::Symlink(link))
                    }
                };
                directory.names.insert(name.into(), target);
                if listed {
                    directory.listed.push((cookie.get(), name.into(), target));
                }
            }
            directory.listed.sort_unstable_by_key(|(cookie, ..)| *cookie);
            namespace.nodes.insert(ino, NamespaceNode::Directory(directory));
        }
        if let Some(previous) = previous {
            namespace.keep_times(previous);
        }
        namespace
    }

    /// Returns the node with this number.
    #[must_use]
    pub fn node(&self, ino: Ino) -> Option<&NamespaceNode> {
        self.nodes.get(&ino)
    }

    /// Returns the directory that contains an image, and the image's name there.
    #[must_use]
    pub fn home(&self, image_slot: u32) -> Option<(Ino, &str)> {
        self.homes.get(&image_slot).map(|(parent, name)| (*parent, &**name))
    }

    /// Returns all published images.
    pub(super) fn images(&self) -> impl Iterator<Item = PublishedImage> {
        self.homes.keys().filter_map(|slot| self.image(*slot))
    }

    /// Returns the image with this slot if it is published.
    #[must_use]
    pub fn image(&self, slot: u32) -> Option<PublishedImage> {
        let (parent, name) = self.home(slot)?;
        match self.node(parent)? {
            NamespaceNode::Directory(directory) => match directory.lookup(name.as_bytes())? {
                NameTarget::Image(image) => Some(image),
                NameTarget::Directory(_) | NameTarget::Symlink(_) => None,
            },
            NamespaceNode::Symlink(_) => None,
        }
    }

    /// Follows a relative path from the root through directories and links of the namespace, but not into an image. `None` if there is
    /// no such name.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> Option<NameTarget> {
        let mut walk = PathWalk::new(path, Path::new("/"), LINKS_MAX);
        let mut at = NameTarget::Directory(Ino::ROOT);
        while walk.has_more() {
            let NameTarget::Directory(_) = at else { return None };
            at = self.target(walk.step()?)?;
            if let NameTarget::Symlink(link) = at {
                let NamespaceNode::Symlink(link) = self.node(link)? else { return None };
                walk.follow(Path::new(link.target())).ok()?;
                at = self.target(walk.at())?;
            }
        }
        Some(at)
    }

    /// The target of an absolute path without links and `..`.
    fn target(&self, path: &Path) -> Option<NameTarget> {
        path.iter().skip(1).try_fold(NameTarget::Directory(Ino::ROOT), |at, name| {
            let NameTarget::Directory(parent) = at else { return None };
            let NamespaceNode::Directory(directory) = self.node(parent)? else { return None };
            directory.lookup(name.as_bytes())
        })
    }

    /// The number of published images.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.homes.len()
    }

    /// Returns the path of an image's directory in the mount, without a leading `/`.
    #[must_use]
    pub fn path_of(&self, image_slot: u32) -> Option<String> {
        let (parent, name) = self.home(image_slot)?;
        match self.node(parent)? {
            NamespaceNode::Directory(directory) => Some(join(&directory.path, name)),
            NamespaceNode::Symlink(_) => None,
        }
    }

    /// Returns the cache entries that the kernel must forget when `self` replaces `old`. It may have cached any answer from
    /// `old`.
    ///
    /// Absent names are never cached, so the kernel need not forget anything about a new name.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> NamespaceChanges {
        let mut changes = NamespaceChanges::default();
        let mut removed: Vec<(Reverse<usize>, &str, Ino, Box<str>)> = Vec::new();
        for (&ino, node) in &old.nodes {
            let NamespaceNode::Directory(before) = node else { continue };
            let after = match self.nodes.get(&ino) {
                Some(NamespaceNode::Directory(after)) => Some(after),
                Some(NamespaceNode::Symlink(_)) | None => None,
            };
            for (name, target) in &before.names {
                if after.and_then(|after| after.names.get(name)) != Some(target) {
                    let depth = before.path.split('/').count() + usize::from(!before.path.is_empty());
                    removed.push((Reverse(depth), &before.path, ino, name.clone()));
                }
            }
            if after.is_some_and(|after| after.listed != before.listed) {
                changes.directories.push(ino);
            }
        }
        removed.sort_unstable();
        changes.names = removed.into_iter().map(|(_, _, parent, name)| (parent, name)).collect();
        changes.directories.sort_unstable();
        changes
    }

    /// Keeps the times of unchanged nodes, and gives changed directories a later time: the kernel recognizes an outdated
    /// cached listing by the directory's mtime (`fuse_readdir_cached`, fs/fuse/readdir.c).
    fn keep_times(&mut self, previous: &Self) {
        for (ino, node) in &mut self.nodes {
            match (node, previous.nodes.get(ino)) {
                (NamespaceNode::Directory(now), Some(NamespaceNode::Directory(before))) => {
                    if now.listed == before.listed && before.mtime != NO_TIME {
                        now.mtime = before.mtime;
                    } else if now.mtime <= before.mtime {
                        now.mtime = just_after(before.mtime);
                    }
                }
                // The number is a hash of path and target, so a link with the same number is unchanged.
                (NamespaceNode::Symlink(now), Some(NamespaceNode::Symlink(before))) => {
                    now.mtime = before.mtime
                }
                _ => {}
            }
        }
    }
}

impl NamespaceDirectory {
    /// Looks up a name or an alias in this directory.
    #[must_use]
    pub fn lookup(&self, name: &[u8]) -> Option<NameTarget> {
        self.names.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// The parent directory. The root is its own parent.
    #[must_use]
    pub fn parent(&self) -> Ino {
        self.parent
    }

    /// Returns the time when a name was last added or removed, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }

    /// The link count: the directory's name, its `.`, and the `..` of each directory in it.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        let directories = self.listed.iter().filter(|(.., target)| !matches!(target, NameTarget::Symlink(_)));
        u32::try_from(directories.count()).unwrap_or(u32::MAX - 2) + 2
    }

    /// Returns the names after `cookie` with their cookies. Their order does not depend on other published names.
    ///
    /// Cookies are large, so 0 to 2 are free for the start and the two dot entries.
    pub fn listed_after(&self, cookie: u64) -> impl Iterator<Item = (u64, &str, NameTarget)> {
        let from = self.listed.partition_point(|(at, ..)| *at <= cookie);
        self.listed[from..].iter().map(|(cookie, name, target)| (*cookie, &**name, *target))
    }
}

impl NamespaceSymlink {
    /// The target: a path relative to the link's directory.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Returns the time when the link was created, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }
}

/// Allocates inode numbers from hashes. If a hash is taken, the next free number is used.
struct InoAllocator {
    hash: fn(&[&str]) -> u64,
    taken: HashSet<Ino>,
}

impl InoAllocator {
    fn next(&mut self, parts: &[&str]) -> Ino {
        let first = (self.hash)(parts);
        (0..)
            .map(|step| Ino::of_namespace(first.wrapping_add(step)))
            .find(|ino| self.taken.insert(*ino))
            .expect("there are fewer names than numbers")
    }
}

fn path_hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    let hash: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes(hash[..8].try_into().expect("8 of 32 bytes"))
}

fn just_after(time: Timestamp) -> Timestamp {
    match time.nsec {
        999_999_999 => Timestamp { sec: time.sec.saturating_add(1), nsec: 0 },
        nsec => Timestamp { nsec: nsec + 1, ..time },
    }
}

#[cfg(test)]
mod tests;
