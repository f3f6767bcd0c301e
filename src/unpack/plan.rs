//! Plans the files to write: a whole tree, or the difference between two trees.
//!
//! The difference is the content of an overlay layer: stacked on the lower tree, it shows the upper tree
//! (Documentation/filesystems/overlayfs.rst). It is computed from the merged trees, not from a layer's markers. Markers
//! would be wrong for three reasons: overlayfs shows a whiteout in a directory that has no lower counterpart, it does not
//! resolve links on the path to a marker, and it does not count the hard links of a file over several layers. So a whiteout
//! is planned only where it hides something, and a file with several names is written with all of them as soon as one name
//! is added or removed.

use std::collections::{HashMap, HashSet};

use crate::tree::{NodeId, NodeSource, Tree};

/// The number of a directory in [`UnpackPlan::directories`]; 0 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryNo(u32);

impl DirectoryNo {
    /// The root.
    pub const ROOT: Self = Self(0);

    /// The index in [`UnpackPlan::directories`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    fn from_index(index: usize) -> Self {
        Self(u32::try_from(index).expect("a tree has at most 2^32 nodes"))
    }
}

/// A name in a directory of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanName {
    /// The directory.
    pub directory: DirectoryNo,
    /// The last component.
    pub name: Box<[u8]>,
}

/// A directory to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanDirectory {
    /// Its parent and name. The root is its own parent and has an empty name.
    pub place: PlanName,
    /// The origin of its attributes.
    pub source: NodeSource,
    /// Whether it hides the whole content of the directory in lower layers.
    pub opaque: bool,
}

/// A file that is not a directory, with all its names in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanNode {
    /// The origin of its attributes and content.
    pub source: NodeSource,
    /// The name under which it is created, then its hard links.
    pub names: Vec<PlanName>,
}

/// The files to write, in this order: directories, parents first; nodes; whiteouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackPlan {
    /// All directories; the first is the root.
    pub directories: Vec<PlanDirectory>,
    /// All other files.
    pub nodes: Vec<PlanNode>,
    /// Names in lower layers that do not exist in this tree.
    pub whiteouts: Vec<PlanName>,
    /// Whether nothing from the lower layers remains visible. The lower layers must then be left out of the mount, since
    /// overlayfs ignores an opaque marker at the root.
    pub replaces_all: bool,
    /// Whether the attributes of the root differ from those in the lower tree.
    pub changes_root: bool,
}

impl UnpackPlan {
    /// Plans a whole tree.
    #[must_use]
    pub fn whole(tree: &Tree) -> Self {
        Self::below(tree, NodeId::ROOT)
    }

    /// Plans a directory of a tree with everything below it. The directory is the root of the plan. Other names of its files
    /// are left out.
    #[must_use]
    pub fn below(tree: &Tree, directory: NodeId) -> Self {
        Planner::new(tree, None).plan(directory)
    }

    /// Plans one file that is not a directory, under `name` in a new directory.
    #[must_use]
    pub fn single(tree: &Tree, node: NodeId, name: &[u8]) -> Self {
        let root = PlanName { directory: DirectoryNo::ROOT, name: Box::default() };
        let name = PlanName { directory: DirectoryNo::ROOT, name: name.into() };
        Self {
            directories: vec![PlanDirectory { place: root, source: NodeSource::Implied, opaque: false }],
            nodes: vec![PlanNode { source: tree.source(node), names: vec![name] }],
            whiteouts: Vec::new(),
            replaces_all: false,
            changes_root: true,
        }
    }

    /// Plans the difference between two trees of one image, where `lower` is the tree of its lowest layers only.
    #[must_use]
    pub fn difference(upper: &Tree, lower: &Tree) -> Self {
        Planner::new(upper, Some(lower)).plan(NodeId::ROOT)
    }

