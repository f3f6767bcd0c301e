//! The tree during a merge: its nodes and names, and the walk along a path through symlinks.
//!
//! Nodes are never removed from the tables; removing a name only unlinks its node. So removing a directory costs the same
//! whatever its size.

use std::collections::{HashMap, HashSet};

use super::{IMPLIED, MAX_LINKS, MAX_NAME, MergeFault};
use crate::layer::is_leftover;

/// Maximum number of components of symlink targets that a merge walks, for all entries together. Paths in real layers lead
/// through a few links of a few components; 40 links of 2,000 components in the path of each of a million entries would take
/// an hour.
const MAX_LINK_STEPS: u32 = 1 << 24;

/// Maximum number of nodes that a merge creates, including removed ones. Each takes some 100 bytes during the merge. The
/// largest images have two million files; a path of 4,000 bytes can create two thousand directories, so a small layer could
/// use all memory.
const MAX_NODES: usize = 1 << 24;

/// Symlinks that a layer replaces with directories, as directory and name: other names of the same symlink remain.
pub(super) type ReplacedLinks<'a> = HashSet<(u32, &'a [u8])>;

/// A node during the merge.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeDraft<'a> {
    pub(super) kind: DraftKind<'a>,
    pub(super) layer: u16,
    pub(super) entry: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum DraftKind<'a> {
    /// A directory has one parent and one name; the root is its own parent.
    Directory {
        parent: u32,
        name: u32,
    },
    Symlink {
        target: &'a [u8],
    },
    Other,
}

/// The result of resolving a path.
#[derive(Debug)]
pub(super) enum ResolvedPath<'a> {
    /// The path leads to a directory.
    Directory(u32),
    /// These components are missing in a directory.
    Missing(u32, Vec<&'a [u8]>),
    /// The path leads through a node that is not a directory.
    Blocked,
}

/// The tree during the merge. Nodes and names are represented by ordinals.
#[derive(Debug)]
pub(super) struct MergeState<'a> {
    pub(super) drafts: Vec<NodeDraft<'a>>,
    pub(super) root: u32,
    pub(super) names: Vec<&'a [u8]>,
    name_ordinals: HashMap<&'a [u8], u32>,
    /// By directory and name. Removed directories keep their children, which are then unreachable.
    pub(super) children: HashMap<(u32, u32), u32>,
    /// Leftovers of AUFS in the current layer, as directory and name.
    pub(super) hidden: Vec<(u32, u32)>,
    /// The directory of the previous entry, as path and node. Neighbours in a tar mostly share their directory.
    pub(super) last: Option<(&'a [u8], u32)>,
    /// The number of symlinks in the path that was resolved last.
    followed: usize,
    /// The number of components of symlink targets walked so far.
    pub(super) link_steps: u32,
}

impl<'a> MergeState<'a> {
    pub(super) fn new() -> Self {
        let mut merge = Self {
            drafts: Vec::new(),
            root: 0,
            names: Vec::new(),
            name_ordinals: HashMap::new(),
            children: HashMap::new(),
            hidden: Vec::new(),
            last: None,
            followed: 0,
            link_steps: 0,
        };
        merge.drafts.push(NodeDraft {
            kind: DraftKind::Directory { parent: 0, name: 0 },
            layer: IMPLIED,
            entry: 0,
        });
        merge
    }

    /// Reserves memory for the entries of a layer. Most names of an upper layer are known already.
    pub(super) fn reserve(&mut self, entries: usize) {
        self.drafts.reserve(entries);
        self.children.reserve(entries);
    }

