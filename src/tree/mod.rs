//! All layers of an image as one tree of nodes: what every engine shows.
//!
//! [`merge()`] makes it from the layers' indexes and nothing else. A [`Tree`] never changes and holds names and
//! structure only; what a node is like (mode, size, link target) is in the entry that it comes from, in the index.

mod dump;
mod freeze;
mod merge;

use std::fmt;

use crate::index::EntryId;
use crate::layer::Timestamp;

pub use dump::dump;
pub use merge::{MAX_LINKS, MergeError, MergeFault, merge};

/// Permission bits of a directory that no layer has an entry for. It belongs to root:root and has no xattrs.
pub const IMPLIED_MODE: u16 = 0o755;

/// Last change of a directory that no layer has an entry for: a fixed time, so that a tree is a function of its layers.
pub const IMPLIED_MTIME: Timestamp = Timestamp { sec: 0, nsec: 0 };

/// One node of a tree: its ordinal. Directories come first, breadth first in the order of their names; then all
/// other nodes, each where its first name is found in the same order. So the numbers depend on the layers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory, which every tree has.
    pub const ROOT: Self = Self(0);

    /// Wraps an ordinal, counted from 0.
    #[must_use]
    pub const fn new(ordinal: u32) -> Self {
        Self(ordinal)
    }

    /// The ordinal, counted from 0.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The ordinal as an index into memory (`usize` has at least 32 bits on every host with FUSE).
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One layer of an image: 0 is the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerNo(u16);

impl LayerNo {
    /// Wraps a number, counted from 0.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number as an index into the image's layers.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Counts from 1, as people do.
impl fmt::Display for LayerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", u32::from(self.0) + 1)
    }
}

/// Where a node's attributes and content come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeSource {
    /// An entry of a layer; for a directory that of the last layer that names it. Never a hard link.
    Entry {
        /// The layer.
        layer: LayerNo,
        /// The entry in the layer's index.
        entry: EntryId,
    },
    /// A directory that is only there because of what is in it: see [`IMPLIED_MODE`] and [`IMPLIED_MTIME`].
    Implied,
}

/// The merged tree of an image.
///
/// Methods that take a [`NodeId`] expect one of this tree; numbers from outside are checked with [`Tree::contains`] first.
#[derive(Debug)]
pub struct Tree {
    /// Each name once, a byte for its length before it, in the order in which the nodes are found.
    names: Box<[u8]>,
    /// The children of all directories, one directory behind the other; within one sorted by name.
    children: Box<[TreeChild]>,
    /// One for each directory, and one more for where the last one's children end.
    directories: Box<[TreeDirectory]>,
    /// By node: the layer, or [`IMPLIED`].
    layers: Box<[u16]>,
    /// By node: the entry in that layer.
    entries: Box<[u32]>,
    /// Nodes with more than one name, ascending, with how many they have.
    links: Box<[(NodeId, u32)]>,
}

/// Stands in [`Tree::layers`] for no layer.
const IMPLIED: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct TreeChild {
    /// Offset in [`Tree::names`].
    name: u32,
    node: NodeId,
}

#[derive(Debug, Clone, Copy)]
struct TreeDirectory {
    /// First of its children; the next directory's first is behind its last.
    first: u32,
    parent: NodeId,
    subdirectories: u32,
}

impl Tree {
    /// How many nodes there are; at least the root.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a tree is never empty")]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is such a node.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        node.index() < self.len()
    }

    /// Whether a node is a directory.
    #[must_use]
    pub fn is_directory(&self, node: NodeId) -> bool {
        node.index() < self.directories.len() - 1
    }

    /// The node with this name in a directory; `None` if there is none, or if `directory` is not one.
    #[must_use]
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children_of(directory);
        let position = children.binary_search_by(|child| self.name(child).cmp(name)).ok()?;
        Some(children[position].node)
    }

    /// What a directory holds, in the order of the names' bytes; nothing for what is not a directory.
    pub fn children(&self, directory: NodeId) -> impl ExactSizeIterator<Item = (&[u8], NodeId)> {
        self.children_of(directory).iter().map(|child| (self.name(child), child.node))
    }

    /// The child at a position of that order, `None` behind the last.
    #[must_use]
    pub fn child_at(&self, directory: NodeId, position: usize) -> Option<(&[u8], NodeId)> {
        self.children_of(directory).get(position).map(|child| (self.name(child), child.node))
    }

    /// The directory that holds a directory; the root holds itself.
    ///
    /// # Panics
    /// When `directory` is not one: a node with several names has no one parent.
    #[must_use]
    pub fn parent(&self, directory: NodeId) -> NodeId {
        assert!(self.is_directory(directory), "only directories have one parent");
        self.directories[directory.index()].parent
    }

    /// Where a node's attributes and content come from.
    ///
    /// # Panics
    /// When `node` is not of this tree.
    #[must_use]
    pub fn source(&self, node: NodeId) -> NodeSource {
        match self.layers[node.index()] {
            IMPLIED => NodeSource::Implied,
            layer => {
                NodeSource::Entry { layer: LayerNo(layer), entry: EntryId::new(self.entries[node.index()]) }
            }
        }
    }

    /// How many names a node has in this tree; of a directory its own, its `.` and the `..` of each directory in it.
    #[must_use]
    pub fn nlink(&self, node: NodeId) -> u32 {
        if self.is_directory(node) {
            return self.directories[node.index()].subdirectories.saturating_add(2);
        }
        self.links.binary_search_by_key(&node, |(node, _)| *node).map_or(1, |position| self.links[position].1)
    }

    /// Bytes of memory that the tree takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val(&*self.names)
            + size_of_val(&*self.children)
            + size_of_val(&*self.directories)
            + size_of_val(&*self.layers)
            + size_of_val(&*self.entries)
            + size_of_val(&*self.links)
    }

    fn children_of(&self, directory: NodeId) -> &[TreeChild] {
        match self.directories.get(directory.index()..).and_then(|from| from.first_chunk()) {
            Some([directory, next]) => &self.children[directory.first as usize..next.first as usize],
            None => &[],
        }
    }

    fn name(&self, child: &TreeChild) -> &[u8] {
        let at = child.name as usize;
        &self.names[at + 1..][..usize::from(self.names[at])]
    }
}
