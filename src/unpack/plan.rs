//! Plans what to write: a whole tree, or what one tree has that another has not.
//!
//! The difference of two trees is what an overlay layer above the lower one has to hold so that both together show the
//! upper one (Documentation/filesystems/overlayfs.rst). It is taken from the merged trees and not from a layer's markers:
//! overlayfs shows a whiteout that stands in a directory without a lower counterpart, knows no links on the way to a
//! marker, and cannot count the names of a file that are spread over its layers. So here a whiteout is planned only where
//! there is something to hide, and a file with several names is written with all of them as soon as one is added or gone.

use std::collections::{HashMap, HashSet};

use crate::tree::{NodeId, Source, Tree};

/// A directory to be made, as its ordinal in [`UnpackPlan::directories`]; 0 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryNo(u32);

impl DirectoryNo {
    /// The root.
    pub const ROOT: Self = Self(0);

    /// The ordinal as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The directory at an index of [`UnpackPlan::directories`].
    fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("a tree has at most 2^32 nodes"))
    }
}

/// A name in a directory that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanName {
    /// The directory.
    pub directory: DirectoryNo,
    /// The last component.
    pub name: Box<[u8]>,
}

/// A directory to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanDirectory {
    /// Where it is made; the root's is the root itself, with an empty name.
    pub place: PlanName,
    /// Where its attributes come from.
    pub source: Source,
    /// Whether it hides all that lower layers have in it.
    pub opaque: bool,
}

/// Anything but a directory, with all names that it has in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanNode {
    /// Where attributes and content come from.
    pub source: Source,
    /// The name it is made under, and those that are linked to it.
    pub names: Vec<PlanName>,
}

/// What to write, and in what order: directories, each behind its parent; then the nodes; then what is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackPlan {
    /// The root first.
    pub directories: Vec<PlanDirectory>,
    /// All else.
    pub nodes: Vec<PlanNode>,
    /// What lower layers have and this tree has not.
    pub whiteouts: Vec<PlanName>,
    /// Whether nothing of the lower layers is left, so that they are to be left out of the mount: an opaque mark at the
    /// root has no effect in overlayfs.
    pub replaces_all: bool,
    /// Whether the root's attributes are others than the lower tree's.
    pub changes_root: bool,
}

impl UnpackPlan {
    /// All of a tree.
    #[must_use]
    pub fn whole(tree: &Tree) -> Self {
        Planner::new(tree, None).plan()
    }

    /// What `upper` has in place of `lower`: both are of one image, `lower` of its lowest layers alone.
    #[must_use]
    pub fn difference(upper: &Tree, lower: &Tree) -> Self {
        Planner::new(upper, Some(lower)).plan()
    }

    /// The directories with their numbers, parents first.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (DirectoryNo, &PlanDirectory)> {
        self.directories.iter().enumerate().map(|(index, directory)| (DirectoryNo::at(index), directory))
    }

    /// Whether the lower layers show the tree without anything above them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let only_root = self.directories.len() == 1 && !self.changes_root;
        only_root && self.nodes.is_empty() && self.whiteouts.is_empty() && !self.replaces_all
    }
}

/// A directory that is being compared.
struct Frame {
    upper: NodeId,
    lower: Option<NodeId>,
    /// The frame of its parent, and its name there.
    parent: usize,
    name: Box<[u8]>,
    /// Set as soon as something is to be written in it.
    made: Option<DirectoryNo>,
}

struct Planner<'a> {
    upper: &'a Tree,
    lower: Option<&'a Tree>,
    /// Nodes of the upper tree with several names of which some are not the lower tree's.
    regrouped: HashSet<NodeId>,
    frames: Vec<Frame>,
    /// Where nodes with several names are in the plan.
    planned: HashMap<NodeId, usize>,
    plan: UnpackPlan,
}

impl<'a> Planner<'a> {
    fn new(upper: &'a Tree, lower: Option<&'a Tree>) -> Self {
        let regrouped = lower.map_or_else(HashSet::new, |lower| regrouped(upper, lower));
        let changes_root = lower.is_none_or(|lower| lower.source(NodeId::ROOT) != upper.source(NodeId::ROOT));
        let plan = UnpackPlan {
            directories: Vec::new(),
            nodes: Vec::new(),
            whiteouts: Vec::new(),
            replaces_all: false,
            changes_root,
        };
        Self { upper, lower, regrouped, frames: Vec::new(), planned: HashMap::new(), plan }
    }

    fn plan(mut self) -> UnpackPlan {
        let root = Frame {
            upper: NodeId::ROOT,
            lower: self.lower.map(|_| NodeId::ROOT),
            parent: 0,
            name: Box::default(),
            // Every layer directory has a root, and the topmost one's attributes are shown.
            made: Some(DirectoryNo::ROOT),
        };
        self.frames.push(root);
        self.plan.directories.push(PlanDirectory {
            place: PlanName { directory: DirectoryNo::ROOT, name: Box::default() },
            source: self.upper.source(NodeId::ROOT),
            opaque: false,
        });
        // Breadth first: a tree may be deeper than the stack, and parents come before children of themselves.
        let mut next = 0;
        while next < self.frames.len() {
            self.compare(next);
            next += 1;
        }
        self.plan
    }