    pub(super) fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        self.children.get(&(directory, *self.name_ordinals.get(name)?)).copied()
    }

    pub(super) fn draft(&self, node: u32) -> &NodeDraft<'a> {
        &self.drafts[node as usize]
    }

    pub(super) fn is_directory(&self, node: u32) -> bool {
        matches!(self.draft(node).kind, DraftKind::Directory { .. })
    }

    pub(super) fn intern(&mut self, name: &'a [u8]) -> Result<u32, MergeFault> {
        let next = u32::try_from(self.names.len()).map_err(|_| MergeFault::TooMany("names"))?;
        let ordinal = *self.name_ordinals.entry(name).or_insert(next);
        if ordinal == next {
            self.names.push(name);
        }
        Ok(ordinal)
    }

    pub(super) fn add(&mut self, draft: NodeDraft<'a>) -> Result<u32, MergeFault> {
        let node = u32::try_from(self.drafts.len()).ok().filter(|_| self.drafts.len() < MAX_NODES);
        let node = node.ok_or(MergeFault::TooMany("nodes"))?;
        self.drafts.push(draft);
        Ok(node)
    }

    /// Binds a name in a directory to a node, replacing the node that had the name.
    pub(super) fn bind(&mut self, directory: u32, name: u32, node: u32) {
        let former = self.children.insert((directory, name), node);
        self.forget(former);
    }

    pub(super) fn unbind(&mut self, directory: u32, name: u32) {
        let former = self.children.remove(&(directory, name));
        self.forget(former);
    }

    /// Drops the cached directory if its path may have led through a node that is now unlinked.
    pub(super) fn forget(&mut self, former: Option<u32>) {
        if former.is_some_and(|former| !matches!(self.draft(former).kind, DraftKind::Other)) {
            self.last = None;
        }
    }

    /// Resolves a path from the root and follows symlinks, also in the last component. The symlinks in `replaced` block it.
    pub(super) fn resolve(
        &mut self,
        path: &'a [u8],
        replaced: &ReplacedLinks<'a>,
    ) -> Result<ResolvedPath<'a>, MergeFault> {
        let mut at = self.root;
        let mut missing: Vec<&[u8]> = Vec::new();
        let mut links = 0;
        // The remaining parts of the path and of symlink targets, innermost last.
        let mut rests = vec![path];
        while let Some(rest) = rests.pop() {
            let name = match rest.iter().position(|&byte| byte == b'/') {
                Some(slash) => {
                    rests.push(&rest[slash + 1..]);
                    &rest[..slash]
                }
                None => rest,
            };
            if links > 0 {
                self.link_steps += 1;
                if self.link_steps > MAX_LINK_STEPS {
                    return Err(MergeFault::TooMany("components of symbolic links"));
                }
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    if missing.pop().is_none()
                        && let DraftKind::Directory { parent, .. } = self.draft(at).kind
                    {
                        at = parent;
                    }
                    continue;
                }
                _ => {}
            }
            let child = if missing.is_empty() { self.child(at, name) } else { None };
            let Some(child) = child else {
                missing.push(name);
                continue;
            };
            match self.draft(child).kind {
                DraftKind::Directory { .. } => at = child,
                DraftKind::Symlink { .. } if replaced.contains(&(at, name)) => {
                    return Ok(ResolvedPath::Blocked);
                }
                DraftKind::Symlink { target } => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(MergeFault::Loop);
                    }
                    if target.starts_with(b"/") {
                        at = self.root;
                    }
                    rests.push(target);
                }
                DraftKind::Other => return Ok(ResolvedPath::Blocked),
            }
        }
        self.followed = links;
        Ok(if missing.is_empty() { ResolvedPath::Directory(at) } else { ResolvedPath::Missing(at, missing) })
    }

    /// Returns the directory at a path; creates it and its parents if they are missing.
    pub(super) fn directory(&mut self, path: &'a [u8]) -> Result<u32, MergeFault> {
        if let Some((last, directory)) = self.last
            && last == path
        {
            return Ok(directory);
        }
        let directory = match self.resolve(path, &ReplacedLinks::new())? {
            ResolvedPath::Directory(directory) => directory,
            ResolvedPath::Blocked => return Err(MergeFault::NotADirectory),
            ResolvedPath::Missing(mut at, missing) => {
                if let Some(long) = missing.iter().find(|name| name.len() > MAX_NAME) {
                    return Err(MergeFault::LongName(long.len()));
                }
                for component in missing {
                    let name = self.intern(component)?;
                    if is_leftover(component) {
                        self.hidden.push((at, name));
                    }
                    let kind = DraftKind::Directory { parent: at, name };
                    let node = self.add(NodeDraft { kind, layer: IMPLIED, entry: 0 })?;
                    self.bind(at, name, node);
                    at = node;
                }
                at
            }
        };
        // Do not cache a path with symlinks: any new name can change where it leads (`c/..` works until `c` is a file).
        self.last = (self.followed == 0).then_some((path, directory));
        Ok(directory)
    }

    /// Last step: removes the leftovers of AUFS of a layer, to which hard links of other layers cannot refer.
    pub(super) fn remove_hidden(&mut self) {
        for (directory, name) in std::mem::take(&mut self.hidden) {
            self.unbind(directory, name);
        }
    }

    /// Returns the directory and the node at a path; a symlink in the last component is not followed.
    pub(super) fn find(
        &mut self,
        path: &'a [u8],
        replaced: &ReplacedLinks<'a>,
    ) -> Result<Option<(u32, u32)>, MergeFault> {
        let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        let ResolvedPath::Directory(directory) = self.resolve(dir, replaced)? else { return Ok(None) };
        Ok(self.child(directory, name).map(|child| (directory, child)))
    }
}