    /// Returns the directories with their numbers, parents first.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (DirectoryNo, &PlanDirectory)> {
        self.directories
            .iter()
            .enumerate()
            .map(|(index, directory)| (DirectoryNo::from_index(index), directory))
    }

    /// Returns whether the lower layers alone show the tree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let only_root = self.directories.len() == 1 && !self.changes_root;
        only_root && self.nodes.is_empty() && self.whiteouts.is_empty() && !self.replaces_all
    }
}

/// A directory of the upper tree, with its counterpart in the lower tree.
struct DirectoryPair {
    upper: NodeId,
    lower: Option<NodeId>,
    /// The index of its parent in [`Planner::pairs`], and its name there.
    parent: usize,
    name: Box<[u8]>,
    /// Its number in the plan, if something is written in it.
    planned: Option<DirectoryNo>,
}

struct Planner<'a> {
    upper: &'a Tree,
    lower: Option<&'a Tree>,
    /// Nodes of the upper tree whose set of hard links differs from that in the lower tree.
    relinked: HashSet<NodeId>,
    pairs: Vec<DirectoryPair>,
    /// The indexes of nodes with several names in [`UnpackPlan::nodes`].
    hard_links: HashMap<NodeId, usize>,
    plan: UnpackPlan,
}

impl<'a> Planner<'a> {
    fn new(upper: &'a Tree, lower: Option<&'a Tree>) -> Self {
        let relinked = lower.map_or_else(HashSet::new, |lower| relinked(upper, lower));
        let changes_root = lower.is_none_or(|lower| lower.source(NodeId::ROOT) != upper.source(NodeId::ROOT));
        let plan = UnpackPlan {
            directories: Vec::new(),
            nodes: Vec::new(),
            whiteouts: Vec::new(),
            replaces_all: false,
            changes_root,
        };
        Self { upper, lower, relinked, pairs: Vec::new(), hard_links: HashMap::new(), plan }
    }

    fn plan(mut self, start: NodeId) -> UnpackPlan {
        let root = DirectoryPair {
            upper: start,
            lower: self.lower.map(|_| NodeId::ROOT),
            parent: 0,
            name: Box::default(),
            // Every layer directory has a root; overlayfs shows the attributes of the topmost root.
            planned: Some(DirectoryNo::ROOT),
        };
        self.pairs.push(root);
        self.plan.directories.push(PlanDirectory {
            place: PlanName { directory: DirectoryNo::ROOT, name: Box::default() },
            source: self.upper.source(start),
            opaque: false,
        });
        // Breadth first, without recursion: a tree may be deeper than the stack allows, and parents come before children.
        let mut next = 0;
        while next < self.pairs.len() {
            self.compare(next);
            next += 1;
        }
        self.plan
    }

    fn compare(&mut self, pair: usize) {
        let (upper, lower) = (self.upper, self.lower);
        let DirectoryPair { upper: directory, lower: lower_directory, .. } = self.pairs[pair];
        let lookup_lower = |name: &[u8]| lower_directory.and_then(|below| lower?.lookup(below, name));
        let mut kept = false;
        let mut hidden: Vec<Box<[u8]>> = Vec::new();
        for (name, node) in upper.children(directory) {
            let below = lookup_lower(name);
            if upper.is_directory(node) {
                let below = below.filter(|below| lower.is_some_and(|lower| lower.is_directory(*below)));
                kept |= below.is_some();
                self.queue(pair, name, node, below);
            } else if below.is_some_and(|below| self.is_unchanged(node, below)) {
                kept = true;
            } else {
                let place = PlanName { directory: self.plan_directory(pair), name: name.into() };
                self.plan_node(node, place);
            }
        }
        if let (Some(lower_directory), Some(lower)) = (lower_directory, lower) {
            for (name, _) in lower.children(lower_directory) {
                if upper.lookup(directory, name).is_none() {
                    hidden.push(name.into());
                }
            }
        }
        if hidden.is_empty() {
            return;
        }
        // If nothing of the lower directory remains, one opaque marker replaces all whiteouts.
        if !kept && directory != NodeId::ROOT {
            let planned = self.plan_directory(pair);
            self.plan.directories[planned.index()].opaque = true;
            return;
        }
        if !kept {
            self.plan.replaces_all = true;
            return;
        }
        let directory = self.plan_directory(pair);
        self.plan.whiteouts.extend(hidden.into_iter().map(|name| PlanName { directory, name }));
    }

