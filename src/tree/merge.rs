//! Merges layers into one tree.
//!
//! A layer's markers apply to the layers below it and never to its own entries, in any order of the tar
//! (image-spec, layer.md, "Whiteouts"). So each layer is applied in two steps: first its markers to the tree so far,
//! then its entries in the order of the tar. Further rules:
//!
//! - Markers act in the order of the paths that they hide, so that a marker below a hidden name has no effect.
//! - A marker below a symlink acts on the symlink's target, unless this layer has a directory entry at the symlink's own
//!   path. That directory replaces the symlink, and its markers refer to *its* content: `lib -> usr/lib` below, with
//!   `lib/` and `lib/.wh..wh..opq` above (as a builder writes when a program replaced the link with a directory), must
//!   not empty `usr/lib`.
//! - Markers create nothing: a marker with missing parents, or below a file, hides nothing.
//! - An entry below a file is an error (`a` is a file, `a/b` follows, and no entry turns `a` into a directory): unpacking the
//!   layers one by one fails there with ENOTDIR.
//! - An entry replaces the node at its path before the target of a hard link is looked up, like a program that unlinks first.
//! - Files below `.wh..wh.plnk` and other leftovers of AUFS exist while their layer is applied, so that hard links can refer to
//!   them. Then they are removed.
//! - `..` after a missing component of a symlink's target cancels that component; only the components that remain are created.
//!
//! Nodes are never removed from the tables; removing a name only unlinks its node. So removing a directory costs the same
//! whatever its size.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::{IMPLIED, LayerNo, MAX_LINKS, MAX_NAME, MergeError, MergeFault, Tree};
use crate::image::{Digest, LayerDigest};
use crate::index::{EntryId, Index, IndexedKind, is_hidden};
use crate::layer::is_leftover;

/// Maximum number of components of symlink targets that a merge walks, for all entries together. Paths in real layers lead
/// through a few links of a few components; 40 links of 2,000 components in the path of each of a million entries would take
/// an hour.
const MAX_LINK_STEPS: u32 = 1 << 24;

/// Maximum number of nodes that a merge creates, including removed ones. Each takes some 100 bytes during the merge. The
/// largest images have two million files; a path of 4,000 bytes can create two thousand directories, so a small layer could
/// use all memory.
const MAX_NODES: usize = 1 << 24;

/// Maximum number of entries and markers in all layers of an image; a layer that occurs twice counts twice. Even if they
/// create few nodes, each takes time: a thousand times the same layer of a million directories would take an hour.
const MAX_ENTRIES: usize = 1 << 25;

/// Merges the layers of an image, lowest first.
///
/// # Errors
/// A layer breaks a rule; the error names the layer and the entry.
pub fn merge<D: AsRef<[u8]>>(layers: &[&Index<D>]) -> Result<Tree, MergeError> {
    let mut merge = MergeState::new();
    require_few_entries(layers)?;
    for (number, &layer) in layers.iter().enumerate() {
        // `IMPLIED` is reserved for nodes without a layer.
        let number = u16::try_from(number).ok().filter(|number| *number != IMPLIED);
        let fail = |at, path: Vec<u8>, fault| MergeError {
            layer: LayerNo(number.unwrap_or(IMPLIED)),
            digest: *layer.layer(),
            at,
            path: path.into(),
            marker: false,
            fault,
        };
        let number = number.ok_or_else(|| fail(None, Vec::new(), MergeFault::TooMany("layers")))?;
        merge
            .apply_markers(layer)
            .map_err(|(path, fault)| MergeError { marker: true, ..fail(None, path.to_vec(), fault) })?;
        merge.reserve(layer.len());
        for (id, entry) in layer.entries() {
            let name = EntryName { dir: entry.dir(), name: entry.name(), layer: number, entry: id };
            match merge.apply(name, entry.kind()) {
                // A hidden entry matters only to the hard links that refer to it, which then are errors.
                Err(fault) if is_hidden(&entry.path()) && !matches!(fault, MergeFault::TooMany(_)) => {}
                result => result.map_err(|fault| fail(Some(entry.offset()), entry.path(), fault))?,
            }
        }
        merge.remove_hidden();
    }
    let layer = LayerNo(u16::try_from(layers.len().saturating_sub(1)).unwrap_or(IMPLIED));
    // An image without layers has only the root, so this digest never appears in an error.
    let digest = layers.last().map_or_else(|| LayerDigest::new(Digest::of(&[])), |layer| *layer.layer());
    merge.freeze().map_err(|fault| MergeError {
        layer,
        digest,
        at: None,
        path: Box::default(),
        marker: false,
        fault,
    })
}