    fn compare(&mut self, at: usize) {
        let (upper, lower) = (self.upper, self.lower);
        let Frame { upper: directory, lower: beneath, .. } = self.frames[at];
        let below = |name: &[u8]| beneath.and_then(|beneath| lower?.lookup(beneath, name));
        let mut kept = false;
        let mut hidden: Vec<Box<[u8]>> = Vec::new();
        for (name, node) in upper.children(directory) {
            let under = below(name);
            if upper.is_directory(node) {
                let under = under.filter(|under| lower.is_some_and(|lower| lower.is_directory(*under)));
                kept |= under.is_some();
                self.descend(at, name, node, under);
            } else if under.is_some_and(|under| self.is_same(node, under)) {
                kept = true;
            } else {
                let place = PlanName { directory: self.make(at), name: name.into() };
                self.add(node, place);
            }
        }
        if let (Some(beneath), Some(lower)) = (beneath, lower) {
            for (name, _) in lower.children(beneath) {
                if upper.lookup(directory, name).is_none() {
                    hidden.push(name.into());
                }
            }
        }
        if hidden.is_empty() {
            return;
        }
        // One mark instead of many, where all that was there is gone.
        if !kept && directory != NodeId::ROOT {
            let made = self.make(at);
            self.plan.directories[made.index()].opaque = true;
            return;
        }
        if !kept {
            self.plan.replaces_all = true;
            return;
        }
        let made = self.make(at);
        self.plan.whiteouts.extend(hidden.into_iter().map(|name| PlanName { directory: made, name }));
    }

    fn descend(&mut self, parent: usize, name: &[u8], node: NodeId, under: Option<NodeId>) {
        let at = self.frames.len();
        self.frames.push(Frame { upper: node, lower: under, parent, name: name.into(), made: None });
        let shown = under.and_then(|under| Some(self.lower?.source(under)));
        if shown != Some(self.upper.source(node)) {
            self.make(at);
        }
    }

    /// The directory of a frame in the plan; it is entered there, with its parents, if it was not.
    fn make(&mut self, at: usize) -> DirectoryNo {
        let mut missing = Vec::new();
        let mut frame = at;
        let mut directory = loop {
            match self.frames[frame].made {
                Some(made) => break made,
                None => missing.push(frame),
            }
            frame = self.frames[frame].parent;
        };
        for frame in missing.into_iter().rev() {
            let number = DirectoryNo::at(self.plan.directories.len());
            let place = PlanName { directory, name: self.frames[frame].name.clone() };
            let source = self.upper.source(self.frames[frame].upper);
            self.plan.directories.push(PlanDirectory { place, source, opaque: false });
            directory = number;
            self.frames[frame].made = Some(directory);
        }
        directory
    }

    fn add(&mut self, node: NodeId, place: PlanName) {
        if self.upper.nlink(node) > 1 {
            if let Some(planned) = self.planned.get(&node) {
                self.plan.nodes[*planned].names.push(place);
                return;
            }
            self.planned.insert(node, self.plan.nodes.len());
        }
        self.plan.nodes.push(PlanNode { source: self.upper.source(node), names: vec![place] });
    }

    /// Whether the lower tree's node at the same path is this one, with the same names.
    fn is_same(&self, node: NodeId, under: NodeId) -> bool {
        let Some(lower) = self.lower else { return false };
        !lower.is_directory(under)
            && lower.source(under) == self.upper.source(node)
            && lower.nlink(under) == self.upper.nlink(node)
            && !self.regrouped.contains(&node)
    }
}

/// The nodes with several names that have not the same names in both trees.
fn regrouped(upper: &Tree, lower: &Tree) -> HashSet<NodeId> {
    let names = several_names(upper);
    let before: HashMap<Vec<Vec<u8>>, Source> =
        several_names(lower).into_iter().map(|(node, names)| (names, lower.source(node))).collect();
    let is_regrouped = |(node, names): (NodeId, Vec<Vec<u8>>)| {
        (before.get(&names) != Some(&upper.source(node))).then_some(node)
    };
    names.into_iter().filter_map(is_regrouped).collect()
}

/// The nodes with more than one name, each with its paths, in the order of the walk.
fn several_names(tree: &Tree) -> HashMap<NodeId, Vec<Vec<u8>>> {
    let mut found: HashMap<NodeId, Vec<Vec<u8>>> = HashMap::new();
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
                found.entry(node).or_default().push(path);
            }
        }
    }
    found.values_mut().for_each(|paths| paths.sort_unstable());
    found
}