    fn queue(&mut self, parent: usize, name: &[u8], node: NodeId, below: Option<NodeId>) {
        let pair = self.pairs.len();
        self.pairs.push(DirectoryPair {
            upper: node,
            lower: below,
            parent,
            name: name.into(),
            planned: None,
        });
        let lower_source = below.and_then(|below| Some(self.lower?.source(below)));
        if lower_source != Some(self.upper.source(node)) {
            self.plan_directory(pair);
        }
    }

    /// Adds a directory and its missing parents to the plan. Returns the number of the directory.
    fn plan_directory(&mut self, at: usize) -> DirectoryNo {
        let mut missing = Vec::new();
        let mut pair = at;
        let mut directory = loop {
            match self.pairs[pair].planned {
                Some(planned) => break planned,
                None => missing.push(pair),
            }
            pair = self.pairs[pair].parent;
        };
        for pair in missing.into_iter().rev() {
            let number = DirectoryNo::from_index(self.plan.directories.len());
            let place = PlanName { directory, name: self.pairs[pair].name.clone() };
            let source = self.upper.source(self.pairs[pair].upper);
            self.plan.directories.push(PlanDirectory { place, source, opaque: false });
            directory = number;
            self.pairs[pair].planned = Some(directory);
        }
        directory
    }

    fn plan_node(&mut self, node: NodeId, place: PlanName) {
        if self.upper.nlink(node) > 1 {
            if let Some(planned) = self.hard_links.get(&node) {
                self.plan.nodes[*planned].names.push(place);
                return;
            }
            self.hard_links.insert(node, self.plan.nodes.len());
        }
        self.plan.nodes.push(PlanNode { source: self.upper.source(node), names: vec![place] });
    }

    /// Returns whether `below`, the lower tree's node at the same path, is the same file with the same hard links.
    fn is_unchanged(&self, node: NodeId, below: NodeId) -> bool {
        let Some(lower) = self.lower else { return false };
        !lower.is_directory(below)
            && lower.source(below) == self.upper.source(node)
            && lower.nlink(below) == self.upper.nlink(node)
            && !self.relinked.contains(&node)
    }
}

/// Returns the nodes with several names whose names differ between the trees.
fn relinked(upper: &Tree, lower: &Tree) -> HashSet<NodeId> {
    let before: HashMap<Vec<Vec<u8>>, NodeSource> =
        hard_link_paths(lower).into_iter().map(|(node, paths)| (paths, lower.source(node))).collect();
    let is_relinked =
        |(node, paths): &(NodeId, Vec<Vec<u8>>)| before.get(paths) != Some(&upper.source(*node));
    hard_link_paths(upper).into_iter().filter(is_relinked).map(|(node, _)| node).collect()
}

/// Returns the nodes with several names, each with its sorted paths.
fn hard_link_paths(tree: &Tree) -> HashMap<NodeId, Vec<Vec<u8>>> {
    let mut links: HashMap<NodeId, Vec<Vec<u8>>> = HashMap::new();
    let mut directories = vec![(NodeId::ROOT, Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        for (name, node) in tree.children(directory) {
            let is_directory = tree.is_directory(node);
            if !is_directory && tree.nlink(node) < 2 {
                continue;
            }
            let path = [&path, name, &[b'/'][..usize::from(is_directory)]].concat();
            if is_directory {
                directories.push((node, path));
            } else {
                links.entry(node).or_default().push(path);
            }
        }
    }
    links.values_mut().for_each(|paths| paths.sort_unstable());
    links
}