fn require_few_entries<D: AsRef<[u8]>>(layers: &[&Index<D>]) -> Result<(), MergeError> {
    let mut entries: usize = 0;
    for (number, layer) in layers.iter().enumerate() {
        entries = entries.saturating_add(layer.len()).saturating_add(layer.marker_count());
        if entries > MAX_ENTRIES {
            let first = layer.entries().next().map(|(_, entry)| (entry.offset(), entry.path()));
            let (at, path) = first.map_or((None, Vec::new()), |(at, path)| (Some(at), path));
            return Err(MergeError {
                layer: LayerNo(u16::try_from(number).unwrap_or(IMPLIED)),
                digest: *layer.layer(),
                at,
                path: path.into(),
                marker: false,
                fault: MergeFault::TooMany("entries, with those of the layers below"),
            });
        }
    }
    Ok(())
}

/// Symlinks that a layer replaces with directories, as directory and name: other names of the same symlink remain.
type ReplacedLinks<'a> = HashSet<(u32, &'a [u8])>;

/// Name and origin of an entry, without its kind.
#[derive(Debug, Clone, Copy)]
struct EntryName<'a> {
    dir: &'a [u8],
    name: &'a [u8],
    layer: u16,
    entry: EntryId,
}

/// A node during the merge.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeDraft<'a> {
    kind: DraftKind<'a>,
    pub(super) layer: u16,
    pub(super) entry: u32,
}

#[derive(Debug, Clone, Copy)]
enum DraftKind<'a> {
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
enum ResolvedPath<'a> {
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
    hidden: Vec<(u32, u32)>,
    /// The directory of the previous entry, as path and node. Neighbours in a tar mostly share their directory.
    last: Option<(&'a [u8], u32)>,
    /// The number of symlinks in the path that was resolved last.
    followed: usize,
    /// The number of components of symlink targets walked so far.
    link_steps: u32,
}

impl<'a> MergeState<'a> {
    fn new() -> Self {
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
    fn reserve(&mut self, entries: usize) {
        self.drafts.reserve(entries);
        self.children.reserve(entries);
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        self.children.get(&(directory, *self.name_ordinals.get(name)?)).copied()
    }

    pub(super) fn draft(&self, node: u32) -> &NodeDraft<'a> {
        &self.drafts[node as usize]
    }

    pub(super) fn is_directory(&self, node: u32) -> bool {
        matches!(self.draft(node).kind, DraftKind::Directory { .. })
    }

    fn intern(&mut self, name: &'a [u8]) -> Result<u32, MergeFault> {
        let next = u32::try_from(self.names.len()).map_err(|_| MergeFault::TooMany("names"))?;
        let ordinal = *self.name_ordinals.entry(name).or_insert(next);
        if ordinal == next {
            self.names.push(name);
        }
        Ok(ordinal)
    }

    fn add(&mut self, draft: NodeDraft<'a>) -> Result<u32, MergeFault> {
        let node = u32::try_from(self.drafts.len()).ok().filter(|_| self.drafts.len() < MAX_NODES);
        let node = node.ok_or(MergeFault::TooMany("nodes"))?;
        self.drafts.push(draft);
        Ok(node)
    }

    /// Binds a name in a directory to a node, replacing the node that had the name.
    fn bind(&mut self, directory: u32, name: u32, node: u32) {
        let former = self.children.insert((directory, name), node);
        self.forget(former);
    }

    fn unbind(&mut self, directory: u32, name: u32) {
        let former = self.children.remove(&(directory, name));
        self.forget(former);
    }

    /// Drops the cached directory if its path may have led through a node that is now unlinked.
    fn forget(&mut self, former: Option<u32>) {
        if former.is_some_and(|former| !matches!(self.draft(former).kind, DraftKind::Other)) {
            self.last = None;
        }
    }

