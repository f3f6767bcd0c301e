//! The mount's names: directories, images, tags and aliases, as an immutable snapshot of what the store publishes.
//!
//! ```text
//! host:5000/lab/python@sha256:<manifest>    an image: the root of its tree
//! host:5000/lab/python@sha256:<index>       symlink to it
//! host:5000/lab/python:3.12                 symlink to it
//! host-5000, python@sha256-<hex>, ...       aliases: symlinks to the name with `:`; they resolve and are not listed
//! ```
//!
//! The kernel keeps a directory at one place in its tree of names, so an image that is published under two names is a
//! directory under one of them and a symlink to that under the other.
//!
//! Inode numbers of names are hashes of kind, path and (of a link) target: whatever process serves the mount gives the
//! same number to the same name, and a tag that moves is another inode, so that no cached link target is ever stale.

mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use plan::{PlannedNode, aliases, join, plan, split};

use super::Ino;
use super::attr::NO_TIME;
use crate::image::ManifestDigest;
use crate::layer::Timestamp;

/// One reference of the store: a name for an image, with or without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedReference {
    /// The name in the mount: the familiar form, components joined by `/`.
    pub name: String,
    /// The tag, if the reference has one.
    pub tag: Option<String>,
    /// Digest of the index (the multi-platform document) through which the image was found, if there was one.
    pub index: Option<ManifestDigest>,
    /// The image.
    pub image: PublishedImage,
}

/// An image that the mount shows: a manifest and the slot that its inode numbers carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublishedImage {
    /// Digest of its manifest.
    pub manifest: ManifestDigest,
    /// Its slot in the store, below [`Ino::SLOT_LIMIT`].
    pub slot: u32,
}

/// What a name stands for.
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
    /// Ascending by cookie.
    listed: Vec<(u64, Box<str>, NameTarget)>,
    names: HashMap<Box<str>, NameTarget>,
}

/// A symbolic link within the namespace.
#[derive(Debug)]
pub struct NamespaceSymlink {
    target: Box<str>,
    mtime: Timestamp,
}

/// What the kernel has to forget when one namespace follows another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NamespaceChanges {
    /// Names that are gone or stand for something else now, with their directory; what lies deeper comes first.
    pub names: Vec<(Ino, Box<str>)>,
    /// Directories whose attributes or listing changed.
    pub directories: Vec<Ino>,
}

/// A snapshot of the mount's names.
#[derive(Debug)]
pub struct Namespace {
    nodes: HashMap<Ino, NamespaceNode>,
    /// Where each image is a directory: the directory that holds it.
    homes: HashMap<u32, (Ino, Box<str>)>,
}

impl Default for Namespace {
    /// Nothing published, as the store has not been looked at.
    fn default() -> Self {
        Self::new(&[], NO_TIME, None)
    }
}

impl Namespace {
    /// Makes the snapshot that follows `previous`. `changed` is when the store's references last changed: directories that
    /// are not as they were take it as their mtime.
    ///
    /// Where two references claim one path, a directory of names wins over a tag, and the later reference over the earlier;
    /// an image under several names stays a directory where it was one in `previous`, or else is one under the first.
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
        // Ascending, so that the numbers do not depend on the order of the references even where hashes collide.
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

    /// A node by its number.
    #[must_use]
    pub fn node(&self, ino: Ino) -> Option<&NamespaceNode> {
        self.nodes.get(&ino)
    }

    /// The directory in which an image is a directory, and its name there.
    #[must_use]
    pub fn home(&self, image_slot: u32) -> Option<(Ino, &str)> {
        self.homes.get(&image_slot).map(|(parent, name)| (*parent, &**name))
    }

    /// The image with this slot, if it is published.
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

    /// How many images are published.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.homes.len()
    }

    /// Path of an image's directory in the mount, without a leading `/`.
    #[must_use]
    pub fn path_of(&self, image_slot: u32) -> Option<String> {
        let (parent, name) = self.home(image_slot)?;
        match self.node(parent)? {
            NamespaceNode::Directory(directory) => Some(join(&directory.path, name)),
            NamespaceNode::Symlink(_) => None,
        }
    }

    /// What the kernel, which may have cached anything that `old` answered, must forget when `self` answers from now on.
    /// Names that did not resolve are never cached, so a name that is only new is no change.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> NamespaceChanges {
        let mut changes = NamespaceChanges::default();
        let mut depths: Vec<(Reverse<usize>, &str, Ino, Box<str>)> = Vec::new();
        for (&ino, node) in &old.nodes {
            let NamespaceNode::Directory(before) = node else { continue };
            let after = match self.nodes.get(&ino) {
                Some(NamespaceNode::Directory(after)) => Some(after),
                Some(NamespaceNode::Symlink(_)) | None => None,
            };
            for (name, target) in &before.names {
                if after.and_then(|after| after.names.get(name)) != Some(target) {
                    let depth = before.path.split('/').count() + usize::from(!before.path.is_empty());
                    depths.push((Reverse(depth), &before.path, ino, name.clone()));
                }
            }
            if after.is_some_and(|after| after.listed != before.listed) {
                changes.directories.push(ino);
            }
        }
        depths.sort_unstable();
        changes.names = depths.into_iter().map(|(_, _, parent, name)| (parent, name)).collect();
        changes.directories.sort_unstable();
        changes
    }

    /// Gives what did not change the time that it had, and what did a later one: by it the kernel tells that the listing
    /// that it has cached is an old one (`fuse_readdir_cached`, fs/fuse/readdir.c).
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
                // The number of a link is a hash of all that it is.
                (NamespaceNode::Symlink(now), Some(NamespaceNode::Symlink(before))) => {
                    now.mtime = before.mtime
                }
                _ => {}
            }
        }
    }
}

impl NamespaceDirectory {
    /// What a name in this directory stands for, aliases included.
    #[must_use]
    pub fn lookup(&self, name: &[u8]) -> Option<NameTarget> {
        self.names.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// The directory above; the root's is the root.
    #[must_use]
    pub fn parent(&self) -> Ino {
        self.parent
    }

    /// When a name came or went last, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }

    /// Links that a directory has: its name, its `.`, and the `..` of each directory in it.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        let directories = self.listed.iter().filter(|(.., target)| !matches!(target, NameTarget::Symlink(_)));
        u32::try_from(directories.count()).unwrap_or(u32::MAX - 2) + 2
    }

    /// The names behind `cookie` with their own cookies, in an order that does not depend on what else is published.
    /// Cookies are greater than any small number, so 0 to 2 stand for the start.
    pub fn listed_after(&self, cookie: u64) -> impl Iterator<Item = (u64, &str, NameTarget)> {
        let from = self.listed.partition_point(|(at, ..)| *at <= cookie);
        self.listed[from..].iter().map(|(cookie, name, target)| (*cookie, &**name, *target))
    }
}

impl NamespaceSymlink {
    /// What the link holds: a path relative to its directory.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// When it came, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }
}

/// Hands out numbers, another one where a hash is taken.
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
            .expect("there are more numbers than names")
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
