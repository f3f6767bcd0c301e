//! All layers of an image merged into one tree of nodes, which every engine shows.
//!
//! [`merge()`] builds the tree from the indexes of the layers alone. A [`Tree`] is immutable and holds only names and structure;
//! mode, size, link target and other attributes of a node are in its entry in the index.

mod draft;
mod dump;
mod error;
mod freeze;
mod merge;

use std::fmt;

use crate::index::EntryId;
use crate::layer::Timestamp;

pub use dump::dump;
pub use error::{MAX_LINKS, MergeError, MergeFault};
pub use merge::merge;

use error::MAX_NAME;

/// The permission bits of a directory without an entry in any layer. It belongs to root:root and has no xattrs.
pub const IMPLIED_MODE: u16 = 0o755;

/// The mtime of a directory without an entry in any layer: a fixed time, so that a tree is a function of its layers.
pub const IMPLIED_MTIME: Timestamp = Timestamp { sec: 0, nsec: 0 };

/// The ordinal of a node in its tree. Directories come first, breadth first in the order of their names; then all other nodes,
/// in the order of their first names in that walk. So the numbers depend on the layers alone.
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

    /// The ordinal as an index into memory (`usize` has at least 32 bits on every supported host).
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

/// The number of a layer in its image; 0 is the lowest layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerNo(u16);

impl LayerNo {
    /// Wraps a number, counted from 0.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number as an index into the layers of the image.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Counts from 1, for messages.
impl fmt::Display for LayerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", u32::from(self.0) + 1)
    }
}

/// The origin of a node's attributes and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeSource {
    /// An entry of a layer; for a directory, the entry in the highest layer that has one. Never a hard link.
    Entry {
        /// The layer.
        layer: LayerNo,
        /// The entry in the layer's index.
        entry: EntryId,
    },
    /// A directory without an entry, which exists because a path leads through it: see [`IMPLIED_MODE`] and [`IMPLIED_MTIME`].
    Implied,
}

/// The merged tree of an image.
///
/// Methods that take a [`NodeId`] expect a node of this tree. Check numbers from outside with [`Tree::contains`] first.
#[derive(Debug)]
pub struct Tree {
    /// Each name once, preceded by its length in one byte.
    names: Box<[u8]>,
    /// The children of all directories, in the order of the directories; within a directory sorted by name.
    children: Box<[TreeChild]>,
    /// One record for each directory, and a final record that marks the end of the children.
    directories: Box<[TreeDirectory]>,
    /// The layer of each node, or [`IMPLIED`].
    layers: Box<[u16]>,
    /// The entry of each node in its layer.
    entries: Box<[u32]>,
    /// Nodes with more than one name, ascending, with the number of names.
    links: Box<[(NodeId, u32)]>,
}

/// The value in [`Tree::layers`] for a node without a layer.
const IMPLIED: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct TreeChild {
    /// Offset in [`Tree::names`].
    name: u32,
    node: NodeId,
}

#[derive(Debug, Clone, Copy)]
struct TreeDirectory {
    /// The position of its first child. The children end where those of the next directory start.
    first: u32,
    parent: NodeId,
    subdirectories: u32,
}

impl Tree {
    /// The number of nodes, at least 1: the root.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a tree is never empty")]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether the tree has this node.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        node.index() < self.len()
    }

    /// Whether a node is a directory.
    #[must_use]
    pub fn is_directory(&self, node: NodeId) -> bool {
        node.index() < self.directories.len() - 1
    }

    /// The node with this name in a directory; `None` if no child has the name, or if `directory` is not a directory.
    #[must_use]
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children_of(directory);
        let position = children.binary_search_by(|child| self.name(child).cmp(name)).ok()?;
        Some(children[position].node)
    }

    /// The children of a directory, in byte order of their names. Other nodes have no children.
    pub fn children(&self, directory: NodeId) -> impl ExactSizeIterator<Item = (&[u8], NodeId)> {
        self.children_of(directory).iter().map(|child| (self.name(child), child.node))
    }

    /// The child at a position in the order of [`Tree::children`]; `None` after the last child.
    #[must_use]
    pub fn child_at(&self, directory: NodeId, position: usize) -> Option<(&[u8], NodeId)> {
        self.children_of(directory).get(position).map(|child| (self.name(child), child.node))
    }

    /// The parent of a directory; the root is its own parent.
    ///
    /// # Panics
    /// `directory` is not a directory: other nodes can have several parents.
    #[must_use]
    pub fn parent(&self, directory: NodeId) -> NodeId {
        assert!(self.is_directory(directory), "only directories have exactly one parent");
        self.directories[directory.index()].parent
    }

    /// The origin of a node's attributes and content.
    ///
    /// # Panics
    /// `node` is not a node of this tree.
    #[must_use]
    pub fn source(&self, node: NodeId) -> NodeSource {
        match self.layers[node.index()] {
            IMPLIED => NodeSource::Implied,
            layer => {
                NodeSource::Entry { layer: LayerNo(layer), entry: EntryId::new(self.entries[node.index()]) }
            }
        }
    }

    /// The number of names of a node in this tree. A directory has its own name, its `.` and the `..` of each subdirectory.
    #[must_use]
    pub fn nlink(&self, node: NodeId) -> u32 {
        if self.is_directory(node) {
            return self.directories[node.index()].subdirectories.saturating_add(2);
        }
        self.links.binary_search_by_key(&node, |(node, _)| *node).map_or(1, |position| self.links[position].1)
    }

    /// The memory that the tree uses, in bytes.
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