    /// Resolves a path from the root and follows symlinks, also in the last component. The symlinks in `replaced` block it.
    fn resolve(
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
    fn directory(&mut self, path: &'a [u8]) -> Result<u32, MergeFault> {
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
    fn remove_hidden(&mut self) {
        for (directory, name) in std::mem::take(&mut self.hidden) {
            self.unbind(directory, name);
        }
    }

    /// Returns the directory and the node at a path; a symlink in the last component is not followed.
    fn find(
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

    /// First step: applies the markers of a layer to the tree so far.
    fn apply_markers<D: AsRef<[u8]>>(&mut self, layer: &'a Index<D>) -> Result<(), (&'a [u8], MergeFault)> {
        let whiteouts = layer.whiteouts().map(|path| (path, false));
        let mut markers: Vec<_> = whiteouts.chain(layer.opaques().map(|path| (path, true))).collect();
        if markers.is_empty() {
            return Ok(());
        }
        self.last = None;
        // In byte order, each path follows its parents.
        markers.sort_unstable();
        let replaced = self.replaced_links(layer);
        for (path, opaque) in markers {
            let fail = |fault| (path, fault);
            if opaque {
                if let ResolvedPath::Directory(directory) = self.resolve(path, &replaced).map_err(fail)? {
                    self.empty(directory).map_err(fail)?;
                }
            } else if let Some((directory, _)) = self.find(path, &replaced).map_err(fail)? {
                let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                let name = self.intern(name).map_err(fail)?;
                self.unbind(directory, name);
            }
        }
        Ok(())
    }

    /// Finds the symlinks that this layer replaces with directories.
    fn replaced_links<D: AsRef<[u8]>>(&mut self, layer: &'a Index<D>) -> ReplacedLinks<'a> {
        let directories = layer.entries().filter(|(_, entry)| entry.kind() == IndexedKind::Directory);
        let mut directories: Vec<_> = directories.map(|(_, entry)| (entry.dir(), entry.name())).collect();
        directories.sort_unstable_by(|a, b| by_path(*a, *b));
        let mut replaced = ReplacedLinks::new();
        for (dir, name) in directories {
            // Errors are reported when the entry is applied.
            if let Ok(ResolvedPath::Directory(directory)) = self.resolve(dir, &replaced)
                && let Some(child) = self.child(directory, name)
                && matches!(self.draft(child).kind, DraftKind::Symlink { .. })
            {
                replaced.insert((directory, name));
            }
        }
        replaced
    }

    /// Empties a directory by putting an empty copy in its place.
    fn empty(&mut self, directory: u32) -> Result<(), MergeFault> {
        let former = *self.draft(directory);
        let empty = self.add(former)?;
        match former.kind {
            DraftKind::Directory { .. } if directory == self.root => {
                self.drafts[empty as usize].kind = DraftKind::Directory { parent: empty, name: 0 };
                self.root = empty;
            }
            DraftKind::Directory { parent, name } => self.bind(parent, name, empty),
            DraftKind::Symlink { .. } | DraftKind::Other => {}
        }
        Ok(())
    }

    /// Second step: applies one entry.
    fn apply(&mut self, entry_name: EntryName<'a>, kind: IndexedKind<'a>) -> Result<(), MergeFault> {
        let EntryName { dir, name, layer, entry } = entry_name;
        let entry = entry.get();
        if name.is_empty() {
            let root = &mut self.drafts[self.root as usize];
            (root.layer, root.entry) = (layer, entry);
            return Ok(());
        }
        let parent = self.directory(dir)?;
        let name = self.intern(name)?;
        let former = self.children.get(&(parent, name)).copied();
        let kind = match kind {
            IndexedKind::Directory => match former {
                Some(former) if self.is_directory(former) => {
                    let draft = &mut self.drafts[former as usize];
                    (draft.layer, draft.entry) = (layer, entry);
                    return Ok(());
                }
                _ => DraftKind::Directory { parent, name },
            },
            IndexedKind::Hardlink { target } => {
                self.unbind(parent, name);
                return match self.find(target, &ReplacedLinks::new())? {
                    _ if target.is_empty() => Err(MergeFault::DirectoryTarget(b"/".as_slice().into())),
                    None => Err(MergeFault::NoTarget(target.into())),
                    Some((_, node)) if self.is_directory(node) => {
                        Err(MergeFault::DirectoryTarget(target.into()))
                    }
                    Some((_, node)) => {
                        self.bind(parent, name, node);
                        Ok(())
                    }
                };
            }
            IndexedKind::Symlink { target } => DraftKind::Symlink { target },
            IndexedKind::Regular { .. }
            | IndexedKind::CharDevice { .. }
            | IndexedKind::BlockDevice { .. }
            | IndexedKind::Fifo => DraftKind::Other,
        };
        let node = self.add(NodeDraft { kind, layer, entry })?;
        self.bind(parent, name, node);
        Ok(())
    }
}

/// Compares paths that are split into directory and name as if they were whole. A million entries can share a directory path
/// of 4,000 bytes; whole paths would take 4 GB.
fn by_path(a: (&[u8], &[u8]), b: (&[u8], &[u8])) -> Ordering {
    fn bytes<'b>((dir, name): (&'b [u8], &'b [u8])) -> impl Iterator<Item = &'b u8> {
        dir.iter().chain(if dir.is_empty() { &[][..] } else { b"/" }).chain(name)
    }
    if a.0 == b.0 { a.1.cmp(b.1) } else { bytes(a).cmp(bytes(b)) }
}
